"""Lightning's Trainer, for runs that are continued."""

import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar, cast

import lightning as L
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.io import CheckpointIO
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers import Logger

from pl_rl.agent import Agent
from pl_rl.callbacks.lookup import callbacks_of_fit, find_callback
from pl_rl.callbacks.run_checkpoint import RunCheckpoint
from pl_rl.callbacks.run_directory import run_directory
from pl_rl.callbacks.stop_on_signal import StopOnSignal, requeue_signal
from pl_rl.checkpoints.saving import DurableCheckpointIO
from pl_rl.distributed.processes import devices_of_launcher, ending_together, is_first, prepare_strategy
from pl_rl.errors import Interrupted, UsageError
from pl_rl.resume.finished import end_at, take_over
from pl_rl.resume.start import Start, check_start, enter_run_directory, find_start
from pl_rl.runs.directory import LOG_ROOT, display_path
from pl_rl.runs.output import lasting_output
from pl_rl.signals import SIGNALS, Interruption
from pl_rl.trackers import LoggerName
from pl_rl.trackers.words import logger_named


class Trainer(L.Trainer):
    """Continues a run in its own directory, and writes checkpoints that a kill cannot damage.

    Everything else is Lightning's; a plain ``lightning.Trainer`` continues a run just as exactly, in a new directory.

    Args:
        max_epochs: Iterations (collect and learn) at most; -1 for no limit but the model's ``total_env_steps``.
        plugins: As Lightning's; a ``CheckpointIO`` among them takes the place of :class:`DurableCheckpointIO`.
        logger: As Lightning's, or a word: ``tensorboard``, ``csv``, ``wandb``, ``mlflow``, ``trackio``; or a list of
            them.
        default_root_dir: Where ``lightning_logs``, and what such loggers write, is; the working directory by default.
        kwargs: As Lightning's.

    Attributes:
        command: What was typed to begin the run, by which ``auto_resume`` knows it again; by default what began this
            process and how many fits have come to their end in it, as in a loop over seeds.
        start: What the next fit starts from, if it has been found already.
    """

    _ended: ClassVar[int] = 0

    def __init__(
        self,
        max_epochs: int | None = -1,
        plugins: Any = None,
        logger: Logger | LoggerName | bool | list[Logger | LoggerName] | None = None,
        default_root_dir: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        given = plugins if isinstance(plugins, list) else [] if plugins is None else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in given):
            given = [*given, DurableCheckpointIO()]
        if logger in (None, True) and SLURMEnvironment.job_id() is not None and not kwargs.get("barebones"):
            logger = "tensorboard"  # as by default, but not named by the job, of which several runs may be
        named = _loggers_named(logger, Path(default_root_dir or Path.cwd()))
        kwargs |= {} if kwargs.get("devices", "auto") != "auto" else devices_of_launcher()
        super().__init__(
            max_epochs=max_epochs, plugins=given, logger=named, default_root_dir=default_root_dir, **kwargs
        )
        prepare_strategy(self)
        self.command: list[str] | None = None
        self.start: Start | None = None
        self._interruption = Interruption()
        if find_callback(self, RunCheckpoint) is not None:
            callbacks: list[L.Callback] = cast(Any, self).callbacks  # set by Lightning without declaring it
            callbacks.append(StopOnSignal(self._interruption))

    @lasting_output()
    def fit(
        self,
        model: L.LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = True,
        branch: bool = False,
        auto_resume: bool = False,
    ) -> None:
        """Train, or continue a run as if it had never stopped.

        Where nothing is left to train, the reason is printed and nothing written; the model has the checkpoint's
        weights and counters then.

        Args:
            model: The agent.
            train_dataloaders: As Lightning's; an agent brings its own.
            val_dataloaders: As Lightning's; an agent brings its own.
            datamodule: As Lightning's; an agent needs none.
            ckpt_path: Checkpoint to go on from: a path, or ``last`` for the newest run's last one.
            weights_only: As Lightning's; nothing but plain data is ever read.
            branch: Begin a run of its own at the checkpoint, in a new directory and with random numbers of its own.
            auto_resume: Go on with the newest run that the same command began, if there is one. Implied
                in a SLURM job that was queued again.

        Raises:
            UsageError: If the checkpoint, or a file of pre-trained weights, cannot be used, or another process trains
                in the directory.
        """
        start, command = self.start, self.command or [*sys.argv, *([f"after {self._ended}"] if self._ended else [])]
        if start is None:
            start = find_start(ckpt_path, auto_resume, command, Path(self.default_root_dir, LOG_ROOT))
        self.start, branch = None, branch and not start.of_command
        if isinstance(model, Agent):
            # Before processes are launched for several devices and before anything is written.
            model.check_trainer(self)
            model.branching = branch
        check_start(start, self, model, branch)
        if start.path is not None and self._is_over(model, start.path, start):
            Trainer._ended += 1
            return
        with ExitStack() as locks:
            enter_run_directory(start, self, model, branch, command, locks)
            # A continued run's hyperparameters are in its logs; once more would be a second point at step 0.
            self.enable_autolog_hparams = self.enable_autolog_hparams and (start.path is None or branch)
            with self._stopped_by_signals(), ending_together(self, self._interruption), _closed_in_the_end(model):
                super().fit(model, train_dataloaders, val_dataloaders, datamodule, start.path, weights_only)
        Trainer._ended += 1

    @property
    def log_dir(self) -> str | None:
        """The run's directory; without a run as Lightning's."""
        run = run_directory(self)
        return super().log_dir if run is None else str(run)

    def validate(self, *args: Any, **kwargs: Any) -> Any:
        """Repeat the evaluation that training made at a checkpoint."""
        self._check_evaluated(args, kwargs)
        return super().validate(*args, **kwargs)

    def test(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate a checkpoint on episodes that no choice was based on."""
        self._check_evaluated(args, kwargs)
        return super().test(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Play episodes with the policy of a checkpoint."""
        self._check_evaluated(args, kwargs)
        if self.world_size > 1:
            raise UsageError(f"predict plays in one process, not in {self.world_size}; use --trainer.devices 1")
        return super().predict(*args, **kwargs)

    def _check_evaluated(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse a trainer that evaluates wrongly, before it launches processes.

        Raises:
            UsageError: As :meth:`pl_rl.Agent.check_trainer`.
        """
        model = args[0] if args else kwargs.get("model")
        if isinstance(model, Agent):
            model.check_trainer(self)

    @contextmanager
    def _stopped_by_signals(self) -> Iterator[None]:
        """Hear signals and time limits; a run without :class:`RunCheckpoint` leaves them to Lightning."""
        signals = {*SIGNALS, requeue_signal(self) or signal.SIGUSR1}
        timer = find_callback(self, Timer)
        if timer is not None and timer.time_remaining() is not None:
            signals.add(signal.SIGALRM)
        if find_callback(self, StopOnSignal) is None:
            yield
            return
        with self._interruption.listening(signals):
            # Of several processes the first alone leaves before training, and takes the others with it.
            self._interruption.safe_to_raise = self.is_global_zero
            try:
                yield
            except Interrupted as interrupted:
                if interrupted.signum != signal.SIGALRM:
                    raise
                return
            # One that came when the run was over: the process is still to end.
            self._interruption.leave()

    def _is_over(self, model: L.LightningModule, path: Path, start: Start) -> bool:
        """Whether nothing is left to train; says why, and gives a script the trained model all the same."""
        callbacks = callbacks_of_fit(self, model)
        end = end_at(self, model, callbacks, start.checkpoint)
        if end is None:
            return False
        take_over(self, model, callbacks, path, start.checkpoint)
        if isinstance(model, Agent) and end.finished:
            model.stop_reason = end.reason
        if not is_first():
            return True
        if start.auto_resume and end.finished:
            print(f"auto_resume: {display_path(path.parent.parent)} is finished: {end.reason}", flush=True)
        else:
            print(
                f"Nothing is trained from {display_path(path)} on, as {end.reason}; to go on, {end.way_out}.",
                flush=True,
            )
        return True


def _loggers_named(logger: Any, folder: Path) -> Any:
    """Loggers in the place of words for them."""
    if isinstance(logger, str):
        return logger_named(logger, folder)
    if isinstance(logger, list | tuple):
        return [_loggers_named(item, folder) for item in logger]
    return logger


@contextmanager
def _closed_in_the_end(model: L.LightningModule) -> Iterator[None]:
    """Leave no environment open, whatever hook an exception comes from, even the one for exceptions."""
    try:
        yield
    except BaseException as error:
        if isinstance(model, Agent):
            model.close_after(error)
        raise
