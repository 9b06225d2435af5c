"""Gymnasium's own vectorized environments, brought to the one autoreset mode that pl_rl uses."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.spaces import MultiDiscrete
from gymnasium.vector import AutoresetMode, VectorEnv

from pl_rl.errors import UsageError

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]


class NoNativeVectorization(UsageError):
    """An environment has no vectorized code, or has something that does not go with it."""

    def __init__(self, env_id: str, what: str | None = None) -> None:
        lacks = f" that goes with {what}" if what else ""
        super().__init__(f"environment {env_id!r} has no native vectorization{lacks}; use auto, sync or async")


class Trusted(MultiDiscrete):
    """Actions that need no check, since a distribution made for this space draws them."""

    def contains(self, x: Any) -> bool:
        """Yes: gymnasium asks at each step, which takes a fifth of it."""
        return True


class SameStepCartPoleVectorEnv(CartPoleVectorEnv):
    """CartPole in vectorized code whose ended episodes begin again within the step that ended them.

    Gymnasium's class resets one step later and fills that step with a dummy transition, which would have to be
    cut out of every rollout.
    """

    # Gymnasium declares it without ClassVar.
    metadata = {**CartPoleVectorEnv.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.action_space = Trusted(cast(MultiDiscrete, self.action_space).nvec)

    def step(self, action: npt.NDArray[np.integer[Any]]) -> tuple[Floats, Floats, Bools, Bools, dict[str, Any]]:
        """One step of all environments; ``infos["final_obs"][i]`` is the last observation of an ended episode."""
        obs, rewards, terminated, truncated, infos = super().step(action)
        ended = self.prev_done
        if ended.any():
            assert self.state is not None
            infos = {"final_obs": obs.copy(), "_final_obs": ended}
            self.state[:, ended] = self.np_random.uniform(self.low, self.high, size=(4, ended.sum()))
            self.steps[ended] = 0
            self.prev_done = np.zeros_like(ended)
            obs[ended] = self.state[:, ended].T
        return obs, rewards, terminated, truncated, infos


# By the entry point under which gymnasium registers the class that each stands in for.
NATIVE_VECTOR_ENVS: dict[str, Callable[..., VectorEnv[Any, Any, Any]]] = {
    "gymnasium.envs.classic_control.cartpole:CartPoleVectorEnv": SameStepCartPoleVectorEnv,
}
