"""What a policy sees: one tensor, or a dictionary of tensors, and functions of either.

An entry of nested dictionaries and tuples has its path as a name: ``robot/joints``, ``cameras/0``.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pl_rl.errors import UsageError

# A tensor or a dictionary of tensors; a checker that knows which would ask for it at each use.
Observations = Any
MASK = "action_mask"
"""The entry that says which actions are allowed."""


class Memory(NamedTuple):
    """What a network remembers of the episodes that observations ``[...]`` belong to."""

    state: Tensor
    """``[..., S]``, after the step before; without meaning where an episode begins."""
    begins: Tensor
    """``[...]`` bool: the observation is the first of its episode, of whose past there is nothing to remember."""


class Remembered(NamedTuple):
    """Observations and what is remembered at them: what a network with a memory takes."""

    obs: Observations
    memory: Memory


class ActionMask(gym.spaces.MultiBinary):
    """The space of masks: one number for each output of a policy that chooses, 1 where the choice is allowed."""


def tree_map(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """Apply a function to an array, or to each in a dictionary or a record of them.

    Args:
        function: Of one array, or of as many as there are trees.
        tree: An array, or a dictionary or named tuple of trees.
        *others: Of the same structure; their dictionaries may have more entries.
    """
    if isinstance(tree, dict):
        return {name: tree_map(function, entry, *(other[name] for other in others)) for name, entry in tree.items()}
    if _is_record(tree):
        return type(tree)(*(tree_map(function, *fields) for fields in zip(tree, *others, strict=True)))
    return function(tree, *others)


def leaves(tree: Any) -> list[Any]:
    """All arrays of a tree."""
    if isinstance(tree, dict) or _is_record(tree):
        return [leaf for part in (tree.values() if isinstance(tree, dict) else tree) for leaf in leaves(part)]
    return [tree]


def leaves_as(like: Any, tree: Any) -> list[Any]:
    """All arrays of a tree, in the order of another one of the same structure, whose dictionaries may have another."""
    return leaves(tree_map(lambda _, leaf: leaf, like, tree))


def split(tree: Any, size: int) -> list[Any]:
    """A tree of tensors in parts of ``size`` rows."""
    return [rows(tree, slice(start, start + size)) for start in range(0, len(leaves(tree)[0]), size)]


def as_samples(steps: Tensor, length: int | None) -> Tensor:
    """Steps ``[T, N, ...]`` of environments as samples ``[T * N, ...]``, or as sequences ``[T / L * N, L, ...]``.

    Args:
        steps: Of a rollout.
        length: ``L``; ``None`` for single samples.
    """
    if length is None:
        return steps.flatten(0, 1)
    sequences = steps.reshape(-1, length, *steps.shape[1:])
    return sequences.transpose(1, 2).flatten(0, 1)


def as_steps(samples: Tensor, steps: int, length: int | None) -> Tensor:
    """The inverse of :func:`as_samples`, of ``T`` steps."""
    if length is None:
        return samples.view(steps, -1, *samples.shape[1:])
    sequences = samples.view(steps // length, -1, *samples.shape[1:])
    return sequences.transpose(1, 2).flatten(0, 1)


def rows(tree: Any, index: Any) -> Any:
    """A tree of rows, or of a row, of each array."""
    return tree_map(lambda leaf: leaf[index], tree)


def unbind(tree: Any) -> list[Any]:
    """The rows of a tree of tensors, each of its structure; for a tensor, as ``Tensor.unbind``."""
    if isinstance(tree, dict):
        return [dict(zip(tree, row, strict=True)) for row in zip(*map(unbind, tree.values()), strict=True)]
    if _is_record(tree):
        return [type(tree)(*row) for row in zip(*map(unbind, tree), strict=True)]
    return list(tree.unbind())


def stack(trees: Iterable[Any]) -> Any:
    """The inverse of :func:`unbind`."""
    return tree_map(lambda *parts: torch.stack(parts), *trees)


def _is_record(tree: Any) -> bool:
    return isinstance(tree, tuple) and hasattr(tree, "_fields")


def next_memory(state: Tensor | None, ended: npt.NDArray[np.bool_]) -> Memory | None:
    """The memory at the next step.

    Args:
        state: ``[B, S]`` after this one; ``None`` for a network without a memory.
        ended: ``[B]``, which episodes this step ended.
    """
    return None if state is None else Memory(state, torch.from_numpy(ended).to(state.device))


def with_memory(obs: Observations, memory: Memory | None) -> Any:
    """What a network takes: the observations, with what is remembered at them if it has a memory."""
    return obs if memory is None else Remembered(obs, memory)


def space_tree(space: gym.Space[Any]) -> Any:
    """The space, or the spaces of a dictionary's entries, as :func:`tree_map` takes them."""
    return dict(space.spaces) if isinstance(space, gym.spaces.Dict) else space


def entries_of(space: gym.Space[Any]) -> dict[str, gym.Space[Any]]:
    """The spaces of the entries by name; that of an observation without entries has the name ``obs``."""
    return dict(space.spaces) if isinstance(space, gym.spaces.Dict) else {"obs": space}


def entries(tree: Any) -> dict[str, Any]:
    """The arrays of an observation by name, as :func:`entries_of` gives their spaces."""
    return tree if isinstance(tree, dict) else {"obs": tree}


def matching(names: Iterable[str], patterns: Iterable[str], setting: str) -> list[str]:
    """The names that one of the patterns matches, such as ``camera`` or ``robot/*``.

    Args:
        names: Of entries.
        patterns: As a setting gives them.
        setting: The name of that.

    Raises:
        UsageError: If a pattern matches no name.
    """
    names, patterns = list(names), list(patterns)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(
                f"{setting}: {pattern!r} matches no entry of the observations; they are {', '.join(names)}"
            )
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def as_input(obs: Observations, parameter: Tensor) -> Observations:
    """Observations on the device of a network's parameter, floats in its type."""

    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(parameter.device, parameter.dtype if tensor.is_floating_point() else tensor.dtype)

    return tree_map(moved, obs)


def example(space: gym.Space[Any], count: int) -> Any:
    """``count`` observations of a space, all zero or where its numbers start."""

    def zeros(entry: gym.Space[Any]) -> Tensor:
        start = torch.as_tensor(getattr(entry, "start", 0), dtype=tensor_type(entry.dtype))
        return start.expand(count, *(entry.shape or ())).clone()

    return tree_map(zeros, space_tree(space))


def tensor_type(dtype: Any) -> torch.dtype:
    """Torch's type for NumPy's."""
    return torch.from_numpy(np.empty(0, dtype)).dtype


def by_path(obs: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path and array of each entry of a nested observation."""
    if isinstance(obs, Mapping | tuple):
        for key, entry in obs.items() if isinstance(obs, Mapping) else enumerate(obs):
            yield from by_path(entry, f"{path}/{key}" if path else str(key))
    else:
        yield path, obs


def named_leaves(space: gym.Space[Any], keys: tuple[Any, ...] = ()) -> Iterator[tuple[str, tuple[Any, ...], Any]]:
    """Path, keys and space of each entry of nested dictionaries and tuples, in the space's order."""
    inner: Mapping[Any, gym.Space[Any]] | None = None
    if isinstance(space, gym.spaces.Dict):
        inner = space.spaces
    elif isinstance(space, gym.spaces.Tuple):
        inner = dict(enumerate(space.spaces))
    if inner is None:
        yield "/".join(map(str, keys)), keys, space
    else:
        for key, entry in inner.items():
            yield from named_leaves(entry, (*keys, key))
