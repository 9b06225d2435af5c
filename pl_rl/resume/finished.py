"""Runs that are over already at the checkpoint that they are to be continued from."""

from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint, Timer

from pl_rl.agent import Agent
from pl_rl.callbacks.evaluation import PeriodicEvaluation
from pl_rl.callbacks.run_checkpoint import RunCheckpoint
from pl_rl.callbacks.run_directory import own_files
from pl_rl.callbacks.settings import ENDED_BY_EARLY_STOPPING, Change, changes_of, ended_by_early_stopping, settings_of
from pl_rl.checkpoints.format import STATE_KEY
from pl_rl.resume.resumable import ResumableAgent
from pl_rl.runs.directory import run_of_checkpoint


class End(NamedTuple):
    """Why nothing is left to train.

    Attributes:
        reason: In words, as the rest of a sentence.
        way_out: What to change for training to go on, in words.
        finished: Whether the run is over, rather than this process's time.
    """

    reason: str
    way_out: str
    finished: bool = True


def end_at(
    trainer: L.Trainer, model: L.LightningModule, callbacks: list[L.Callback], checkpoint: dict[str, Any]
) -> End | None:
    """Why a run trains nothing from a checkpoint on, by the settings of the present; ``None`` if it does.

    Args:
        trainer: That is to continue it.
        model: The agent.
        callbacks: Of the trainer and the model.
        checkpoint: Its content, in which the states of callbacks are given the settings that were changed.
    """
    if isinstance(model, ResumableAgent):
        model.adopt_settings(checkpoint)
    changes = changes_of(callbacks, settings_of(callbacks), checkpoint)
    evaluations = [callback for callback in callbacks if isinstance(callback, PeriodicEvaluation)]
    end = None
    if not any(evaluation.is_due_at(checkpoint) for evaluation in evaluations):
        end = _end_of_run(model, callbacks, checkpoint, changes)
    return end or _limit_of_trainer(trainer, callbacks, checkpoint)


def _end_of_run(
    model: L.LightningModule, callbacks: list[L.Callback], checkpoint: dict[str, Any], changes: list[Change]
) -> End | None:
    env_steps = checkpoint[STATE_KEY]["counters"]["env_steps"]
    if isinstance(model, Agent) and env_steps >= model.total_env_steps:
        longer = f"raise it, as with --model.total_env_steps {2 * env_steps}"
        return End(f"total_env_steps={model.total_env_steps:,} reached", longer)
    for callback in callbacks:
        reached = callback.end_at(checkpoint) if isinstance(callback, PeriodicEvaluation) else None
        if reached is not None:
            return End(reached, "raise it, or do without, as with --model.stop_value null")
    if ended_by_early_stopping(callbacks, checkpoint, changes):
        return End(ENDED_BY_EARLY_STOPPING, "give it a larger patience, or leave it out")
    return None


def _limit_of_trainer(trainer: L.Trainer, callbacks: list[L.Callback], checkpoint: dict[str, Any]) -> End | None:
    counters = checkpoint[STATE_KEY]["counters"]
    if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= counters["iteration"]:
        return End(f"max_epochs={trainer.max_epochs:,} reached", "raise it, or add --trainer.max_epochs -1")
    if 0 <= trainer.max_steps <= counters["train_iter"]:
        return End(f"max_steps={trainer.max_steps:,} reached", "raise it, or add --trainer.max_steps -1")
    for callback in callbacks:
        # One that has run before is started anew by Lightning.
        left = callback.time_remaining() if isinstance(callback, Timer) and callback.start_time() is None else None
        if left is not None and left <= 0:
            return End("max_time leaves no time", "give more of it, or leave it out", finished=False)
    return None


def take_over(
    trainer: L.Trainer, model: L.LightningModule, callbacks: list[L.Callback], path: Path, checkpoint: dict[str, Any]
) -> None:
    """Bring a model and callbacks into the state of a checkpoint without training, for a script that goes on with them.

    Args:
        trainer: As for :func:`end_at`.
        model: The agent.
        callbacks: Of the trainer and the model.
        path: Of the checkpoint.
        checkpoint: Its content.
    """
    trainer.precision_plugin.convert_module(model)
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"], strict=model.strict_loading)
    if isinstance(model, Agent):
        model.restore_counters(checkpoint[STATE_KEY]["counters"])
    for callback in callbacks:
        state = checkpoint["callbacks"].get(callback.state_key)
        if state is None or isinstance(callback, Timer):  # a time limit is that of a process
            continue
        if isinstance(callback, ModelCheckpoint):
            given = callback.dirpath
            state = own_files(state, str(given or path.absolute().parent))
            callback.dirpath = given or state["dirpath"]  # it forgets its files where another one is given
            callback.load_state_dict(state)
            callback.dirpath = given  # where it goes on writing is not the file's to say
            continue
        callback.load_state_dict(state)
    if run_of_checkpoint(path) is not None:
        for callback in callbacks:
            if isinstance(callback, RunCheckpoint):
                callback.find_files(path.parent)
