"""MLflow, in a database, in files or on a server."""

import re

from pl_rl.trackers.tracker import Parent, Tracker


class MLflowTracker(Tracker):
    """A run of MLflow."""

    LOGGER = "MLFlowLogger"

    def run_id(self) -> str | None:
        """The id of the run, once it has begun."""
        run_id: str | None = self.logger._run_id
        return run_id

    def reopen(self, run_id: str) -> str | None:
        """Take the run's id, and ask for the last step of each of its metrics."""
        from mlflow.exceptions import MlflowException

        if self.logger._run_id not in (None, run_id):
            return f"the MLflow run {run_id} is not gone on with, as this is {self.logger._run_id}"
        client = self.logger._mlflow_client
        try:
            run = client.get_run(run_id)
            if run.info.lifecycle_stage == "deleted":
                return f"the MLflow run {run_id} was deleted, and another has its points"
            for name in run.data.metrics:
                self.held[name] = max(point.step for point in client.get_metric_history(run_id, name))
            client.update_run(run_id, status="RUNNING")
        except MlflowException as error:
            self.held = {}
            return f"the MLflow run {run_id} is not gone on with, and another has its points: {_first_line(error)}"
        self.logger._run_id = run_id
        return None

    def branch(self, parent: Parent) -> None:
        """Make the run a child of the one before."""
        tags = {"parent_checkpoint": parent.checkpoint, "parent_env_steps": str(parent.env_steps)}
        if parent.run_id is not None:
            tags["mlflow.parentRunId"] = parent.run_id
        self.logger.tags = {**(self.logger.tags or {}), **tags}

    def name_of(self, metric: str) -> str:
        """The name of a metric, as Lightning changes it for MLflow."""
        return re.sub("[^a-zA-Z0-9_/. -]+", "", super().name_of(metric))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
