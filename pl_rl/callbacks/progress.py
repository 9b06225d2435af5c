"""A progress bar that speaks of iterations, env steps and returns."""

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from pl_rl.agent import Agent, as_agent
from pl_rl.algorithm.evaluation import format_return
from pl_rl.callbacks.evaluation import evaluation_of

REFRESH_SECONDS = 0.1


class RunProgressBar(ProgressBar):
    """Iteration, env steps, mean training return, latest evaluation, steps per second and time left.

    Where the output is no terminal, such as a job's log file, each evaluation is a line instead.
    """

    def __init__(self) -> None:
        super().__init__()
        self._console = Console()
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._refreshed = 0.0
        self._reported: int | None = None

    def disable(self) -> None:
        """Show nothing; Lightning calls it on all processes but the first."""
        self._console.quiet = True

    def enable(self) -> None:
        """The inverse of :meth:`disable`."""
        self._console.quiet = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the bar."""
        self._reported = evaluation_of(trainer).train_iter  # what a continued run has reported before
        if not self._console.is_terminal:
            return
        agent = as_agent(pl_module)
        self._progress = Progress(
            TextColumn("iteration {task.fields[iteration]:,}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} env steps ·"),
            TextColumn("return {task.fields[train_return]}, evaluated {task.fields[eval_return]} ·"),
            TextColumn("{task.fields[speed]:,.0f} steps/s ·"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self._console,
            transient=True,
            expand=True,
        )
        self._task = self._progress.add_task("", total=agent.total_env_steps, **_fields(trainer, agent))
        self._progress.start()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Move the bar, a few times a second, or report the evaluation that has been made."""
        self._report(trainer, as_agent(pl_module))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the bar away; the summary follows."""
        self._report(trainer, as_agent(pl_module))
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self._stop()

    def _report(self, trainer: L.Trainer, agent: Agent) -> None:
        if self._progress is not None:
            now = time.monotonic()
            if now - self._refreshed > REFRESH_SECONDS:
                self._refreshed = now
                self._progress.update(self._task, completed=agent.env_steps, **_fields(trainer, agent))
            return
        evaluation = evaluation_of(trainer)
        if evaluation.train_iter is not None and evaluation.train_iter != self._reported:
            self._reported = evaluation.train_iter
            best, latest = format_return(evaluation.best_return), format_return(evaluation.latest["return_mean"])
            self._console.print(
                f"train_iter {agent.train_iter:,}  env_steps {agent.env_steps:,}/{agent.total_env_steps:,}  "
                f"evaluation return {latest} (best {best})  "
                f"{agent.env_steps_per_second:,.0f} steps/s",
                highlight=False,
                soft_wrap=True,
            )

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _fields(trainer: L.Trainer, agent: Agent) -> dict[str, Any]:
    return {
        "iteration": agent.iteration,
        "train_return": format_return(agent.collector.episodes.mean_return()),
        "eval_return": format_return(evaluation_of(trainer).latest.get("return_mean", float("nan"))),
        "speed": agent.env_steps_per_second,
    }
