"""Gymnasium's own vectorized environments, in the autoreset mode that pl_rl uses, ``SAME_STEP``."""

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.spaces import MultiDiscrete
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode, VectorEnv

from pl_rl.errors import UsageError

Actions = npt.NDArray[np.integer[Any]]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]


class NoNativeVectorization(UsageError):
    """An environment has no native vectorization, or settings that this does not support."""

    def __init__(self, env_id: str, what: str | None = None) -> None:
        lacks = f" that goes with {what}" if what else ""
        super().__init__(f"environment {env_id!r} has no native vectorization{lacks}; use auto, sync or async")


class Trusted(MultiDiscrete):
    """An action space without validation: actions are sampled from a distribution made for it."""

    def contains(self, x: Any) -> bool:
        """Always true; gymnasium's check would take a fifth of each step."""
        return True


class SameStepCartPoleVectorEnv(CartPoleVectorEnv):
    """Vectorized CartPole that resets an ended episode within the step that ended it.

    Gymnasium's class resets in the next step, whose transition is a dummy that every rollout would have to leave out.

    Args:
        shards: Equal blocks of environments, each with random numbers of its own; of one these are gymnasium's.
    """

    # Gymnasium declares it without ClassVar.
    metadata = {**CartPoleVectorEnv.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(self, *args: Any, shards: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._shards = shards
        self._blocks = np.split(np.arange(self.num_envs), shards)
        self.action_space = Trusted(cast(MultiDiscrete, self.action_space).nvec)
        self._move: Motion = move_carts

    def move_by(self, motion: "Motion") -> None:
        """Let another function move the carts; it must give the numbers of :func:`move_carts`."""
        self._move = motion

    @property
    def generators(self) -> list[np.random.Generator]:
        """Of each shard."""
        return [self.np_random] if self._shards == 1 else self._generators

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Floats, dict[str, Any]]:
        """Begin an episode in each; those of a shard as if there were no others, with the seed of its first one."""
        obs, infos = super().reset(seed=seed, options=options)
        if self._shards == 1:
            return obs, infos
        firsts = range(0, self.num_envs, self.num_envs // self._shards)
        self._generators = [np_random(None if seed is None else seed + first)[0] for first in firsts]
        self._draw(np.ones(self.num_envs, dtype=np.bool_))
        return cast(Floats, self.state).T.astype(np.float32), infos

    def _draw(self, begun: Bools) -> None:
        """The first states of episodes ``[N]``."""
        state = cast(Floats, self.state)
        for block, generator in zip(self._blocks, self.generators, strict=True):
            here = block[begun[block]]
            state[:, here] = generator.uniform(self.low, self.high, size=(4, len(here)))

    def step(self, action: Actions) -> tuple[Floats, Floats, Bools, Bools, dict[str, Any]]:
        """One step of all environments; ``infos["final_obs"][i]`` is the last observation of an ended episode."""
        if self.kinematics_integrator == "euler" and _computes_as_gymnasium():
            obs, rewards, terminated, truncated, infos = self._step(action)
        else:
            obs, rewards, terminated, truncated, infos = super().step(action)
            self.prev_done = np.zeros_like(self.prev_done)
        ended = terminated | truncated
        if np.count_nonzero(ended):  # in a fifth of the time of any()
            infos = {"final_obs": obs.copy(), "_final_obs": ended}
            self._draw(ended)
            self.steps[ended] = 0
            obs[ended] = cast(Floats, self.state)[:, ended].T
        return obs, rewards, terminated, truncated, infos

    def _step(self, action: Actions) -> tuple[Floats, Floats, Bools, Bools, dict[str, Any]]:
        """Gymnasium's numbers."""
        obs, terminated = self._move(self, action)
        self.steps += 1
        if self._sutton_barto_reward:
            rewards = -np.array(terminated, dtype=np.float32)
        else:
            rewards = np.ones(self.num_envs, dtype=np.float32)
        return obs, rewards, terminated, self.steps >= self.max_episode_steps, {}


Motion = Callable[[SameStepCartPoleVectorEnv, Actions], tuple[Floats, Bools]]
"""Moves the carts ``[N]``; returns their observations ``[N, 4]``, and which of them left the track or fell."""


def move_carts(env: SameStepCartPoleVectorEnv, action: Actions) -> tuple[Floats, Bools]:
    """Gymnasium's numbers, by half as many calls of NumPy, each of which takes a microsecond for few numbers."""
    state: Any = env.state
    theta, theta_dot = state[2:]
    cos, sin = np.cos(theta), np.sin(theta)
    force = np.where(action, env.force_mag, -env.force_mag)
    temp = (force + env.polemass_length * np.square(theta_dot) * sin) / env.total_mass
    change = np.empty_like(state)
    change[0], change[2] = state[1], theta_dot
    change[3] = acceleration = (env.gravity * sin - cos * temp) / (
        env.length * (4.0 / 3.0 - env.masspole * np.square(cos) / env.total_mass)
    )
    change[1] = temp - env.polemass_length * acceleration * cos / env.total_mass
    env.state = state = state + env.tau * change
    distance, angle = np.abs(state[::2])
    return state.T.astype(np.float32), (distance > env.x_threshold) | (angle > env.theta_threshold_radians)


@cache
def _computes_as_gymnasium() -> bool:
    """Whether a few steps give the numbers of gymnasium's class, another release of which may have changed."""
    ours: Any = SameStepCartPoleVectorEnv(num_envs=16)
    theirs: Any = CartPoleVectorEnv(num_envs=16)
    theirs.reset(seed=0)
    actions, same = np.arange(16) % 2, True
    while same and not theirs.prev_done.any():
        ours.state = theirs.state = 3 * theirs.state  # some of them fall before long
        one, other = ours._step(actions), theirs.step(actions)
        same = all(map(np.array_equal, (*one[:4], ours.state), (*other[:4], theirs.state)))
    return same


# By the entry point of the class that each replaces, as gymnasium registers it.
NATIVE_VECTOR_ENVS: dict[str, Callable[..., VectorEnv[Any, Any, Any]]] = {
    "gymnasium.envs.classic_control.cartpole:CartPoleVectorEnv": SameStepCartPoleVectorEnv,
}
