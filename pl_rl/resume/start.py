"""Where a run starts: the checkpoint that it goes on from, if any, and the directory that it is in or will be.

One flow, in this order: find and read the checkpoint, check that the model and the trainer can go on from it, lock the
directory, continue its logs. The command line does the first step earlier, as a run's checkpoint knows its settings.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, cast

import lightning as L

from pl_rl.agent import Agent
from pl_rl.callbacks.lookup import callbacks_of_fit, find_callbacks
from pl_rl.callbacks.pretrained import PretrainedCheckpoint
from pl_rl.callbacks.run_directory import RunDirectory
from pl_rl.checkpoints.compatibility import check_fit
from pl_rl.checkpoints.format import read_checkpoint
from pl_rl.distributed.processes import is_first, led
from pl_rl.errors import UsageError
from pl_rl.files.writing import LOG_FILES, check_names
from pl_rl.resume.auto_resume import checkpoint_of_command, requeued
from pl_rl.runs.directory import find_checkpoint, note_command, run_to_continue
from pl_rl.runs.lock import locked


class Start(NamedTuple):
    """What a fit starts from."""

    path: Path | None
    """Of the checkpoint; ``None`` for a run that begins."""
    checkpoint: dict[str, Any]
    """Its content, empty for a run that begins."""
    auto_resume: bool
    """Whether the run that the same command began was looked for."""
    of_command: bool
    """Whether it was found, and has something to go on from; it is continued, even by a command that branches."""


def find_start(ckpt_path: str | Path | None, auto_resume: bool, command: list[str], log_root: Path) -> Start:
    """Find and read the checkpoint that is gone on from.

    Args:
        ckpt_path: A path, or the bare name of one in the newest run.
        auto_resume: Whether the newest run that the command began, word for word, comes before that; implied in a SLURM
            job that was queued again.
        command: What was typed.
        log_root: Folder of the ``version_N`` folders.

    Raises:
        UsageError: If there is no such checkpoint, or it is damaged.
    """
    auto_resume = auto_resume or requeued()

    def find() -> dict[str, Any]:
        found = checkpoint_of_command(command, log_root) if auto_resume else None
        path = found if found is not None or ckpt_path is None else find_checkpoint(str(ckpt_path), log_root)
        return {"path": None if path is None else str(path.absolute()), "of_command": found is not None}

    told = led("start", find)
    path = None if told["path"] is None else Path(told["path"])
    return Start(path, {} if path is None else read_checkpoint(path), auto_resume, told["of_command"])


def check_start(start: Start, trainer: L.Trainer, model: L.LightningModule, branch: bool) -> None:
    """Refuse what cannot be trained before anything is written, while a run's logs are still as they were.

    Args:
        start: Of the fit.
        trainer: Of the fit.
        model: The agent.
        branch: Whether a run of its own begins at the checkpoint.

    Raises:
        UsageError: If the network is another one than the checkpoint's, a file of pre-trained weights cannot be loaded,
            or a branch has no checkpoint.
    """
    if start.path is None and branch:
        raise UsageError("a branch begins at a checkpoint; add --ckpt_path last, or the path of one")
    if not isinstance(model, Agent):
        return
    if start.path is not None:
        check_fit(model, start.checkpoint, branch=branch, fitting=True)
        return
    for callback in find_callbacks(trainer, PretrainedCheckpoint):
        callback.check(model)


def enter_run_directory(
    start: Start, trainer: L.Trainer, model: L.LightningModule, branch: bool, command: list[str], locks: ExitStack
) -> None:
    """Lock the directory that the run is in or will be, continue its logs, note the command that began it.

    The first process does so; others are told where it is.

    Args:
        start: Of the fit.
        trainer: Of the fit.
        model: The agent.
        branch: Whether a run of its own begins at the checkpoint.
        command: What was typed.
        locks: Keeps the locks.

    Raises:
        UsageError: If another process trains there, or it cannot be written.
    """
    found = [callback for callback in callbacks_of_fit(trainer, model) if isinstance(callback, RunDirectory)]
    if not found or cast(Any, trainer).fast_dev_run:  # which writes nothing
        return

    def enter() -> dict[str, Any]:
        missing_logs = _enter(found[0], start, trainer, branch, command, locks)
        return {
            "run": None if found[0].path is None else str(found[0].path.absolute()),
            "run_id": found[0].run_id,
            "missing_logs": missing_logs,
        }

    told = led("place", enter)
    if not is_first():
        found[0].follow(None if told["run"] is None else Path(told["run"]), told["run_id"])
    if isinstance(model, Agent):
        model.missing_logs = told["missing_logs"]


def _enter(
    directory: RunDirectory, start: Start, trainer: L.Trainer, branch: bool, command: list[str], locks: ExitStack
) -> list[str]:
    """As :func:`enter_run_directory`, in the first process; returns what the logs lack."""
    continued = None
    missing_logs: list[str] = []
    if start.path is not None and not branch:
        continued = run_to_continue(start.path, start.checkpoint)
        if continued is not None:
            locks.enter_context(locked(continued))
        missing_logs = RunDirectory.reuse(trainer, start.path, start.checkpoint)
    run = directory.begin(trainer, continued)
    if start.path is not None:
        missing_logs += directory.take_up(start.path, start.checkpoint, branch)
    if run is None:
        return missing_logs
    if continued is None:
        locks.enter_context(locked(run))
    elif trainer.loggers:
        check_names(run, LOG_FILES)
    note_command(run, command)
    return missing_logs
