"""Leaving within seconds when a signal or a time limit says so, with nothing lost."""

import io
import os
import subprocess
import time
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Checkpoint, Timer
from rich.console import Console

from pl_rl.agent import Agent, as_agent
from pl_rl.algorithm.schedule import is_due
from pl_rl.callbacks.evaluation import evaluation_of
from pl_rl.callbacks.lookup import find_callback, find_callbacks
from pl_rl.callbacks.run_checkpoint import RunCheckpoint
from pl_rl.callbacks.summary import RunSummary, print_commands
from pl_rl.checkpoints.format import STATE_KEY
from pl_rl.errors import Interrupted
from pl_rl.runs.directory import display_path
from pl_rl.signals import Interruption

# Shorter iterations are finished; before a longer one the state is copied, which is cheap beside it.
LONG_SECONDS = 1.0


class StopOnSignal(Checkpoint):
    """Ends a run on a signal: after the current iteration if that is short, else in the middle of it.

    Before an iteration that is expected to be long, evaluation included, it keeps a snapshot of the checkpoint in
    memory. An interruption saves the snapshot and leaves: an iteration is a function of the state before it, so
    repeating it is exact. Short iterations are finished instead.

    Of several processes the first alone leaves in the middle, and takes the others with it. A signal to another one,
    and a time limit, end all at the end of the iteration.

    :class:`pl_rl.Trainer` adds it behind :class:`RunCheckpoint`, which has saved by then what is due.

    Args:
        interruption: Which hears the signals.
    """

    def __init__(self, interruption: Interruption) -> None:
        self._interruption = interruption
        self._copy: bytes | None = None
        self._began = self._collected = time.monotonic()
        self._after_seconds = 0.0
        self._most_updates = 0
        self._train_iter = 0
        self._training = False

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """A time limit is that of a process, as a scheduler gives it.

        Lightning's Timer would count the time of the processes before, so that a command which is given again by
        ``auto_resume`` would end at once for ever after.
        """
        for timer in find_callbacks(trainer, Timer):
            checkpoint["callbacks"].pop(timer.state_key, None)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """RunCheckpoint has just saved: the first iteration, of unknown length, may be left."""
        self._training = True
        self._copy = None
        self._interruption.safe_to_raise = trainer.is_global_zero
        self._begin(trainer, as_agent(pl_module))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """What follows is evaluation and saving."""
        self._collected = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave if asked to, and otherwise see to it that the next iteration can be left."""
        self._interruption.set_alarm(0)
        agent, checkpoint = as_agent(pl_module), _checkpoint(trainer)
        seconds = self._seconds_of_next(trainer, agent)
        each = agent.shards_here.gather_plain([self._interruption.received or 0, seconds])
        received, seconds = map(max, zip(*each, strict=True))
        if received:
            self._interruption.received = received
            checkpoint.save_last(trainer, agent)
            self._copy = None
            self._interruption.leave()
        is_long = seconds >= LONG_SECONDS
        self._interruption.safe_to_raise &= is_long
        self._copy = _copy_of_state(trainer) if is_long and checkpoint.saved_iteration != agent.iteration else None
        self._interruption.safe_to_raise = is_long and trainer.is_global_zero
        self._begin(trainer, agent)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The run is over; the final state is saved whatever comes."""
        self._interruption.safe_to_raise = self._training = False
        self._interruption.set_alarm(0)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Save the state before an iteration that was left, and say how to go on."""
        self._interruption.set_alarm(0)
        if not isinstance(exception, Interrupted) or not trainer.is_global_zero:
            return
        agent, checkpoint = as_agent(pl_module), _checkpoint(trainer)
        if not self._training:
            _say(f"Stopped by {exception.name} before training began.")
        else:
            path = checkpoint.path(trainer, "last")
            if self._copy is not None:
                trainer.strategy.save_checkpoint(torch.load(io.BytesIO(self._copy), weights_only=True), path)
            content = trainer.strategy.load_checkpoint(path, weights_only=True)
            # What a script goes on with after a time limit is what was saved.
            agent.load_state_dict(content["state_dict"])
            agent.restore_counters(content[STATE_KEY]["counters"])
            _say(
                f"Stopped by {exception.name} at iteration {agent.iteration:,}, env_steps {agent.env_steps:,}; saved "
                f"{display_path(path)}."
            )
            if find_callback(trainer, RunSummary) is not None:
                print_commands(trainer, agent)
        self._copy, self._training = None, False
        _requeue(trainer, exception.signum)

    def _seconds_of_next(self, trainer: L.Trainer, agent: Agent) -> float:
        """What the next iteration is expected to take, from the latest."""
        self._after_seconds = max(self._after_seconds, time.monotonic() - self._collected)
        self._most_updates = max(self._most_updates, agent.train_iter - self._train_iter)
        evaluates = is_due(agent.train_iter, agent.train_iter + self._most_updates, evaluation_of(trainer).every)
        return self._collected - self._began + (self._after_seconds if evaluates else 0.0)

    def _begin(self, trainer: L.Trainer, agent: Agent) -> None:
        """An iteration begins, unless a signal came when it could not yet be heeded."""
        self._began, self._train_iter = time.monotonic(), agent.train_iter
        if self._interruption.safe_to_raise:
            self._interruption.leave()
            timer = find_callback(trainer, Timer)
            left = None if timer is None else timer.time_remaining()
            if left is not None and trainer.world_size == 1:  # of several the timer ends all after the iteration
                self._interruption.set_alarm(max(left, 1e-3))


def requeue_signal(trainer: L.Trainer) -> int | None:
    """The signal by which SLURM says that a job will be ended and should be queued again."""
    environment = trainer._accelerator_connector.cluster_environment
    return (
        environment.requeue_signal if isinstance(environment, SLURMEnvironment) and environment.auto_requeue else None
    )


def slurm_job() -> str | None:
    """The job's number as ``scontrol`` takes it, ``None`` outside of SLURM."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return os.environ.get("SLURM_JOB_ID") if array is None else f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"


def _requeue(trainer: L.Trainer, signum: int) -> None:
    """Queue the job again, as Lightning does, which would save in the middle of an update first."""
    job = slurm_job()
    if job is None or signum != requeue_signal(trainer):
        return
    try:
        status = subprocess.run(["scontrol", "requeue", job], check=False).returncode
    except OSError as error:
        _say(f"SLURM job {job} could not be queued again ({error.strerror}); submit it again with --auto_resume.")
        return
    outcome = "is queued again" if status == 0 else f"could not be queued again (scontrol ended with status {status})"
    _say(f"SLURM job {job} {outcome}.")


def _copy_of_state(trainer: L.Trainer) -> bytes:
    buffer = io.BytesIO()
    torch.save(trainer._checkpoint_connector.dump_checkpoint(weights_only=False), buffer)
    return buffer.getvalue()


def _checkpoint(trainer: L.Trainer) -> RunCheckpoint:
    checkpoint = find_callback(trainer, RunCheckpoint)
    if checkpoint is None:
        raise RuntimeError("the trainer's RunCheckpoint was taken away")
    return checkpoint


def _say(sentence: str) -> None:
    Console().print(sentence, highlight=False, markup=False, soft_wrap=True)
