"""One run, one directory: a resume writes where the run wrote, and no point twice."""

import os
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from pl_rl.agent import as_agent
from pl_rl.callbacks.lookup import find_callback, find_callbacks
from pl_rl.callbacks.run_checkpoint import RunCheckpoint
from pl_rl.checkpoints.format import STATE_KEY
from pl_rl.runs.directory import display_path, own_run, run_of_checkpoint
from pl_rl.runs.identity import identity_of, mark, new_run_id, run_id_in
from pl_rl.runs.log_meter import LogMeter, measure_logs
from pl_rl.runs.logs import continue_logs

LOGS_KEY = "pl_rl_logs"


class RunDirectory(L.Callback):
    """Notes in each checkpoint how far the log files reach, for :meth:`reuse` to go on from there, and whose they are.

    Attributes:
        run_id: Which run this is, in all its checkpoints and in the directories that it writes to.
    """

    def __init__(self) -> None:
        self.run_id = new_run_id()
        self._meter = LogMeter()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Begin a run; one that is continued then gets its own id back."""
        if stage == "fit":
            self.run_id = new_run_id()
            self._meter = LogMeter()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Flush the loggers and add the lengths of their files."""
        if STATE_KEY in checkpoint:  # else the run failed before it had a state
            checkpoint[STATE_KEY]["run_id"] = self.run_id
        run = Path(trainer.log_dir or trainer.default_root_dir)
        # Without a logger the root is the run's if its checkpoints are there, and else just where it was started.
        is_the_runs = bool(trainer.loggers) or find_callback(trainer, RunCheckpoint) is not None
        if is_the_runs and run.is_dir() and not cast(Any, trainer).fast_dev_run:  # set by Lightning, undeclared
            mark(run, run, self.run_id)
        checkpoint[LOGS_KEY] = measure_logs(trainer.loggers, run, self.run_id, self._meter) if trainer.log_dir else []

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Be the run that is continued, and tell Lightning's ModelCheckpoint where it is now.

        That compares paths letter by letter, and forgets its best score and its files where one is relative or the run
        was moved. Of its files, which it removes in time, it is told of those in its folder only.
        """
        branching, states = as_agent(pl_module).branching, checkpoint["callbacks"]
        if not branching and STATE_KEY in checkpoint:  # it is not in a rescue of weights alone
            here = identity_of(Path(trainer.log_dir)) if trainer.log_dir else None
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
