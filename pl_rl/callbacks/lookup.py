"""Finding the callbacks of a kind on a Trainer."""

from collections.abc import Sequence
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


def callbacks_of_fit(trainer: L.Trainer, model: L.LightningModule) -> list[L.Callback]:
    """The callbacks that a trainer's next fit of a model will have."""
    model.trainer = trainer
    configured = model.configure_callbacks()
    brought = configured if isinstance(configured, Sequence) else [configured]
    # As Lightning will, which has those of the model that it fitted before still.
    replaced = [type(callback) for callback in brought]
    return [*(other for other in find_callbacks(trainer, L.Callback) if type(other) not in replaced), *brought]
