"""One run, one directory: a resume writes where the run wrote, and no point twice."""

import os
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from pl_rl.agent import as_agent
from pl_rl.callbacks.lookup import all_attached
from pl_rl.run_logs import continue_logs, measure_logs
from pl_rl.runs import run_of_checkpoint

LOGS_KEY = "pl_rl_logs"


class RunDirectory(L.Callback):
    """Notes in each checkpoint how far the log files reach, for :meth:`reuse` to go on from there."""

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Flush the loggers and add the lengths of their files."""
        checkpoint[LOGS_KEY] = measure_logs(trainer.loggers, Path(trainer.log_dir)) if trainer.log_dir else []

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Tell Lightning's ModelCheckpoint where the run is now, and which files are none of its own.

        It compares paths letter by letter, and forgets its best score and its files where one is relative or the run
        was moved. It removes a file in time that its state names, wherever a link or an address leads.
        """
        states = checkpoint["callbacks"]
        for callback in all_attached(trainer, ModelCheckpoint):
            state, key = states.get(callback.state_key), callback.state_key
            if state is None or callback.dirpath is None:
                continue
            folder = os.path.normpath(Path(str(trainer.ckpt_path)).absolute().parent)
            if not as_agent(pl_module).branching and os.path.normpath(Path(callback.dirpath).absolute()) == folder:
                states[key] = state = _moved(state, state["dirpath"], str(callback.dirpath))
            if _names_others_files(state, str(callback.dirpath)):
                del states[key]
                rank_zero_info("The checkpoint's ModelCheckpoint names files outside of its folder: it begins afresh.")

    @staticmethod
    def reuse(trainer: L.Trainer, path: Path, checkpoint: dict[str, Any], cut: bool) -> list[str]:
        """Continue the logs of the run that a checkpoint lies in; nothing to do for one that lies in no run.

        No hook is early enough for this: Lightning opens the loggers before a callback can know the checkpoint.

        Args:
            trainer: Whose loggers have not been used yet.
            path: Of the checkpoint.
            checkpoint: Its content.
            cut: Whether to take away what the run logged after the checkpoint.

        Returns:
            What is missing in the logs, in words.
        """
        run = run_of_checkpoint(path)
        return [] if run is None else continue_logs(trainer.loggers, run, checkpoint[LOGS_KEY], cut)


def _names_others_files(state: dict[str, Any], folder: str) -> bool:
    """Whether a ModelCheckpoint's state names a file that it may remove and that is not in its folder."""
    single = [state.get(name) for name in ("best_model_path", "kth_best_model_path", "last_model_path")]
    paths = [str(path) for path in (*single, *state.get("best_k_models", ())) if path]
    # Lightning removes what it finds at an address, and of local files those with the folder among their parents,
    # by the letters.
    remote = [path for path in paths if "://" in path]
    local = [
        Path(path) for path in paths if "://" not in path and Path(folder).absolute() in Path(path).absolute().parents
    ]
    return any(not path.startswith(f"{folder}/") or ".." in path.split("/") for path in remote) or any(
        not path.resolve().is_relative_to(Path(folder).resolve()) for path in local
    )


def _moved(value: Any, old: str, new: str) -> Any:
    """A callback's state with another folder in all its paths."""
    if isinstance(value, dict):
        return {_moved(name, old, new): _moved(item, old, new) for name, item in value.items()}
    if isinstance(value, str) and (value == old or value.startswith(f"{old}/")):
        return new + value[len(old) :]
    return value
