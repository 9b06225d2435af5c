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


class Imprecise(NoisyWalk):
    """Gives float64 where its space has float32, as many do."""

    def _obs(self):
        return self.position


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


class NoisyReward(NoisyWalk):
    """Draws rewards, and nothing else, from a generator that no seed reaches."""

    def __init__(self):
        self.own = np.random.default_rng()

    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, reward + self.own.normal(), *rest


class ClipsInPlace(NoisyWalk):
    """Changes the action that it is given."""

    action_space = gym.spaces.Box(-10, 10, (3,), np.float32)

    def step(self, action):
        taken = super().step(action)
        np.clip(action, -0.01, 0.01, out=action)
        return taken


class Curriculum(NoisyWalk):
    """Its episodes grow with the number of those that were played, each by a step, from ``first`` steps on."""

    def __init__(self, first=30):
        self.longest = first

    def reset(self, *, seed=None, options=None):
        self.steps, self.longest = 0, self.longest + 1
        return super().reset(seed=seed, options=options)

    def step(self, action):
        obs, reward, _, _, info = super().step(action)
        self.steps += 1
        return obs, reward, False, self.steps >= self.longest, info


class UnseededEnd(NoisyWalk):
    """Draws a reward at the end of each episode from a generator that no seed reaches."""

    def __init__(self):
        self.own = np.random.default_rng()

    def step(self, action):
        obs, reward, terminated, *rest = super().step(action)
        return obs, reward + terminated * self.own.normal(), terminated, *rest


class CountsAllSteps(gym.Wrapper):
    """Rewards grow with all steps that were ever made."""

    def __init__(self, env):
        super().__init__(env)
        self.count = 0

    def step(self, action):
        obs, reward, *rest = self.env.step(action)
        self.count += 1
        return obs, reward + self.count / 1e12, *rest


class Sequences(NoisyWalk):
    """Gives observations as lists or as every second number of an array, and rewards as arrays of one number."""

    def step(self, action):
        obs, reward, *rest = super().step(action)
        return np.repeat(obs, 2)[::2] if reward > -2 else obs.tolist(), np.array([reward]), *rest


for cls in (Curriculum, UnseededEnd, Sequences):
    if f"PlRlTest/{cls.__name__}-v0" not in gym.registry:
        gym.register(f"PlRlTest/{cls.__name__}-v0", cls, disable_env_checker=True)

for cls in (NoisyWalk, Imprecise, GloballyRandom, Hoarder, NoisyReward, ClipsInPlace):
    if f"PlRlTest/{cls.__name__}-v0" not in gym.registry:
        gym.register(f"PlRlTest/{cls.__name__}-v0", cls, max_episode_steps=40, disable_env_checker=cls is Imprecise)
