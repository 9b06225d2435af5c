"""The checkpoints of a run: the last, the best, and some on the way."""

import shlex
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from pl_rl.agent import Agent, as_agent
from pl_rl.algorithm.schedule import is_due
from pl_rl.callbacks.evaluation import evaluation_of
from pl_rl.callbacks.run_directory import run_directory
from pl_rl.errors import EnvironmentFailure, UsageError
from pl_rl.files.writing import CHECKPOINTS, is_regular, put_aside
from pl_rl.runs.directory import display_path


class RunCheckpoint(Checkpoint):
    """Keeps ``last.ckpt``, ``best.ckpt`` and, if asked for, ``iteration_N.ckpt`` in the run's ``checkpoints/`` folder.

    All are written at the end of an iteration, where nothing is half done. Lightning's own ``ModelCheckpoint`` works
    as well; this one also saves before the first iteration and after the last.

    Args:
        last_every_n_iterations: Iterations between two savings of ``last.ckpt``, the most that a killed run loses.
        keep_every_n_iterations: Iterations between two ``iteration_N.ckpt``; 0 keeps none.
        keep_last_n: How many ``iteration_N.ckpt`` to keep, the newest; -1 keeps all.

    Attributes:
        best_model_score: Mean evaluation return of ``best.ckpt``.
        best_model_path: The file, empty before the first evaluation.
        last_model_path: Likewise for ``last.ckpt``.
        saved_iteration: The iteration after which ``last.ckpt`` was saved, -1 before the first time.
        losses: What a run that goes on in its own directory lost because a file is gone, in words.

    Raises:
        UsageError: If a number is out of range.
    """

    def __init__(
        self, last_every_n_iterations: int = 50, keep_every_n_iterations: int = 0, keep_last_n: int = 5
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
        self._kept: list[int] = []
        self.saved_iteration = -1
        self.losses: list[str] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A continued run has its files already; one that goes on in another directory has none."""
        folder = Path(self.path(trainer, "last")).parent
        self.find_files(folder)
        self.losses = []
        if not self.best_model_path:
            here = Path(str(trainer.ckpt_path)).resolve().parent == folder.resolve()
            if here and self.best_model_score > -float("inf"):
                score = f"the one of {self.best_model_score:g}"
                self.losses = [f"best checkpoint: {display_path(folder)} has none, so {score} is forgotten"]
            self.best_model_score = -float("inf")
        self._kept = [number for number in self._kept if Path(self.path(trainer, f"iteration_{number}")).is_file()]

    def find_files(self, folder: Path) -> None:
        """Note which files there are in a run's ``checkpoints/`` folder."""
        last, best = folder / "last.ckpt", folder / "best.ckpt"
        self.last_model_path = str(last) if last.is_file() else ""
        self.best_model_path = str(best) if best.is_file() else ""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save before the first iteration: from here on there is something to resume.

        Also where a run is continued from another checkpoint than its last: the logs end here now, so the last must not
        be from later on.
        """
        agent = as_agent(pl_module)
        path = Path(self.path(trainer, "last"))
        if trainer.is_global_zero and is_regular(path) and not (trainer.ckpt_path and path.samefile(trainer.ckpt_path)):
            # A copy, so that there is a last checkpoint at every moment.
            put_aside(path, path.parent.parent, path.name)
        self._save_best(trainer, agent)
        self.save_last(trainer, agent)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save what is due after this iteration."""
        agent = as_agent(pl_module)
        # First, so that the others know of the file.
        if is_due(agent.iteration - 1, agent.iteration, self.keep_every_n_iterations):
            self._keep(trainer, agent.iteration)
        self._save_best(trainer, agent)
        if is_due(agent.iteration - 1, agent.iteration, self.last_every_n_iterations):
            self.save_last(trainer, agent)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the final state, unless the last iteration just did."""
        agent = as_agent(pl_module)
        if agent.iteration != self.saved_iteration:
            self.save_last(trainer, agent)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Say where a run that an environment ended can go on."""
        if isinstance(exception, EnvironmentFailure) and self.last_model_path:
            last = display_path(self.last_model_path)
            command = f"--ckpt_path {shlex.quote(last)}"
            exception.way_out = f"the last good checkpoint is {last}, go on from it with {command}"

    def state_dict(self) -> dict[str, Any]:
        """The best score and which files are kept; not where, as a run can be moved."""
        return {"best_model_score": self.best_model_score, "kept": self._kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.best_model_score = state_dict["best_model_score"]
        # They become the names of files that are removed, and no schema knows the state of a subclass.
        self._kept = [iteration for iteration in state_dict["kept"] if type(iteration) is int]

    def _save_best(self, trainer: L.Trainer, agent: Agent) -> None:
        """Save if the evaluation that was just made is the best."""
        evaluation = evaluation_of(trainer)
        if evaluation.train_iter != agent.train_iter or evaluation.latest["return_mean"] <= self.best_model_score:
            return
        self.best_model_score = evaluation.latest["return_mean"]
        self.best_model_path = self._save(trainer, "best")

    def save_last(self, trainer: L.Trainer, agent: Agent) -> None:
        """Save ``last.ckpt``."""
        self.saved_iteration = agent.iteration
        self.last_model_path = self._save(trainer, "last")

    def _keep(self, trainer: L.Trainer, iteration: int) -> None:
        """Save ``iteration_N.ckpt`` and remove the ones beyond the limit."""
        self._kept.append(iteration)
        obsolete = self._kept[: -self.keep_last_n] if self.keep_last_n > 0 else []
        self._kept = self._kept[len(obsolete) :]
        self._save(trainer, f"iteration_{iteration}")
        for old in obsolete:
            trainer.strategy.remove_checkpoint(self.path(trainer, f"iteration_{old}"))

    def _save(self, trainer: L.Trainer, name: str) -> str:
        path = self.path(trainer, name)
        if not cast(Any, trainer).fast_dev_run:  # set by Lightning without declaring it
            trainer.save_checkpoint(path, weights_only=False)
        return path

    @staticmethod
    def path(trainer: L.Trainer, name: str) -> str:
        """Where a checkpoint of a run lies."""
        folder = run_directory(trainer) or Path(trainer.log_dir or trainer.default_root_dir)
        return str(Path(folder, CHECKPOINTS, f"{name}.ckpt").absolute())
