"""Trackio, for which Lightning has no logger."""

import secrets
import time
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import Logger

from pl_rl.trackers.tracker import AXES, Parent, Tracker


class TrackioLogger(Logger):
    """Logs to Trackio.

    Args:
        project: Of the run.
        name: Of the run, by which Trackio finds it again; one that no other run has by default.
        group: Of runs, in the dashboard.
        space_id: A Space of Hugging Face to log to; local files by default, in ``TRACKIO_DIR``.
    """

    def __init__(
        self, project: str, name: str | None = None, group: str | None = None, space_id: str | None = None
    ) -> None:
        super().__init__()
        self.project = project
        self.run_name = name or f"{time.strftime('%Y%m%d_%H%M%S')}-{secrets.token_hex(3)}"
        self.group = group
        self.space_id = space_id
        self.config: dict[str, Any] = {}
        self.has_begun = False
        self._run: Any = None

    @property
    def name(self) -> str:
        """The project."""
        return self.project

    @property
    def version(self) -> str:
        """The name of the run."""
        return self.run_name

    @property
    def experiment(self) -> Any:
        """Trackio's run, which begins here or goes on."""
        import trackio

        if self._run is None:
            self._run = trackio.init(
                self.project, self.run_name, self.group, self.space_id, config=self.config, resume="allow"
            )
            self.has_begun = True
        return self._run

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Add to the run's configuration, which Trackio writes with the first metrics."""
        self.experiment.config.update(vars(params) if isinstance(params, Namespace) else params)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics."""
        self.experiment.log(dict(metrics), step=step)

    def finalize(self, status: str) -> None:
        """Write what is still to be written."""
        if self._run is not None:
            import trackio

            trackio.finish()
            self._run = None


class TrackioTracker(Tracker):
    """A run of Trackio."""

    LOGGER = "TrackioLogger"

    def run_id(self) -> str | None:
        """The name of the run, once it has begun."""
        name: str = self.logger.run_name
        return name if self.logger.has_begun else None

    def reopen(self, run_id: str) -> str | None:
        """Take the run's name, with which Trackio goes on with it."""
        from trackio import SQLiteStorage

        if self.logger.has_begun and self.logger.run_name != run_id:
            return f"the Trackio run {run_id} is not gone on with, as this is {self.logger.run_name}"
        self.logger.run_name = run_id
        for row in SQLiteStorage.get_logs(self.logger.project, run_id) if self.is_known else []:
            self.held |= {name: max(row["step"], self.held.get(name, -1)) for name in row}
        return None

    @property
    def is_known(self) -> bool:
        """Whether the points are in local files."""
        return self.logger.space_id is None

    def branch(self, parent: Parent) -> None:
        """Put the run into the group of the one before, with where it branched off in its configuration."""
        self.logger.group = self.logger.group or parent.run_id
        self.logger.config |= parent.as_config()

    def send(self, metrics: Mapping[str, float], step: int | None) -> None:
        """Log metrics with what their steps count, to draw them against."""
        axes = {AXES[name.split("/")[0]]: step for name in metrics if step is not None and name.split("/")[0] in AXES}
        super().send({**metrics, **axes}, step)

    def name_of(self, metric: str) -> str:
        """The name of a metric, which is the same."""
        return metric
