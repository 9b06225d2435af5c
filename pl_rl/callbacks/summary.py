"""The closing words of a run."""

import shlex
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping, Timer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pl_rl.agent import Agent, as_agent
from pl_rl.algorithm.evaluation import format_return
from pl_rl.callbacks.evaluation import PeriodicEvaluation, evaluation_of
from pl_rl.callbacks.lookup import find_callback, find_callbacks
from pl_rl.callbacks.run_checkpoint import RunCheckpoint
from pl_rl.envs.episode_info import SUCCESS_RATE
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
            ("ended", agent.stop_reason or _limit(trainer, agent)),
            ("trained", f"{agent.env_steps:,} env steps, {agent.train_iter:,} train iterations"),
            ("time", f"{agent.elapsed_seconds_here:.1f} s, {agent.elapsed_seconds:.1f} s over all resumes"),
            ("speed", f"{agent.env_steps_per_second:,.0f} env steps/s"),
        ]
        if evaluation.train_iter is not None:
            best, latest = format_return(evaluation.best_return), format_return(evaluation.latest["return_mean"])
            rows.append(("return", f"best {best}, latest {latest}"))
        if SUCCESS_RATE in evaluation.latest:
            rows.append(("success", f"{evaluation.latest[SUCCESS_RATE]:.0%} of the latest evaluation's episodes"))
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
    commands = [("watch", f"python -m pl_rl predict --ckpt_path {best}{config} --video videos")]
    go_on = f"python -m pl_rl fit --ckpt_path {last}{config}{_extension(trainer, agent)}"
    stopped = _early_stopping(trainer) is not None  # whose patience no command can raise in a word
    purpose = "go on, with a larger patience of EarlyStopping or without it" if stopped else "go on"
    return [(purpose, go_on), *commands]


def _limit(trainer: L.Trainer, agent: Agent) -> str:
    """What Lightning ended training by."""
    stopped = _early_stopping(trainer)
    timer = find_callback(trainer, Timer)
    left = None if timer is None else timer.time_remaining()
    if cast(Any, trainer).fast_dev_run:
        return "fast_dev_run, which saves nothing"
    if stopped is not None:
        return f"EarlyStopping of {stopped.monitor}"
    if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= agent.iteration:
        return f"max_epochs={trainer.max_epochs:,} reached"
    if 0 <= trainer.max_steps <= agent.train_iter:
        return f"max_steps={trainer.max_steps:,} reached"
    if left is not None and left <= 0:
        return "max_time reached"
    return "a callback stopped the trainer"


def _early_stopping(trainer: L.Trainer) -> EarlyStopping | None:
    """The callback by which the run was ended, if it was."""
    return next((callback for callback in find_callbacks(trainer, EarlyStopping) if callback.stopped_epoch), None)


def _checkpoint(trainer: L.Trainer) -> RunCheckpoint | None:
    if cast(Any, trainer).fast_dev_run:  # which writes none
        return None
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
