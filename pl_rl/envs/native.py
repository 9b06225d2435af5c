"""Gymnasium's own vectorized environments, in the autoreset mode that pl_rl uses, ``SAME_STEP``."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.spaces import MultiDiscrete
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode, VectorEnv

from pl_rl.errors import UsageError

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
        self.action_space = Trusted(cast(MultiDiscrete, self.action_space).nvec)

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
        for block, generator in zip(np.split(np.arange(self.num_envs), self._shards), self.generators, strict=True):
            here = block[begun[block]]
            state[:, here] = generator.uniform(self.low, self.high, size=(4, len(here)))

    def step(self, action: npt.NDArray[np.integer[Any]]) -> tuple[Floats, Floats, Bools, Bools, dict[str, Any]]:
        """One step of all environments; ``infos["final_obs"][i]`` is the last observation of an ended episode."""
        obs, rewards, terminated, truncated, infos = super().step(action)
        ended = self.prev_done
        if ended.any():
            infos = {"final_obs": obs.copy(), "_final_obs": ended}
            self._draw(ended)
            self.steps[ended] = 0
            self.prev_done = np.zeros_like(ended)
            obs[ended] = cast(Floats, self.state)[:, ended].T
        return obs, rewards, terminated, truncated, infos


# By the entry point of the class that each replaces, as gymnasium registers it.
NATIVE_VECTOR_ENVS: dict[str, Callable[..., VectorEnv[Any, Any, Any]]] = {
    "gymnasium.envs.classic_control.cartpole:CartPoleVectorEnv": SameStepCartPoleVectorEnv,
}
