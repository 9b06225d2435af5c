"""Copies of a single environment that are stepped together and reset within the step that ends an episode.

Shapes: ``N`` environments.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.vector.async_vector_env import AsyncState
from gymnasium.vector.utils import concatenate

EnvFns = Sequence[Callable[[], gym.Env[Any, Any]]]
Step = tuple[npt.NDArray[Any], npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.bool_], dict[str, Any]]


class AsyncEnvs(AsyncVectorEnv):
    """Each in a process of its own."""

    def __init__(self, env_fns: EnvFns) -> None:
        super().__init__(env_fns, autoreset_mode=AutoresetMode.SAME_STEP)

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        """End the processes; those that are in the middle of a step, where a run was interrupted, without waiting."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*Calling `close` while waiting")
            super().close_extras(timeout, terminate or self._state != AsyncState.DEFAULT)

    def _add_info(self, vector_infos: dict[str, Any], env_info: dict[str, Any], env_num: int) -> dict[str, Any]:
        """Gather what rollouts read and no more, as gathering the rest takes longer than a step."""
        if "final_obs" not in env_info:
            return vector_infos
        return super()._add_info(vector_infos, {"final_obs": env_info["final_obs"]}, env_num)


class SyncEnvs(SyncVectorEnv[Any, Any]):
    """One after another in this process. Observations are overwritten by the next step."""

    def __init__(self, env_fns: EnvFns) -> None:
        super().__init__(env_fns, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)

    def step(self, actions: npt.NDArray[Any]) -> Step:
        """One step of all; ``infos["final_obs"][i]`` is the last observation of an ended episode."""
        final_obs = np.full(self.num_envs, None, dtype=object)
        for i, env in enumerate(self.envs):
            obs, self._rewards[i], terminated, truncated, _ = env.step(actions[i])
            self._terminations[i], self._truncations[i] = terminated, truncated
            if terminated or truncated:
                final_obs[i] = np.array(obs)
                obs, _ = env.reset()
            self._env_obs[i] = obs
        ended = self._terminations | self._truncations
        infos = {"final_obs": final_obs, "_final_obs": ended} if ended.any() else {}
        all_obs: Any = concatenate(self.single_observation_space, self._env_obs, self._observations)
        return all_obs, self._rewards.copy(), self._terminations.copy(), self._truncations.copy(), infos
