"""Lightning's Trainer, for runs that are continued."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.io import CheckpointIO

from pl_rl.agent import Agent
from pl_rl.callbacks.lookup import all_attached
from pl_rl.callbacks.pretrained import PretrainedCheckpoint
from pl_rl.callbacks.run_directory import RunDirectory
from pl_rl.checkpoint_io import DurableCheckpointIO
from pl_rl.checkpoints import STATE_KEY, read_checkpoint
from pl_rl.errors import UsageError
from pl_rl.runs import LOG_ROOT, find_checkpoint


class Trainer(L.Trainer):
    """Continues a run in its own directory, and writes checkpoints that a kill cannot damage.

    Everything else is Lightning's; a plain ``lightning.Trainer`` continues a run just as exactly, in a new directory.

    Args:
        max_epochs: Iterations (collect and learn) at most; -1 for no limit but the model's ``total_env_steps``.
        plugins: As Lightning's; a ``CheckpointIO`` among them takes the place of :class:`DurableCheckpointIO`.
        kwargs: As Lightning's.
    """

    def __init__(self, max_epochs: int | None = -1, plugins: Any = None, **kwargs: Any) -> None:
        given = plugins if isinstance(plugins, list) else [] if plugins is None else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in given):
            given = [*given, DurableCheckpointIO()]
        super().__init__(max_epochs=max_epochs, plugins=given, **kwargs)

    def fit(
        self,
        model: L.LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = True,
        branch: bool = False,
    ) -> None:
        """Train, or continue a run as if it had never stopped.

        Args:
            model: The agent.
            train_dataloaders: As Lightning's; an agent brings its own.
            val_dataloaders: As Lightning's; an agent brings its own.
            datamodule: As Lightning's; an agent needs none.
            ckpt_path: Checkpoint to go on from: a path, or ``last`` for the newest run's last one.
            weights_only: Whether the checkpoint may hold plain data only, which is all that a run's own ones hold.
            branch: Begin a run of its own at the checkpoint, in a new directory and with random numbers of its own.

        Raises:
            UsageError: If the checkpoint, or a file of pre-trained weights, cannot be used.
        """
        if isinstance(model, Agent):
            # Before processes are launched for several devices and before anything is written.
            model.check_trainer(self)
            model.branching = branch
        path = None
        if ckpt_path is not None:
            path = find_checkpoint(str(ckpt_path), Path(self.default_root_dir, LOG_ROOT))
            checkpoint = read_checkpoint(path)
            self._check(model, checkpoint)
            missing_logs = [] if branch else RunDirectory.reuse(self, path, checkpoint, cut=self._goes_on(checkpoint))
            if isinstance(model, Agent):
                model.missing_logs = missing_logs
        elif branch:
            raise UsageError("a branch begins at a checkpoint; add --ckpt_path last, or the path of one")
        elif isinstance(model, Agent):
            for callback in all_attached(self, PretrainedCheckpoint):
                callback.check(model)
        # A continued run's hyperparameters are in its logs; once more would be a second point at step 0.
        self.enable_autolog_hparams = self.enable_autolog_hparams and (path is None or branch)
        super().fit(model, train_dataloaders, val_dataloaders, datamodule, path, weights_only)

    def validate(self, *args: Any, **kwargs: Any) -> Any:
        """Repeat the evaluation that training made at a checkpoint."""
        return super().validate(*args, **kwargs)

    def test(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate a checkpoint on episodes that no choice was based on."""
        return super().test(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Play episodes with the policy of a checkpoint."""
        return super().predict(*args, **kwargs)

    def _goes_on(self, checkpoint: dict[str, Any]) -> bool:
        """Whether the limits of the trainer let a run train at all after a checkpoint."""
        counters = checkpoint[STATE_KEY]["counters"]
        over = self.max_epochs is not None and 0 <= self.max_epochs <= counters["iteration"]
        return not over and not 0 <= self.max_steps <= counters["train_iter"]

    def _check(self, model: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse what cannot be continued while the run's logs are still as they were.

        Raises:
            UsageError: If the network is another one, or the run would be over before it began.
        """
        if isinstance(model, Agent):
            model.check_fit(checkpoint)
        iteration = checkpoint[STATE_KEY]["counters"]["iteration"]
        if self.max_epochs is not None and 0 <= self.max_epochs < iteration:
            raise UsageError(
                f"max_epochs={self.max_epochs} lies before the checkpoint's iteration {iteration}; use a larger one, "
                "or -1 for no limit"
            )
