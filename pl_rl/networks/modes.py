"""Training mode and evaluation mode of modules."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(*roots: nn.Module | None) -> Iterator[None]:
    """Modules in evaluation mode in this block, and after it each of their parts in the mode in which it was.

    What acts must not draw random numbers for dropout, nor move running statistics of batch norm: how often a policy
    is asked would change what it learns. Parts that somebody froze by ``eval()`` stay frozen.

    Args:
        *roots: The modules; ``None`` stands for none.
    """
    parts = [part for root in roots if root is not None for part in root.modules()]
    modes = [part.training for part in parts]
    # A class may do more than to note its mode.
    own = [part for part in parts if type(part).train is not nn.Module.train or type(part).eval is not nn.Module.eval]
    try:
        _set(parts, [False] * len(parts))
        for part, mode in zip(parts, modes, strict=True):
            if mode and part in own:
                part.eval()
        yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            if mode and part in own:
                part.train()
        _set(parts, modes)


@contextmanager
def training_mode(module: nn.Module) -> Iterator[None]:
    """A module in training mode in this block; parts that are frozen by ``eval()`` in one that trains stay so."""
    if module.training:
        yield
        return
    before = [(part, part.training) for part in module.modules()]
    module.train()
    try:
        yield
    finally:
        for part, mode in before:
            part.training = mode


def _set(parts: list[nn.Module], modes: list[bool]) -> None:
    """Past ``Module.__setattr__``, which looks for parameters and takes ten times as long."""
    for part, mode in zip(parts, modes, strict=True):
        if "training" in part.__dict__:
            part.__dict__["training"] = mode
        else:  # in a scripted module it lies elsewhere
            part.training = mode
