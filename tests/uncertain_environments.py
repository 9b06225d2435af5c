"""Environments that test how state is saved: random ones, and ones that break the rules that make a replay exact."""

import gymnasium as gym
import numpy as np


class NoisyWalk(gym.Env):
    """Draws from its own generator in each step and each reset; episodes end at random."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self._noise(3)
        return self._obs(), {}

    def step(self, action):
        self.position = 0.9 * self.position + self._noise(3) + (action - 1)
        ended = bool(self._noise(1)[0] > 1.5)
        return self._obs(), float(-np.abs(self.position).sum()), ended, False, {}

    def _noise(self, size):
        return self.np_random.normal(size=size)

    def _obs(self):
        return self.position.astype(np.float32)


class GloballyRandom(NoisyWalk):
    """Draws from NumPy's global generator, which belongs to everybody."""

    def _noise(self, size):
        return np.random.normal(size=size)


class Hoarder(NoisyWalk):
    """Keeps something from the episodes before, in spite of a seeded reset."""

    def __init__(self):
        self.hoard = 0.0

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed, options=options)
        self.hoard += 1.0
        return obs, info

    def _obs(self):
        return (self.position + self.hoard).astype(np.float32)


for name, cls in [("NoisyWalk", NoisyWalk), ("GloballyRandom", GloballyRandom), ("Hoarder", Hoarder)]:
    if f"PlRlTest/{name}-v0" not in gym.registry:
        gym.register(f"PlRlTest/{name}-v0", cls, max_episode_steps=40)
