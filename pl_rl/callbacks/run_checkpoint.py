"""The checkpoints of a run: the last, the best, and some on the way."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from pl_rl.agent import as_agent
from pl_rl.callbacks.evaluation import evaluation_of
from pl_rl.errors import UsageError
from pl_rl.schedule import is_due


class RunCheckpoint(Checkpoint):
    """Keeps ``last.ckpt``, ``best.ckpt`` and, if asked for, ``iteration_N.ckpt`` in the run's ``checkpoints/`` folder.

    All are written at the end of an iteration, where nothing is half done. Lightning's own ``ModelCheckpoint`` works
    as well; this one also saves before the first iteration and after the last.

    Args:
        last_every_n_iterations: Iterations (collect and learn) between two savings of ``last.ckpt``, which is what
            a killed run loses at most.
        keep_every_n_iterations: Iterations between two ``iteration_N.ckpt``; 0 keeps none.
        keep_last_n: How many ``iteration_N.ckpt`` to keep, the newest; -1 keeps all.

    Attributes:
        best_model_score: Mean evaluation return of ``best.ckpt``.
        best_model_path: The file, empty before the first evaluation.
        last_model_path: Likewise for ``last.ckpt``.

    Raises:
        UsageError: If a number is out of range.
    """

    def __init__(
        self, last_every_n_iterations: int = 10, keep_every_n_iterations: int = 0, keep_last_n: int = 5
    ) -> None:
        if last_every_n_iterations < 1 or keep_every_n_iterations < 0 or keep_last_n < -1 or keep_last_n == 0:
            raise UsageError(
                f"last_every_n_iterations={last_every_n_iterations}, keep_every_n_iterations={keep_every_n_iterations} "
                f"and keep_last_n={keep_last_n} must be at least 1, 0 and 1 (or -1 to keep all)"
            )
        self.last_every_n_iterations = last_every_n_iterations
        self.keep_every_n_iterations = keep_every_n_iterations
        self.keep_last_n = keep_last_n
        self.best_model_score = -float("inf")
        self.best_model_path = ""
        self.last_model_path = ""
        self._kept: list[str] = []
        self._saved_iteration = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save before the first iteration: from here on there is something to resume."""
        if not self.last_model_path:
            self._save_best(trainer)
            self._save_last(trainer, as_agent(pl_module).iteration)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save what is due after this iteration."""
        iteration = as_agent(pl_module).iteration
        self._save_best(trainer)
        if is_due(iteration - 1, iteration, self.keep_every_n_iterations):
            self._kept.append(self._path(trainer, f"iteration_{iteration}"))
            obsolete = self._kept[: -self.keep_last_n] if self.keep_last_n > 0 else []
            self._kept = self._kept[len(obsolete) :]
            trainer.save_checkpoint(self._kept[-1], weights_only=False)
            for path in obsolete:
                trainer.strategy.remove_checkpoint(path)
        if is_due(iteration - 1, iteration, self.last_every_n_iterations):
            self._save_last(trainer, iteration)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the final state, unless the last iteration just did."""
        iteration = as_agent(pl_module).iteration
        if iteration != self._saved_iteration:
            self._save_last(trainer, iteration)

    def state_dict(self) -> dict[str, Any]:
        """The best score and the files that are kept."""
        return {
            "best_model_score": self.best_model_score,
            "best_model_path": self.best_model_path,
            "last_model_path": self.last_model_path,
            "kept": self._kept,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.best_model_score = state_dict["best_model_score"]
        self.best_model_path = state_dict["best_model_path"]
        self.last_model_path = state_dict["last_model_path"]
        self._kept = state_dict["kept"]

    def _save_best(self, trainer: L.Trainer) -> None:
        evaluation = evaluation_of(trainer)
        if evaluation.best_return > self.best_model_score:
            self.best_model_score = evaluation.best_return
            self.best_model_path = self._path(trainer, "best")
            trainer.save_checkpoint(self.best_model_path, weights_only=False)

    def _save_last(self, trainer: L.Trainer, iteration: int) -> None:
        self._saved_iteration = iteration
        self.last_model_path = self._path(trainer, "last")
        trainer.save_checkpoint(self.last_model_path, weights_only=False)

    @staticmethod
    def _path(trainer: L.Trainer, name: str) -> str:
        return str(Path(trainer.log_dir or trainer.default_root_dir, "checkpoints", f"{name}.ckpt").absolute())
