"""Observations of which something is left out, as tasks for policies with a memory."""

from collections.abc import Sequence
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
        space = env.observation_space
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            raise UsageError(f"KeepComponents needs vectors, not {space}; leave it out of env.wrappers")
        if not components or not all(0 <= component < space.shape[0] for component in components):
            raise UsageError(
                f"KeepComponents: components={list(components)} must be positions from 0 to {space.shape[0] - 1}"
            )
        self._components = list(components)
        kept = self._components
        self.observation_space = gym.spaces.Box(space.low[kept], space.high[kept], dtype=space.dtype.type)

    def observation(self, observation: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """These components, ``[len(components)]``."""
        return observation[self._components]
