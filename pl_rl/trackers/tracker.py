"""What is the same for all trackers."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pl_rl.trackers.journal import Journal, Points

TRAIN_ITER, ENV_STEPS = "train_iter", "env_steps"
AXES = {
    "evaluator_iter": TRAIN_ITER,
    "hp_metric": TRAIN_ITER,
    "evaluator_step": ENV_STEPS,
    "losses": ENV_STEPS,
    "rollout": ENV_STEPS,
    "schedule": ENV_STEPS,
    "time": ENV_STEPS,
}
"""What the steps of an agent's metrics count, by the first part of their names."""


class Parent(NamedTuple):
    """Where a run has branched off."""

    checkpoint: str
    env_steps: int
    run_id: str | None
    """The tracker's, of the run before."""

    def as_config(self) -> dict[str, Any]:
        """For the configuration of the tracker's run."""
        return {
            "parent_checkpoint": self.checkpoint,
            "parent_env_steps": self.env_steps,
            "parent_run": self.run_id,
        }


class Tracker(ABC):
    """A logger of such a kind.

    On a resume the tracker may have points from after the checkpoint, which the process that ended has written; hardly
    any can take them back. As the resumed run makes the same numbers again, those are not sent a second time. It may
    also lack points from before the checkpoint, which it had not written yet when it was ended too: these are sent
    again, from the run's own journal.

    Attributes:
        logger: The logger.
        journal: All that was logged.
        held: The last step of each metric that the tracker has of the run from before; empty for a run that begins.
    """

    LOGGER: ClassVar[str]
    """Name of the logger's class."""

    def __init__(self, logger: Any, journal: Path) -> None:
        self.logger = logger
        self.journal = Journal(journal)
        self.held: dict[str, int] = {}
        # In the instance, as callbacks and Lightning write to the logger by themselves.
        vars(logger).pop("log_metrics", None)
        self._log_metrics = logger.log_metrics
        logger.log_metrics = self.log_metrics

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log, in the place of the logger's method, what the tracker does not have yet."""
        if step is not None:
            self.journal.add(metrics, step)
            metrics = self._without_held(metrics, step)
        if metrics:
            self.send(metrics, step)

    def go_on(self, run_id: str, length: int) -> str | None:
        """Let the logger, which has not been used yet, go on with a run.

        Args:
            run_id: The tracker's id of it.
            length: Of the journal at the checkpoint.

        Returns:
            What is wrong, in words; ``None`` if nothing is.
        """
        fault = self.reopen(run_id)
        if not self.is_known:
            for points in self.journal.read():
                self._hold(points)
        for points in self.journal.cut(length):
            metrics = self._without_held(points.metrics, points.step)
            if metrics:
                self.send(metrics, points.step)
                self._hold(points)
        return fault

    def is_ahead(self, train_iter: int, env_steps: int) -> bool:
        """Whether it has points from after a checkpoint, by the checkpoint's counters."""
        reached = {TRAIN_ITER: train_iter, ENV_STEPS: env_steps}
        return any(
            self.held.get(self.name_of(name), -1) > reached[AXES[name.split("/")[0]]]
            for points in self.journal.read()
            for name in points.metrics
            if name.split("/")[0] in AXES
        )

    def send(self, metrics: Mapping[str, float], step: int | None) -> None:
        """Log metrics, whether or not the tracker has them."""
        self._log_metrics(metrics, step=step)

    def name_of(self, metric: str) -> str:
        """The name of a metric in the tracker."""
        prefix = self.logger._prefix
        return f"{prefix}{self.logger.LOGGER_JOIN_CHAR}{metric}" if prefix else metric

    def _without_held(self, metrics: Mapping[str, float], step: int) -> dict[str, float]:
        return {name: value for name, value in metrics.items() if self.held.get(self.name_of(name), -1) < step}

    def _hold(self, points: Points) -> None:
        for name in map(self.name_of, points.metrics):
            self.held[name] = max(points.step, self.held.get(name, -1))

    @property
    def is_known(self) -> bool:
        """Whether the tracker could say what it has; else all that was logged counts as there."""
        return True

    @abstractmethod
    def run_id(self) -> str | None:
        """The id of the tracker's run, if there is one by now."""

    @abstractmethod
    def reopen(self, run_id: str) -> str | None:
        """Take a run's id, and note what the tracker has of it.

        Returns:
            Why not, in words; ``None`` if that went well.
        """

    @abstractmethod
    def branch(self, parent: Parent) -> None:
        """Note, before the tracker's run is made, which run it has branched off from."""
