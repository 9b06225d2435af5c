"""Observations in parts: tasks for policies with a memory, and for critics that see more than the policy."""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy.typing as npt

from pl_rl.errors import UsageError


class KeepComponents(gym.ObservationWrapper[Any, Any, Any]):
    """Keeps some components of a vector, such as CartPole's position and angle without their velocities.

    Args:
        env: With vectors as observations.
        components: Their positions.

    Raises:
        UsageError: If observations are no vectors, or have no such component.
    """

    def __init__(self, env: gym.Env[Any, Any], components: Sequence[int]) -> None:
        super().__init__(env)
        self.observation_space = _part(self, env.observation_space, components)
        self._components = list(components)

    def observation(self, observation: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """These components, ``[len(components)]``."""
        return observation[self._components]


class SplitComponents(gym.ObservationWrapper[Any, Any, Any]):
    """Makes a dictionary of a vector, such as one of CartPole's places and its velocities.

    Args:
        env: With vectors as observations.
        entries: The positions of each entry's components.

    Raises:
        UsageError: If observations are no vectors, or have no such component.
    """

    def __init__(self, env: gym.Env[Any, Any], entries: Mapping[str, Sequence[int]]) -> None:
        super().__init__(env)
        self.observation_space = gym.spaces.Dict(
            {name: _part(self, env.observation_space, components) for name, components in entries.items()}
        )
        self._entries = {name: list(components) for name, components in entries.items()}

    def observation(self, observation: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """The components of each entry."""
        return {name: observation[components] for name, components in self._entries.items()}


def _part(wrapper: gym.Env[Any, Any], space: gym.Space[Any], components: Sequence[int]) -> gym.spaces.Box:
    """The space of some components of a vector.

    Raises:
        UsageError: If the space is not one of vectors, or they have no such component.
    """
    name = type(wrapper).__name__
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
        raise UsageError(f"{name} needs vectors, not {space}; leave it out of env.wrappers")
    if not components or not all(0 <= component < space.shape[0] for component in components):
        raise UsageError(f"{name}: components={list(components)} must be positions from 0 to {space.shape[0] - 1}")
    kept = list(components)
    return gym.spaces.Box(space.low[kept], space.high[kept], dtype=space.dtype.type)
