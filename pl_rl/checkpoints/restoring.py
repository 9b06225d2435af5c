"""What a checkpoint must have beyond its own schema for Lightning to restore it into *this* trainer.

Lightning hands each part of a checkpoint to the loop, callback or optimizer that is to have it, which takes it without
a look.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from torch import Tensor

from pl_rl.errors import UsageError
from pl_rl.files.schema import (
    BOOL,
    PLAIN,
    TEXT,
    Misfit,
    Schema,
    like,
    mapping,
    maybe,
    number,
    real,
    record,
    that,
    whole,
)

_CALLBACKS: Mapping[type[L.Callback], Schema] = {
    EarlyStopping: record(
        {
            "wait_count": whole(),
            "stopped_epoch": whole(),
            "patience": whole(),
            "best_score": that(lambda value: isinstance(value, Tensor) and value.numel() == 1, "a tensor of a number"),
        },
        {"stopping_reason": that(lambda value: bool(EarlyStoppingReason(value)), "a reason that Lightning knows")},
    ),
    ModelCheckpoint: record(
        {"dirpath": maybe(TEXT), "best_model_path": TEXT, "best_model_score": PLAIN},
        {"best_k_models": mapping(PLAIN), "kth_best_model_path": TEXT, "last_model_path": TEXT, "kth_value": PLAIN},
    ),
    Timer: record({"time_elapsed": mapping(number(0, 1e12))}),
}
# None leaves the choice of implementation to torch.
_CHOSEN_BY_TORCH = ("foreach", "fused")
_MORE = ("amsgrad", "capturable", "differentiable", "centered")
_ADAM = ("step", "exp_avg", "exp_avg_sq")
# The names of what torch's optimizers keep in the shape of a parameter.
_PARAMETER_SHAPED = (*_ADAM[1:], "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg", "acc_delta")


def check_restorable(checkpoint: Mapping[str, Any], trainer: L.Trainer) -> None:
    """Compare the states of Lightning's loops and callbacks with those that are to have them.

    Raises:
        UsageError: With the first entry that is something else.
    """
    for name in ("fit_loop", "validate_loop", "test_loop", "predict_loop"):
        saved = checkpoint["loops"].get(name)
        if saved is None:
            _refuse(Misfit(f"loops.{name}", saved, "there"))
        for entry, part in getattr(trainer, name).state_dict().items():
            if entry in saved and entry.endswith("progress"):
                _check(_counts(part), saved[entry], f"loops.{name}.{entry}")
            elif entry in saved:
                _check(record({}, {key: like(value) for key, value in part.items()}), saved[entry], f"{name}.{entry}")
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by Lightning without declaring it
        state = checkpoint["callbacks"].get(callback.state_key)
        for cls, schema in _CALLBACKS.items():
            if state is not None and isinstance(callback, cls):
                _check(schema, state, f"callbacks.{callback.state_key}")


def check_optimizers(saved: list[dict[str, Any]], optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Compare the states of optimizers with those that are to have them.

    Raises:
        UsageError: With the first entry that is something else, or of another shape than its parameter.
    """
    optimizers = list(optimizers)
    if len(saved) != len(optimizers):
        _refuse(Misfit("optimizer_states", saved, f"of {len(optimizers)} optimizers, as the model has"))
    for index, (state, optimizer) in enumerate(zip(saved, optimizers, strict=True)):
        _check_optimizer(state, optimizer, f"optimizer_states[{index}]")


def _check_optimizer(saved: dict[str, Any], optimizer: torch.optim.Optimizer, place: str) -> None:
    there, here = saved["param_groups"], optimizer.param_groups
    if [len(group["params"]) for group in there] != [len(group["params"]) for group in here]:
        _refuse(Misfit(f"{place}.param_groups", there, "of as many parameters as the model's groups"))
    needed = _ADAM if isinstance(optimizer, torch.optim.Adam) else ()
    schemas: dict[int, Schema] = {}
    for index, (group_there, group_here) in enumerate(zip(there, here, strict=True)):
        _check(_group(group_here), group_there, f"{place}.param_groups[{index}]")
        for key, parameter in zip(group_there["params"], group_here["params"], strict=True):
            schemas[key] = _parameter_state(parameter, needed)
    for key, state in saved["state"].items():
        _check(schemas.get(key, mapping(PLAIN, names=PLAIN)), state, f"{place}.state.{key}")


def _counts(progress: Any) -> Schema:
    """As a progress is: whole numbers from 0 on, by name."""
    if isinstance(progress, dict):
        return record({name: _counts(value) for name, value in progress.items()})
    return BOOL if isinstance(progress, bool) else whole()


def _group(here: Mapping[str, Any]) -> Schema:
    """The settings of a group; those that are switched on or off came with later versions of torch."""
    options = {name: value for name, value in here.items() if name != "params"}
    switches = {
        name: maybe(BOOL) if name in _CHOSEN_BY_TORCH else BOOL
        for name, value in options.items()
        if value is None or isinstance(value, bool)
    }
    off = that(lambda value: value is None or value is False, "off, as it is here")
    # With these an optimizer keeps more than it saved, or works on other devices.
    switches |= {name: off for name in _MORE if name in switches and not options[name]}
    if options.get("fused"):
        switches["foreach"] = off
    return record({name: like(value) for name, value in options.items() if name not in switches}, switches)


def _parameter_state(parameter: Tensor, needed: tuple[str, ...]) -> Schema:
    def same_shape(value: Any) -> bool:
        return isinstance(value, Tensor) and value.shape == parameter.shape and value.layout is torch.strided

    shape = that(same_shape, f"a tensor of shape {tuple(parameter.shape)}, as its parameter is")
    known = {**dict.fromkeys(_PARAMETER_SHAPED, maybe(shape)), "step": real(0, 1e15, "a count")}
    entry = record({name: shape if name != "step" else known[name] for name in needed}, known)

    def check(value: Any, place: str) -> None:
        if value != {}:  # of a parameter that has made no step
            entry(value, place)

    return check


def _check(schema: Schema, value: Any, place: str) -> None:
    try:
        schema(value, place)
    except Misfit as error:
        _refuse(error)


def _refuse(error: Misfit) -> None:
    raise UsageError(
        f"the checkpoint cannot be continued here: {error}; use another one (--ckpt_path last takes the newest sound "
        "one of a run)"
    ) from error
