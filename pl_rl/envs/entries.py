"""Dictionary and tuple observations as one dictionary of arrays by path."""

from typing import Any

import gymnasium as gym
import numpy as np

from pl_rl.envs.faults import WrongOutput
from pl_rl.errors import UsageError
from pl_rl.networks.records import named_leaves

ARRAYS = (gym.spaces.Box, gym.spaces.Discrete, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary)


class EntriesByPath(gym.ObservationWrapper[Any, Any, Any]):
    """Gives nested dictionaries and tuples as one dictionary: ``{"robot": {"joints": ...}}`` as ``robot/joints``.

    Args:
        env: With observations of a ``Dict`` or a ``Tuple``.

    Raises:
        UsageError: If an entry is no array, or two have the same path.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._keys: dict[str, tuple[Any, ...]] = {}
        spaces: dict[str, gym.Space[Any]] = {}
        for path, keys, space in named_leaves(env.observation_space):
            if not isinstance(space, ARRAYS):
                raise UsageError(
                    f"the entry {path!r} of the observations is a {type(space).__name__}, which no network here reads; "
                    "choose entries that are arrays with gymnasium.wrappers.FilterObservation in env.wrappers"
                )
            if path in spaces:
                raise UsageError(f"two entries of the observations have the path {path!r}; rename one by a wrapper")
            self._keys[path], spaces[path] = keys, space
        self.observation_space = gym.spaces.Dict(spaces)

    def observation(self, observation: Any) -> dict[str, Any]:
        """The entries that the space names.

        Raises:
            WrongOutput: If one is not there.
        """
        entries = {}
        for path, keys in self._keys.items():
            entry = observation
            try:
                for key in keys:
                    entry = entry[key]
            except (KeyError, IndexError, TypeError):
                raise WrongOutput(f"gave an observation without the entry {path!r} that its space names") from None
            entries[path] = np.asarray(entry)
        return entries


def by_path(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """The environment, with observations by path if they are dictionaries or tuples."""
    nested = isinstance(env.observation_space, gym.spaces.Dict | gym.spaces.Tuple)
    return EntriesByPath(env) if nested else env
