"""Finding the callbacks of a kind on a Trainer."""

from typing import Any, TypeVar, cast

import lightning as L

AnyCallback = TypeVar("AnyCallback", bound=L.Callback)


def find_callback(trainer: L.Trainer, kind: type[AnyCallback]) -> AnyCallback | None:
    """The trainer's first callback of a kind, if it has one."""
    return next(iter(find_callbacks(trainer, kind)), None)


def find_callbacks(trainer: L.Trainer, kind: type[AnyCallback]) -> list[AnyCallback]:
    """The trainer's callbacks of a kind."""
    # Lightning sets the attribute without declaring it.
    callbacks: list[L.Callback] = cast(Any, trainer).callbacks
    return [callback for callback in callbacks if isinstance(callback, kind)]
