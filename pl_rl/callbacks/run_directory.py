"""One run, one directory: a resume writes where the run wrote, and no point twice."""

import os
from pathlib import Path
from typing import Any, cast
from weakref import WeakSet

import lightning as L
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus

from pl_rl.agent import Agent, as_agent
from pl_rl.callbacks.lookup import find_callback, find_callbacks
from pl_rl.checkpoints.format import STATE_KEY
from pl_rl.errors import UsageError
from pl_rl.files.writing import CHECKPOINTS
from pl_rl.runs.claim import claim, join_loggers
from pl_rl.runs.directory import LOG_ROOT, display_path, own_run, run_of_checkpoint
from pl_rl.runs.identity import identity_of, mark, new_run_id, run_id_in
from pl_rl.runs.log_meter import LogMeter, measure_logs
from pl_rl.runs.logs import continue_logs, open_csv
from pl_rl.trackers.registry import (
    TRACKERS_KEY,
    branch_trackers,
    check_unused,
    continue_trackers,
    ids_of,
    trackers_of,
)
from pl_rl.trackers.tracker import Tracker

LOGS_KEY = "pl_rl_logs"


# Those of Lightning's that were told their folder here: it is that of one run.
_placed: WeakSet[ModelCheckpoint] = WeakSet()


class RunDirectory(L.Callback):
    """Gives a run its directory, and notes in each checkpoint whose it is and how far the log files reach.

    From there :meth:`reuse` goes on.

    Attributes:
        path: The run's directory, with its checkpoints and settings, whatever the loggers; ``None`` where a run writes
            nothing, or only to a remote store.
        run_id: Which run this is, in all its checkpoints and in the directories that it writes to.
        trackers: Those of its loggers whose run has an id elsewhere.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self.run_id = new_run_id()
        self._meter = LogMeter()
        self.trackers: list[Tracker] = []
        self._has_begun = False

    def configured(self, trainer: L.Trainer) -> None:
        """Begin a run, unless the Trainer has; to be called as Lightning asks for callbacks, ahead of all hooks.

        A run that a plain Trainer continues is not known yet, and its directory is another one.
        """
        if trainer.state.fn is TrainerFn.FITTING and trainer.state.status is TrainerStatus.RUNNING:
            if not self._has_begun:
                self.begin(trainer)
            self._has_begun = False

    def begin(self, trainer: L.Trainer, continued: Path | None = None) -> Path | None:
        """Choose the directory, before the loggers are used.

        Args:
            trainer: Of the run.
            continued: The directory of a run that goes on.

        Returns:
            The directory, as the attribute.

        Raises:
            UsageError: If a logger's folder is another run's, or nothing can be written.
        """
        self.run_id, self._meter = new_run_id(), LogMeter()
        self.path = continued
        log_root = Path(trainer.default_root_dir, LOG_ROOT)
        if continued is not None:
            join_loggers(trainer.loggers, continued, log_root)
        elif _writes(trainer):
            check_unused(trainer.loggers)
            self.path = claim(trainer.loggers, log_root, self.run_id)
        open_csv(trainer.loggers)
        self.trackers = [] if self.path is None else trackers_of(trainer.loggers, self.path)
        self._has_begun = True
        return self.path

    def follow(self, run: Path | None, run_id: str) -> None:
        """Be where the first process has begun or continued a run.

        Raises:
            UsageError: If the directory is not there, as the processes' folders are not the same.
        """
        if run is not None and not run.is_dir():
            raise UsageError(
                f"run directory {display_path(run)!r} of the first process is not there for another; use a folder that "
                "all machines share, with --trainer.default_root_dir"
            )
        self.path, self.run_id, self._has_begun = run, run_id, True

    def take_up(self, path: Path, checkpoint: dict[str, Any], branch: bool) -> list[str]:
        """Let the trackers go on with the runs of a checkpoint, or note that theirs branch off from there.

        Args:
            path: Of the checkpoint.
            checkpoint: Its content.
            branch: Whether a run of its own begins there.

        Returns:
            What could not be gone on with, in words.
        """
        saved = checkpoint.get(TRACKERS_KEY, [])
        if branch:
            branch_trackers(self.trackers, saved, str(path), checkpoint[STATE_KEY]["counters"]["env_steps"])
            return []
        return continue_trackers(self.trackers, saved)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Tell Lightning's ModelCheckpoint where the run is, as it goes by the first logger."""
        if stage != "fit" or self.path is None or _has_place_of_its_own(trainer):
            return
        for callback in find_callbacks(trainer, ModelCheckpoint):
            if callback.dirpath is None or callback in _placed:
                callback.dirpath = str(self.path / CHECKPOINTS)
                _placed.add(callback)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Flush the loggers and add the lengths of their files."""
        if STATE_KEY in checkpoint:  # else the run failed before it had a state
            checkpoint[STATE_KEY]["run_id"] = self.run_id
        checkpoint[LOGS_KEY] = []
        if self.path is not None and self.path.is_dir() and trainer.is_global_zero:
            mark(self.path, self.path, self.run_id)
            checkpoint[LOGS_KEY] = measure_logs(trainer.loggers, self.path, self.run_id, self._meter)
        if self.trackers:
            checkpoint[TRACKERS_KEY] = ids_of(self.trackers)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Be the run that is continued, and tell Lightning's ModelCheckpoint where it is now.

        That compares paths letter by letter, and forgets its best score and its files where one is relative or the run
        was moved. Of its files, which it removes in time, it is told of those in its folder only.
        """
        branching, states = as_agent(pl_module).branching, checkpoint["callbacks"]
        if not branching and STATE_KEY in checkpoint:  # it is not in a rescue of weights alone
            here = identity_of(self.path) if self.path is not None else None
            # A checkpoint of the first format in a directory whose others have an id since.
            self.run_id = run_id_in(checkpoint[STATE_KEY]) or (self.run_id if here is None else here.run_id)
        for callback in find_callbacks(trainer, ModelCheckpoint):
            state = states.get(callback.state_key)
            if state is None or callback.dirpath is None:
                continue
            folder = os.path.normpath(Path(str(trainer.ckpt_path)).absolute().parent)
            if not branching and os.path.normpath(Path(callback.dirpath).absolute()) == folder:
                state = _moved(state, state["dirpath"], str(callback.dirpath))
            states[callback.state_key] = own_files(state, str(callback.dirpath))

    @staticmethod
    def reuse(trainer: L.Trainer, path: Path, checkpoint: dict[str, Any]) -> list[str]:
        """Continue the logs of the run that a checkpoint lies in; nothing to do for one that lies in no run.

        No hook is early enough for this: Lightning opens the loggers before a callback can know the checkpoint.

        Args:
            trainer: Whose loggers have not been used yet.
            path: Of the checkpoint.
            checkpoint: Its content.

        Returns:
            What is missing in the logs, in words.

        Raises:
            UsageError: If the logs are not described as they should be, or something else has the name of a file.
        """
        run = run_of_checkpoint(path)
        if run is None:
            return []
        if own_run(path, checkpoint) is None:
            return [
                f"log: {display_path(path)} is not of the run that {display_path(run)} is of, whose logs stay as they "
                "are"
            ]
        return continue_logs(trainer.loggers, run, checkpoint[LOGS_KEY], run_id_in(checkpoint[STATE_KEY]))


