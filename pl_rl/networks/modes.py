"""Training mode and evaluation mode of modules."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(*roots: nn.Module | None) -> Iterator[None]:
    """Put modules into evaluation mode for this block; afterwards each submodule is in its mode from before.

    Action selection must not draw random numbers for dropout, nor update running statistics of batch norm: how often a
    policy acts would change what it learns. Submodules that were frozen by ``eval()`` stay frozen.

    Args:
        *roots: The modules; ``None`` stands for none.
    """
    parts = [part for root in roots if root is not None for part in root.modules()]
    modes = [part.training for part in parts]
    # A class may override train() or eval() to do more than set the flag.
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
    """Put a module into training mode for this block; in one that is in it already, all submodules keep their modes."""
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
    """Bypasses ``Module.__setattr__``, which looks for parameters and takes ten times as long."""
    for part, mode in zip(parts, modes, strict=True):
        if "training" in part.__dict__:
            part.__dict__["training"] = mode
        else:  # scripted modules keep it elsewhere
            part.training = mode
