"""One run, one directory: a resume writes where the run wrote, and no point twice."""

from pathlib import Path
from typing import Any

import lightning as L

from pl_rl.run_logs import continue_logs, measure_logs
from pl_rl.runs import run_of_checkpoint

LOGS_KEY = "pl_rl_logs"


class RunDirectory(L.Callback):
    """Notes in each checkpoint how far the log files reach, for :meth:`reuse` to go on from there."""

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Flush the loggers and add the lengths of their files."""
        checkpoint[LOGS_KEY] = measure_logs(trainer.loggers, Path(trainer.log_dir)) if trainer.log_dir else []

    @staticmethod
    def reuse(trainer: L.Trainer, path: Path, checkpoint: dict[str, Any]) -> None:
        """Continue the logs of the run that a checkpoint lies in; nothing to do for one that lies in no run.

        No hook is early enough for this: Lightning opens the loggers before a callback can know the checkpoint.
        """
        run = run_of_checkpoint(path)
        if run is not None:
            continue_logs(trainer.loggers, run, checkpoint[LOGS_KEY])