def run_directory(trainer: L.Trainer) -> Path | None:
    """The directory of the run that a trainer trains or has trained; ``None`` if there is none."""
    callback = find_callback(trainer, RunDirectory)
    return None if callback is None else callback.path


def trackers_ahead(trainer: L.Trainer, agent: Agent) -> list[str]:
    """The classes of the loggers that have points from after the checkpoint that a run goes on from."""
    callback = find_callback(trainer, RunDirectory)
    trackers = [] if callback is None else callback.trackers
    return [tracker.LOGGER for tracker in trackers if tracker.is_ahead(agent.train_iter, agent.env_steps)]


def _writes(trainer: L.Trainer) -> bool:
    """Whether a run leaves any file."""
    if cast(Any, trainer).fast_dev_run:  # set by Lightning without declaring it
        return False
    return bool(trainer.loggers) or find_callback(trainer, Checkpoint) is not None


def _has_place_of_its_own(trainer: L.Trainer) -> bool:
    """Whether Lightning's ModelCheckpoint finds the run's directory by itself, or that of the user's choice."""
    return bool(trainer.loggers) and isinstance(trainer.loggers[0], TensorBoardLogger | CSVLogger)


def _moved(value: Any, old: str, new: str) -> Any:
    """A callback's state with another folder in all its paths."""
    if isinstance(value, dict):
        return {_moved(name, old, new): _moved(item, old, new) for name, item in value.items()}
    if isinstance(value, str) and (value == old or value.startswith(f"{old}/")):
        return new + value[len(old) :]
    return value


def own_files(state: dict[str, Any], folder: str) -> dict[str, Any]:
    """A ModelCheckpoint's state without paths that lead out of its folder."""

    def inside(path: object) -> bool:
        return isinstance(path, str) and Path(os.path.realpath(path)).is_relative_to(root)

    root = os.path.realpath(folder)
    paths = {name: state.get(name) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
    files = {path: score for path, score in state.get("best_k_models", {}).items() if inside(path)}
    return {**state, **{name: path if inside(path) else "" for name, path in paths.items()}, "best_k_models": files}
