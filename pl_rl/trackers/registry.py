"""The trackers among a run's loggers, and what its checkpoints say of them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from pl_rl.errors import UsageError
from pl_rl.trackers.mlflow import MLflowTracker
from pl_rl.trackers.tracker import Parent, Tracker
from pl_rl.trackers.trackio import TrackioTracker
from pl_rl.trackers.weights_and_biases import WandbTracker

TRACKERS_KEY = "pl_rl_trackers"
KINDS: tuple[type[Tracker], ...] = (WandbTracker, MLflowTracker, TrackioTracker)


def trackers_of(loggers: Sequence[Logger], run: Path) -> list[Tracker]:
    """The trackers among loggers, which from here on log through them.

    Args:
        loggers: Of a run.
        run: The run's directory.
    """
    trackers: list[Tracker] = []
    for logger in loggers:
        for kind in _kinds_of(logger):
            others = sum(tracker.LOGGER == kind.LOGGER for tracker in trackers)
            trackers.append(kind(logger, run / f"tracker_{kind.LOGGER}{others or ''}.jsonl"))
    return trackers


def check_unused(loggers: Sequence[Logger]) -> None:
    """Refuse loggers to which an earlier run of this process has logged, for a run that begins.

    Raises:
        UsageError: If there is one.
    """
    for logger in loggers:
        earlier = getattr(vars(logger).get("log_metrics"), "__self__", None)
        if isinstance(earlier, Tracker) and earlier.run_id() is not None:
            raise UsageError(
                f"the {earlier.LOGGER} has a run already, {earlier.run_id()}, and each has its own; to go on with it "
                "call fit(model, ckpt_path='last'), to begin another make a new Trainer with new loggers"
            )


def _kinds_of(logger: Logger) -> list[type[Tracker]]:
    """The kind of tracker that a logger is of, if any, by name, as to import its class needs its package."""
    names = [cls.__name__ for cls in type(logger).__mro__]
    return [kind for kind in KINDS if kind.LOGGER in names]


def ids_of(trackers: Sequence[Tracker]) -> list[dict[str, Any]]:
    """The ids of the trackers' runs and the lengths of the journals, as a checkpoint holds them."""
    ids = [(tracker, tracker.run_id()) for tracker in trackers]
    return [
        {"class": tracker.LOGGER, "run_id": run_id, "journal": tracker.journal.length}
        for tracker, run_id in ids
        if run_id is not None
    ]


def continue_trackers(trackers: Sequence[Tracker], saved: Sequence[dict[str, Any]]) -> list[str]:
    """Let trackers go on with the runs of a checkpoint.

    Args:
        trackers: Of loggers that have not been used yet.
        saved: What :func:`ids_of` gave.

    Returns:
        What could not be, in words.
    """
    missing = []
    for tracker, entry in _matched(trackers, saved):
        fault = None if entry is None else tracker.go_on(entry["run_id"], entry["journal"])
        missing += [] if fault is None else [f"log: {fault}"]
    return missing


def branch_trackers(
    trackers: Sequence[Tracker], saved: Sequence[dict[str, Any]], checkpoint: str, env_steps: int
) -> None:
    """Note in trackers' new runs which runs they have branched off from.

    Args:
        trackers: Of loggers that have not been used yet.
        saved: What :func:`ids_of` gave for the run before.
        checkpoint: Path of its checkpoint.
        env_steps: How far that is.
    """
    for tracker, entry in _matched(trackers, saved):
        tracker.branch(Parent(checkpoint, env_steps, None if entry is None else entry["run_id"]))


def _matched(
    trackers: Sequence[Tracker], saved: Sequence[dict[str, Any]]
) -> list[tuple[Tracker, dict[str, Any] | None]]:
    """Each tracker with the entry of the first run of its kind that no other has."""
    waiting = [entry for entry in saved if re.fullmatch(r"[\w.-]{1,128}", entry["run_id"])]
    matched: list[tuple[Tracker, dict[str, Any] | None]] = []
    for tracker in trackers:
        entry = next((entry for entry in waiting if entry["class"] == tracker.LOGGER), None)
        if entry is not None:
            waiting.remove(entry)
        matched.append((tracker, entry))
    return matched
