"""Settings of callbacks on a resume: what the user has changed since wins over what a checkpoint brings back.

Many callbacks keep constructor arguments in their state, such as ``EarlyStopping`` its patience, and Lightning restores
them over those that the user gives. A checkpoint therefore holds the settings as they were given: what is given
differently on a resume was changed by the user; all else goes on as the callback has made it.
"""

from collections import Counter
from collections.abc import Iterable
from inspect import signature
from typing import Any, NamedTuple

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from pl_rl.callbacks.evaluation import PeriodicEvaluation
from pl_rl.callbacks.pretrained import PretrainedCheckpoint
from pl_rl.checkpoints import STATE_KEY, plain_data

# The model's settings speak for the one; the other's are those of a run's beginning.
SPOKEN_FOR = (PeriodicEvaluation, PretrainedCheckpoint)

# Where files go is decided by RunDirectory, and changes when a run is moved.
PLACES = ("dirpath",)

ENDED_BY_EARLY_STOPPING = "EarlyStopping ended this run before"

# What an end of EarlyStopping other than by its patience depends on.
DECIDES = {
    EarlyStoppingReason.STOPPING_THRESHOLD: "stopping_threshold",
    EarlyStoppingReason.DIVERGENCE_THRESHOLD: "divergence_threshold",
    EarlyStoppingReason.NON_FINITE_METRIC: "check_finite",
}


class Change(NamedTuple):
    """A setting of a callback that the user has changed."""

    callback: L.Callback
    name: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{type(self.callback).__name__}.{self.name}: {self.before} -> {self.after}"

    def make(self) -> None:
        """Let it take effect, after the callback's state has been restored."""
        setattr(self.callback, self.name, self.after)


def settings_of(callbacks: Iterable[L.Callback]) -> dict[str, dict[str, Any]]:
    """By the callbacks' keys, the constructor arguments that they keep as attributes of the same name; plain data."""
    found = [(callback.state_key, callback) for callback in callbacks if not isinstance(callback, SPOKEN_FOR)]
    count = Counter(key for key, _ in found)
    # Which of several under one key is which, nobody could tell.
    return {key: plain_data(settings) for key, callback in found if count[key] == 1 and (settings := _of(callback))}


def changes_of(
    callbacks: list[L.Callback], given: dict[str, dict[str, Any]], checkpoint: dict[str, Any]
) -> list[Change]:
    """What was changed since a checkpoint was saved; puts it into the callbacks' states in the checkpoint as well.

    Args:
        callbacks: Before a state is restored.
        given: Of :func:`settings_of`, at the moment of the fit at which it was recorded for the checkpoint.
        checkpoint: Its content. One of a format that knows no settings is compared by the states alone.
    """
    states = checkpoint.get("callbacks") or {}
    recorded = checkpoint[STATE_KEY]["callback_settings"]
    changes = []
    for callback in callbacks:
        key = callback.state_key
        before = (states if recorded is None else recorded).get(key)
        if key not in given or not isinstance(before, dict):
            continue
        for name in sorted(given[key].keys() & before.keys()):
            same = plain_data(before[name]) == given[key][name] or before[name] != before[name]  # not a number
            if _is_plain(before[name]) and not same:
                change = Change(callback, name, before[name], getattr(callback, name))
                changes.append(change)
                if name in states.get(key, {}):
                    states[key] = {**states[key], name: change.after}
    return changes


def ended_by_early_stopping(callbacks: Iterable[L.Callback], checkpoint: dict[str, Any], changes: list[Change]) -> bool:
    """Whether ``EarlyStopping`` had ended the run at a checkpoint, and would do so by its present settings too.

    Args:
        callbacks: Of the trainer and the model.
        checkpoint: Its content, with the changes in the callbacks' states.
        changes: Of the callbacks' settings.
    """
    if not checkpoint[STATE_KEY]["ended_by_callback"]:
        return False
    changed = [(change.callback, change.name) for change in changes]
    for callback in callbacks:
        state = checkpoint["callbacks"].get(callback.state_key)
        if not isinstance(callback, EarlyStopping) or state is None:
            continue
        reason = EarlyStoppingReason(state.get("stopping_reason", EarlyStoppingReason.PATIENCE_EXHAUSTED))
        if reason in DECIDES and (callback, DECIDES[reason]) not in changed:
            return True
        if reason == EarlyStoppingReason.PATIENCE_EXHAUSTED and state["wait_count"] >= state["patience"]:
            return True
    return False


def forget_ends(callbacks: Iterable[L.Callback], checkpoint: dict[str, Any]) -> None:
    """Let a run that goes on after ``EarlyStopping`` had ended it be ended by others without being taken for that."""
    for callback in callbacks:
        state = checkpoint["callbacks"].get(callback.state_key)
        if isinstance(callback, EarlyStopping) and state is not None:
            checkpoint["callbacks"][callback.state_key] = {
                **state,
                "stopped_epoch": 0,
                "stopping_reason": EarlyStoppingReason.NOT_STOPPED.value,
                "stopping_reason_message": None,
            }


def _of(callback: L.Callback) -> dict[str, Any]:
    parameters = signature(type(callback)).parameters
    return {
        name: value
        for name, value in vars(callback).items()
        if name in parameters and name not in PLACES and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_plain(item) for name, item in value.items())
    return value is None or type(value) in (str, int, float, bool) or isinstance(value, np.generic)  # no enumeration
