"""A progress bar that speaks of iterations, env steps and returns."""

import math
import time

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from pl_rl.agent import Agent, as_agent
from pl_rl.algorithm.evaluation import format_return
from pl_rl.callbacks.evaluation import evaluation_of

REFRESH_SECONDS = 0.1
NARROWEST_BAR = 10

# From what a narrow terminal keeps longest, to what it gives up first; they stand in the order of their numbers.
IMPORTANCE = (0, 4, 1, 2, 3)


class RunProgressBar(ProgressBar):
    """Env steps, mean training return, latest evaluation, env steps per second and time left.

    A narrow terminal shows fewer of them, in full. Where the output is no terminal, such as a job's log file, each
    evaluation is a line instead.
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
            BarColumn(bar_width=None),
            TextColumn("{task.description}", markup=False),
            console=self._console,
            transient=True,
            expand=True,
        )
        words = bar_words(_parts(trainer, agent), self._console.width)
        self._task = self._progress.add_task(words, total=agent.total_env_steps)
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
                words = bar_words(_parts(trainer, agent), self._console.width)
                self._progress.update(self._task, completed=agent.env_steps, description=words)
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


def bar_words(parts: list[str], width: int) -> str:
    """What stands beside the bar: as many of the parts as a terminal has room for.

    Args:
        parts: Each in full.
        width: Of the terminal, in characters.
    """
    shown: list[int] = []
    for number in IMPORTANCE:
        words = " · ".join(parts[i] for i in sorted([*shown, number]))
        if len(words) + 1 + NARROWEST_BAR > width:
            break
        shown.append(number)
    return " · ".join(parts[i] for i in sorted(shown))


def _parts(trainer: L.Trainer, agent: Agent) -> list[str]:
    returns = agent.collector.episodes.mean_return(), evaluation_of(trainer).latest.get("return_mean", math.nan)
    train_return, evaluated = ("-" if math.isnan(value) else format_return(value) for value in returns)
    speed = agent.env_steps_per_second
    left = max(agent.total_env_steps - agent.env_steps, 0) / speed if speed > 0 else None
    return [
        f"{compact(agent.env_steps)}/{compact(agent.total_env_steps)} steps",
        f"return {train_return}",
        f"eval {evaluated}",
        f"{compact(speed)}/s",
        f"{'-:--' if left is None else _duration(left)} left",
    ]


def compact(number: float) -> str:
    """A number in three digits, such as ``12.5k`` or ``2M``."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:
            return f"{number / size:#.3g}".rstrip("0").rstrip(".") + unit
    return f"{number:.0f}"


def _duration(seconds: float) -> str:
    hours, seconds = divmod(round(seconds), 3600)
    minutes, seconds = divmod(seconds, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
