"""Making a network from a file's description, if this machine has room for it."""

import os
from typing import Any

import torch

from pl_rl.envs.spaces import Space
from pl_rl.errors import UsageError
from pl_rl.networks.actor_critic import ActorCritic
from pl_rl.networks.description import NetworkFactory, network_from_description


def make_network(description: dict[str, Any], *spaces: Space) -> ActorCritic:
    """The network of a description whose names are trusted, see :func:`pl_rl.runs.trust.checked`.

    Raises:
        UsageError: If it cannot be made.
    """
    factory = network_from_description(description)
    try:
        needed, memory = _size(factory, *spaces), _memory()
        if needed > memory:
            raise UsageError(
                f"the network {description['class_path']} with init_args={description['init_args']} has parameters of "
                f"{needed:,} bytes, and this machine has {memory:,}; use another copy of the file"
            )
        return factory(*spaces)
    except UsageError:
        raise
    except Exception as error:  # whatever its constructor does with a file's settings
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"the network {description['class_path']} with init_args={description['init_args']} cannot be made for "
            f"the policy's spaces ({type(error).__name__}: {reason}); use another copy of the file"
        ) from error


def _size(factory: NetworkFactory, *spaces: Space) -> int:
    """The bytes that a network's parameters would take, 0 where it cannot be told without making them."""
    try:
        with torch.device("meta"):
            return sum(parameter.nbytes for parameter in factory(*spaces).parameters())
    except Exception:  # of a network that computes with them as it is made, or cannot be made at all
        return 0


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
