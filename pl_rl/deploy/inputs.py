"""What a program gives a policy to act on, as a batch of arrays.

Shapes: ``B`` observations of any batch.
"""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from torch import Tensor

from pl_rl.errors import UsageError
from pl_rl.networks.actor_critic import ActorCritic
from pl_rl.networks.records import by_path


def batch_of(obs: Any, network: ActorCritic) -> tuple[Any, bool]:
    """Observations ``[B, ...]`` as a vector environment gives them, and whether they are one alone.

    Args:
        obs: One observation or a batch of them; a dictionary may be nested, and lack what only the critic sees.
        network: That is to see them.

    Raises:
        UsageError: If they are no observations of its environment.
    """
    space = network.observation_space
    if not isinstance(space, gym.spaces.Dict):
        return _array(obs, space)
    given = _entries(obs, space, network.policy_entries)
    arrays = {name: _array(entry, space[name], f" of {name!r}") for name, entry in given.items()}
    if len({None if is_one else len(array) for array, is_one in arrays.values()}) > 1:
        raise UsageError("the entries of the observations are not as many each; give one of each, or a batch of each")
    return {name: array for name, (array, _) in arrays.items()}, all(is_one for _, is_one in arrays.values())


def _entries(obs: Any, space: gym.spaces.Dict, needed: list[str]) -> dict[str, Any]:
    """The entries of an observation by path.

    Raises:
        UsageError: If it has none, or lacks one that is needed.
    """
    if not isinstance(obs, Mapping | tuple):
        raise UsageError(
            f"an observation of type {type(obs).__name__} is given, and the policy sees a dictionary of "
            f"{', '.join(space)}; give it as that of make_env() does"
        )
    entries = {path: entry for path, entry in by_path(obs) if path in space.spaces}
    missing = [name for name in needed if name not in entries]
    if missing:
        raise UsageError(f"the observation lacks {', '.join(missing)}, which the policy sees; give it as well")
    return entries


def _array(obs: Any, space: gym.Space[Any], what: str = "") -> tuple[npt.NDArray[Any], bool]:
    """An array ``[B, *space.shape]``, and whether it is of one alone."""
    dtype = np.dtype(space.dtype)
    try:
        array = np.asarray(obs.detach().cpu() if isinstance(obs, Tensor) else obs)
    except ValueError as error:
        raise UsageError(
            f"the observations{what} cannot be made an array: {error}; give as many numbers each"
        ) from error
    is_one = array.shape == space.shape
    if not (is_one or array.shape[1:] == space.shape) or not np.can_cast(array.dtype, dtype, "same_kind"):
        raise UsageError(
            f"observations{what} of shape {array.shape} and type {array.dtype} are given, where one has the shape "
            f"{space.shape} and the type {dtype}, and a batch one dimension more; give them as the environment does"
        )
    return np.ascontiguousarray(array[None] if is_one else array, dtype), is_one
