"""Arrays in shared memory, by which worker processes take actions and give observations.

Shapes: ``N`` environments.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from pl_rl.errors import UsageError
from pl_rl.networks.records import tree_map


class Arrays(NamedTuple):
    """The arrays in shared memory."""

    actions: npt.NDArray[Any]
    """``[N, *action_space.shape]``"""
    obs: Any
    """``[N, *observation_space.shape]``, or a dictionary of such arrays."""
    rewards: npt.NDArray[np.float64]
    """``[N]``"""
    terminated: npt.NDArray[np.bool_]
    """``[N]``"""
    truncated: npt.NDArray[np.bool_]
    """``[N]``"""
    busy: npt.NDArray[np.int64]
    """The index of the environment that each worker is stepping, one per worker."""


@dataclass(frozen=True)
class Form:
    """Shape and type of an array."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return int(np.prod(self.shape))


class Layout(NamedTuple):
    """The shared memory of :class:`Arrays`; it can be passed to a process of any start method."""

    memory: list[Any]
    forms: list[Any]
    """The :class:`Form` of each, or a dictionary of them."""

    @classmethod
    def allocate(cls, context: Any, forms: list[Any]) -> "Layout":
        """Fresh memory for arrays of these forms."""

        def memory_of(form: Form) -> Any:
            return context.RawArray("b", max(form.count * np.dtype(form.dtype).itemsize, 1))

        return cls([tree_map(memory_of, form) for form in forms], forms)

    def arrays(self) -> Arrays:
        """The arrays, wherever this is called."""

        def array_of(memory: Any, form: Form) -> npt.NDArray[Any]:
            return np.frombuffer(memory, form.dtype, count=form.count).reshape(form.shape)

        return Arrays(*(tree_map(array_of, *both) for both in zip(self.memory, self.forms, strict=True)))


def write_row(arrays: Any, i: int, obs: Any) -> None:
    """An observation into the row of its environment."""
    if isinstance(arrays, dict):
        for name, array in arrays.items():
            array[i] = obs[name]
    else:
        arrays[i] = obs


def form_of(space: gym.Space[Any]) -> Any:
    """Shape and type of an array of this space, or of each entry's."""
    if isinstance(space, gym.spaces.Dict):
        return {name: form_of(entry) for name, entry in space.spaces.items()}
    if space.shape is None or space.dtype is None:
        raise UsageError(f"the space {space} is not one of arrays; use one with a shape and a dtype")
    return Form(space.shape, np.dtype(space.dtype).str)
