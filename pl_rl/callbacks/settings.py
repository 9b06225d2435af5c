"""Settings of callbacks on a resume: what the user has changed since wins over what a checkpoint brings back.

Many callbacks keep constructor arguments in their state, such as ``EarlyStopping`` its patience, and Lightning restores
them over those that the user gives. A checkpoint therefore holds the settings as they were given: what is given
differently on a resume was changed by the user; all else goes on as the callback has made it.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from copy import deepcopy
from inspect import signature
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from pl_rl.callbacks.evaluation import PeriodicEvaluation
from pl_rl.callbacks.pretrained import PretrainedCheckpoint
from pl_rl.checkpoints.format import STATE_KEY
from pl_rl.files.plain_data import plain_data

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


class _Noted(NamedTuple):
    """A callback's settings as the user gave them, and what a fit has made of them."""

    given: dict[str, Any]
    left: dict[str, Any] | None


# Of callbacks that have been in a fit: a script may use one for another.
_NOTED: WeakKeyDictionary[L.Callback, _Noted] = WeakKeyDictionary()


class Change(NamedTuple):
    """A setting of a callback that the user has changed.

    Attributes:
        anew: Whether the callback's state is not restored, as Lightning tells states apart by such settings.
    """

    callback: L.Callback
    name: str
    before: Any
    after: Any
    anew: bool = False

    def __str__(self) -> str:
        change = f"{type(self.callback).__name__}.{self.name.removeprefix('_')}: {self.before} -> {self.after}"
        return f"{change}, with which its state begins anew" if self.anew else change

    def make(self) -> None:
        """Let it take effect, after the callback's state has been restored."""
        setattr(self.callback, self.name, self.after)


def settings_of(callbacks: Iterable[L.Callback]) -> dict[str, dict[str, Any]]:
    """By the callbacks' keys, the constructor arguments that they keep as attributes of the same name; plain data.

    An underscore may stand before it. What a fit has made of them counts only where the user has changed it since.
    """
    found = [(callback.state_key, callback) for callback in callbacks if not isinstance(callback, SPOKEN_FOR)]
    count = Counter(key for key, _ in found)
    # Which of several under one key is which, nobody could tell.
    return {key: plain_data(settings) for key, callback in found if count[key] == 1 and (settings := _given(callback))}


def note_given(callbacks: Iterable[L.Callback]) -> None:
    """Remember the settings with which a fit begins."""
    for callback in callbacks:
        if isinstance(callback, Hashable):
            _NOTED[callback] = _Noted(deepcopy(_given(callback)), None)


def note_left(callbacks: Iterable[L.Callback]) -> None:
    """Remember what a fit has made of them."""
    for callback in callbacks:
        noted = _noted(callback)
        if noted is not None:
            _NOTED[callback] = noted._replace(left=deepcopy(_of(callback)))


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
    renamed = {} if recorded is None else _renamed(given, recorded)
    for callback in callbacks:
        key = callback.state_key
        before = (states if recorded is None else recorded).get(renamed.get(key, key))
        if key not in given or not isinstance(before, dict):
            continue
        for name in sorted(given[key].keys() & before.keys()):
            same = plain_data(before[name]) == given[key][name] or before[name] != before[name]  # not a number
            if _is_plain(before[name]) and not same:
                change = Change(callback, name, before[name], _given(callback)[name], anew=key in renamed)
                changes.append(change)
                state = states.get(key)
                if isinstance(state, dict) and name in state:
                    states[key] = {**state, name: change.after}
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


def _renamed(given: Mapping[str, Any], recorded: Mapping[str, Any]) -> dict[str, str]:
    """By the keys that a checkpoint does not know, the only other one of the same class: a key can name settings."""
    here, there = (
        [key for key in keys if key not in others] for keys, others in ((given, recorded), (recorded, given))
    )
    classes = [Counter(_class_in(key) for key in keys) for keys in (here, there)]
    return {
        key: other
        for key in here
        for other in there
        if _class_in(key) == _class_in(other) and [count[_class_in(key)] for count in classes] == [1, 1]
    }


def _class_in(key: str) -> str:
    return key.partition("{")[0]


def _given(callback: L.Callback) -> dict[str, Any]:
    """The settings as the user gave them: before a fit, or since."""
    here, noted = _of(callback), _noted(callback)
    if noted is None or noted.left is None:
        return here
    return {name: noted.given[name] if _is_as_left(value, name, noted) else value for name, value in here.items()}


def _noted(callback: L.Callback) -> _Noted | None:
    return _NOTED.get(callback) if isinstance(callback, Hashable) else None


def _is_as_left(value: Any, name: str, noted: _Noted) -> bool:
    left = noted.left or {}
    return name in noted.given and name in left and plain_data([value]) == plain_data([left[name]])


def _of(callback: L.Callback) -> dict[str, Any]:
    parameters, attributes = signature(type(callback)).parameters, vars(callback)
    return {
        name: value
        for name, value in attributes.items()
        if _argument(name, attributes) in parameters and _argument(name, attributes) not in PLACES and _is_plain(value)
    }


def _argument(name: str, attributes: Mapping[str, Any]) -> str:
    """What an attribute keeps; one of the same name goes before one with an underscore."""
    public = name.removeprefix("_")
    return name if public in attributes else public


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_plain(item) for name, item in value.items())
    return value is None or type(value) in (str, int, float, bool) or isinstance(value, np.generic)  # no enumeration
