"""The closing words of a run."""

import shlex
from pathlib import Path

import lightning as L
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pl_rl.agent import Agent, as_agent
from pl_rl.algorithm.evaluation import format_return
from pl_rl.callbacks.evaluation import PeriodicEvaluation, evaluation_of
from pl_rl.callbacks.lookup import find_callback
from pl_rl.callbacks.run_checkpoint import RunCheckpoint
from pl_rl.errors import Interrupted
from pl_rl.runs.directory import display_path
from pl_rl.runs.trust import is_own


class RunSummary(L.Callback):
    """Prints what was reached, where it is, and the commands to go on with it and to watch it.

    Attributes:
        config: The file that holds the settings of this process, once somebody has written it. Another that lies in
            the run's directory may be somebody else's, and a command that names it would trust it.
    """

    config: Path | None = None

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the table."""
        if not trainer.is_global_zero:
            return
        agent = as_agent(pl_module)
        table = Table(show_header=False, title="Run", title_justify="left", expand=False)
        for name, value in self._rows(trainer, agent):
            table.add_row(name, escape(value))
        Console().print(table)
        print_commands(trainer, agent)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Say how to go on after a failure; who stops a run says it after saving."""
        if trainer.is_global_zero and not isinstance(exception, Interrupted):
            print_commands(trainer, as_agent(pl_module))

    def _rows(self, trainer: L.Trainer, agent: Agent) -> list[tuple[str, str]]:
        evaluation = evaluation_of(trainer)
        rows = [
            ("ended", agent.stop_reason or "a limit of the trainer was reached"),
            ("trained", f"{agent.env_steps:,} env steps, {agent.train_iter:,} train iterations"),
            ("time", f"{agent.elapsed_seconds_here:.1f} s, {agent.elapsed_seconds:.1f} s over all resumes"),
            ("speed", f"{agent.env_steps_per_second:,.0f} env steps/s"),
        ]
        if evaluation.train_iter is not None:
            best, latest = format_return(evaluation.best_return), format_return(evaluation.latest["return_mean"])
            rows.append(("return", f"best {best}, latest {latest}"))
        checkpoint = _checkpoint(trainer)
        if checkpoint is not None:
            rows.append(("last checkpoint", display_path(checkpoint.last_model_path)))
            if checkpoint.best_model_path:
                rows.append(("best checkpoint", display_path(checkpoint.best_model_path)))
        return rows


def print_commands(trainer: L.Trainer, agent: Agent) -> None:
    """How to go on and to watch; not in the table, which would break a command over lines."""
    for purpose, command in _commands(trainer, agent):
        Console().print(f"{purpose}: {command}", highlight=False, markup=False, soft_wrap=True)


def _commands(trainer: L.Trainer, agent: Agent) -> list[tuple[str, str]]:
    """What each next command is for, and the command."""
    checkpoint = _checkpoint(trainer)
    if checkpoint is None:
        return []
    last = shlex.quote(display_path(checkpoint.last_model_path))
    best = shlex.quote(display_path(checkpoint.best_model_path or checkpoint.last_model_path))
    config = _config(trainer)
    return [
        ("go on", f"python -m pl_rl fit --ckpt_path {last}{config}{_extension(trainer, agent)}"),
        ("watch", f"python -m pl_rl predict --ckpt_path {best}{config} --video videos"),
    ]


def _checkpoint(trainer: L.Trainer) -> RunCheckpoint | None:
    checkpoint = find_callback(trainer, RunCheckpoint)
    return checkpoint if checkpoint is not None and checkpoint.last_model_path else None


def _config(trainer: L.Trainer) -> str:
    """The option for the run's settings, which are used unasked under the log root alone."""
    summary = find_callback(trainer, RunSummary)
    config = None if summary is None else summary.config
    return "" if config is None or is_own(config) else f" --config {shlex.quote(display_path(config))}"


def _extension(trainer: L.Trainer, agent: Agent) -> str:
    """What a resume must change for a run that is over to go on."""
    changes = ""
    if agent.env_steps >= agent.total_env_steps:
        changes += f" --model.total_env_steps {2 * agent.env_steps}"
    evaluation = find_callback(trainer, PeriodicEvaluation)
    if evaluation is not None and evaluation.reached() is not None:
        changes += " --model.stop_value null"
    if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= agent.iteration:
        changes += " --trainer.max_epochs -1"
    if 0 <= trainer.max_steps <= agent.train_iter:
        changes += " --trainer.max_steps -1"
    return changes
