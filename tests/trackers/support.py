"""Runs that a tracker follows, and what it has of them, by its own account."""

import functools
import hashlib
import json
import tempfile
from pathlib import Path

import pytest
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

import pl_rl
from pl_rl.callbacks import RunCheckpoint
from pl_rl.callbacks.run_directory import run_directory
from tests.support import small_ppo

# What differs between two processes.
UNEQUAL = ("time/", "evaluator/")


def wandb_logger():
    return WandbLogger(project="test", offline=True, save_dir=Path.cwd())


def mlflow_logger():
    return MLFlowLogger("test", tracking_uri=mlflow_uri())


def trackio_logger():
    from pl_rl.trackers.trackio import TrackioLogger

    return TrackioLogger(trackio_project())


def trackio_project():
    """Of the working directory, as Trackio has one folder for all projects of a process."""
    return f"test-{hashlib.sha256(str(Path.cwd()).encode()).hexdigest()[:16]}"


def trackio_ids():
    from trackio import Api

    return sorted(run.name for run in Api().runs(trackio_project()))


def trackio_points(name, axis="step"):
    from trackio import SQLiteStorage

    points = {}
    for row in SQLiteStorage.get_logs(trackio_project(), name):
        for metric, value in row.items():
            if "/" in metric:
                points.setdefault(metric, []).append((row.get(axis), value))
    return points


def trackio_config(name):
    from trackio import Api

    [run] = [run for run in Api().runs(trackio_project()) if run.name == name]
    return run.config


def trackio_said(name):
    config = trackio_config(name)
    return {
        "parent": config["_Group"],
        "checkpoint": config["parent_checkpoint"],
        "env_steps": config["parent_env_steps"],
    }


def wandb_config(run_id):
    [run] = wandb_records(run_id, "run")[:1]
    later = [item for update in wandb_records(run_id, "config") for item in update.update]
    return {item.key: json.loads(item.value_json) for item in [*run.config.update, *later] if item.key}


def mlflow_config(run_id):
    return {name: literal(value) for name, value in mlflow_client().get_run(run_id).data.params.items()}


def literal(text):
    return int(text) if text.isdecimal() else text


def train(logger, until, ckpt_path=None, branch=False, **settings):
    """The directory of a run that keeps the checkpoint of each iteration."""
    model = small_ppo(total_env_steps=64_000, compile_update=False, eval_freq=4, eval_episodes=2, **settings)
    checkpoint = RunCheckpoint(last_every_n_iterations=3, keep_every_n_iterations=1, keep_last_n=-1)
    trainer = pl_rl.Trainer(
        accelerator="cpu", logger=logger, max_epochs=until, log_every_n_steps=1, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[checkpoint],
    )  # fmt: skip
    trainer.fit(model, ckpt_path=ckpt_path, branch=branch)
    return run_directory(trainer)


def checkpoint(run, iteration):
    return run / "checkpoints" / f"iteration_{iteration}.ckpt"


def wandb_ids():
    return sorted({path.stem.removeprefix("run-") for path in Path("wandb").glob("*/run-*.wandb")})


def wandb_points(run_id, axis="trainer/global_step"):
    """All points of a run, as ``{metric: [(step, value), ...]}``, in the order in which they were logged."""
    from pl_rl.trackers.weights_and_biases import rows_of, wait_for_files

    assert wait_for_files(Path(), run_id)
    points = {}
    for row in rows_of(Path(), run_id):
        for name, value in row.items():
            if "/" in name and name != "trainer/global_step":
                points.setdefault(name, []).append((row.get(axis), value))
    return points


def wandb_records(run_id, kind):
    from wandb.proto.wandb_internal_pb2 import Record

    from pl_rl.trackers import weights_and_biases as module

    assert module.wait_for_files(Path(), run_id)
    files = sorted(Path().glob(f"wandb/*-{run_id}/run-{run_id}.wandb"))
    records = [Record.FromString(content) for path in files for content in module._records(path.read_bytes())]
    return [getattr(record, kind) for record in records if record.WhichOneof("record_type") == kind]


def wandb_axes(run_id):
    """What each metric is drawn against."""
    return {metric.name: metric.step_metric for metric in wandb_records(run_id, "metric") if metric.step_metric}


def wandb_said(run_id):
    """What a branch says of its parent."""
    [run] = wandb_records(run_id, "run")[:1]
    config = wandb_config(run_id)
    return {
        "parent": run.run_group,
        "checkpoint": config["parent_checkpoint"],
        "env_steps": config["parent_env_steps"],
    }


def mlflow_said(run_id):
    tags = mlflow_client().get_run(run_id).data.tags
    return {
        "parent": tags["mlflow.parentRunId"],
        "checkpoint": tags["parent_checkpoint"],
        "env_steps": int(tags["parent_env_steps"]),
    }


def mlflow_uri():
    database = Path("mlflow.db").absolute()
    if not database.exists():
        database.write_bytes(empty_database())
    return f"sqlite:///{database}"


@functools.cache
def empty_database():
    """As MLflow makes it, which takes a second."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mlflow.db")
        mlflow = pytest.importorskip("mlflow")
        mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
        return path.read_bytes()


def mlflow_client():
    return pytest.importorskip("mlflow").MlflowClient(mlflow_uri())


def mlflow_ids():
    client = mlflow_client()
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    return sorted(run.info.run_id for run in runs)


def mlflow_points(run_id):
    client = mlflow_client()
    names = client.get_run(run_id).data.metrics
    histories = {name: client.get_metric_history(run_id, name) for name in names if "/" in name}
    return {name: [(point.step, point.value) for point in points] for name, points in histories.items()}


def reproducible(points):
    """Those that another process makes again."""
    return {name: values for name, values in points.items() if not name.startswith(UNEQUAL)}
