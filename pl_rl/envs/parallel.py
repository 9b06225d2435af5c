"""Copies of a single environment, stepped together; an ended episode is reset within the step that ended it.

Shapes: ``N`` environments.
"""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import concatenate

from pl_rl.envs.episode_info import EpisodeInfo, episode_info
from pl_rl.envs.faults import STOPS, as_fault, close_each, failure
from pl_rl.networks.records import tree_map

EnvFns = Sequence[Callable[[], gym.Env[Any, Any]]]
Step = tuple[npt.NDArray[Any], npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.bool_], dict[str, Any]]


class SyncEnvs(SyncVectorEnv[Any, Any]):
    """Steps environments one after another in this process. Observations are overwritten by the next step.

    Args:
        env_fns: Make the environments.
        info_keys: As :attr:`pl_rl.EnvConfig.info_keys`.
    """

    def __init__(self, env_fns: EnvFns, info_keys: Sequence[str] = ()) -> None:
        super().__init__(env_fns, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
        self._info_keys = info_keys

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in each; the ``i``-th with the seed ``seed + i``.

        Raises:
            EnvironmentFailure: If one raises an exception, ends the process or gives a wrong observation.
        """
        for i, env in enumerate(self.envs):
            try:
                self._env_obs[i], _ = env.reset(seed=None if seed is None else seed + i, options=options)
            except STOPS:
                raise
            except BaseException as error:
                raise failure(as_fault(i, "in a reset", error)) from error
        return concatenate(self.single_observation_space, self._env_obs, self._observations), {}

    def step(self, actions: npt.NDArray[Any]) -> Step:
        """One step of all; ``infos["final_obs"][i]`` is the last observation of an ended episode.

        What else it says of the episode is in ``infos["episode_info"]``, see :mod:`pl_rl.envs.episode_info`.

        Raises:
            EnvironmentFailure: If one raises an exception, ends the process or gives a wrong observation.
        """
        final_obs = np.full(self.num_envs, None, dtype=object)
        ended_info: dict[int, EpisodeInfo] = {}
        i, doing = 0, ""
        try:
            for i, env in enumerate(self.envs):
                doing = "step"
                obs, self._rewards[i], terminated, truncated, info = env.step(actions[i])
                self._terminations[i], self._truncations[i] = terminated, truncated
                if terminated or truncated:
                    final_obs[i] = tree_map(np.array, obs)
                    ended_info[i] = episode_info(info, self._info_keys)
                    doing = "reset"
                    obs, _ = env.reset()
                self._env_obs[i] = obs
        except STOPS:
            raise
        except BaseException as error:
            raise failure(as_fault(i, in_words(doing, actions[i]), error)) from error
        ended = self._terminations | self._truncations
        infos: dict[str, Any] = {}
        if ended.any():
            infos = {"final_obs": final_obs, "_final_obs": ended, "episode_info": ended_info}
        all_obs: Any = concatenate(self.single_observation_space, self._env_obs, self._observations)
        return all_obs, self._rewards.copy(), self._terminations.copy(), self._truncations.copy(), infos

    def close_extras(self, **kwargs: Any) -> None:
        """Close each.

        Raises:
            EnvironmentFailure: If one raises an exception.
        """
        self.closed = True  # not again when this object is deleted
        fault = close_each(enumerate(getattr(self, "envs", ())))  # they are not there if one could not be made
        if fault is not None:
            raise failure(fault)


def in_words(doing: str, action: Any) -> str:
    """What an environment was doing when it failed."""
    if doing == "reset":
        return "in the reset after an episode"
    text = np.array2string(np.asarray(action), separator=", ", threshold=8, max_line_width=10_000)
    return f"given the action {text}"
