"""Words for loggers, as ``--trainer.logger wandb``."""

import contextlib
import fcntl
import os
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from pl_rl.errors import UsageError
from pl_rl.files.writing import open_regular
from pl_rl.trackers import LoggerName
from pl_rl.trackers.trackio import TrackioLogger

PROJECT = "pl_rl"
NEEDED = {"wandb": ("wandb",), "mlflow": ("mlflow", "sqlalchemy"), "trackio": ("trackio",)}
"""Modules that a word needs, all of which the extra of the same name installs."""
PACKAGES = {"mlflow": ("mlflow-skinny", "sqlalchemy", "alembic")}
CLASSES = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow", "TrackioLogger": "trackio"}


def logger_named(name: str, folder: Path) -> Logger:
    """A logger with sensible defaults.

    Args:
        name: A :data:`LoggerName`.
        folder: For its files, the Trainer's ``default_root_dir``.

    Raises:
        UsageError: If there is no such word, or its package is missing.
    """
    if name not in get_args(LoggerName):
        raise UsageError(f"there is no logger {name!r}; the words for loggers are {', '.join(get_args(LoggerName))}")
    check_package(name)
    if name == "tensorboard":
        return TensorBoardLogger(folder)
    if name == "csv":
        return CSVLogger(folder)
    if name == "wandb":
        return WandbLogger(project=os.environ.get("WANDB_PROJECT", PROJECT), save_dir=folder)
    if name == "trackio":
        return TrackioLogger(os.environ.get("TRACKIO_PROJECT", PROJECT), space_id=os.environ.get("TRACKIO_SPACE_ID"))
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    return _with_database(experiment, folder) if uri is None else MLFlowLogger(experiment, tracking_uri=uri)


def _with_database(experiment: str, folder: Path) -> MLFlowLogger:
    """A logger whose database and experiment are there; MLflow fails where several processes make them at once."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = open_regular(folder / ".mlflow.lock", os.O_WRONLY | os.O_CREAT)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.lockf(descriptor, fcntl.LOCK_EX)
        logger = MLFlowLogger(experiment, tracking_uri=f"sqlite:///{folder.absolute()}/mlflow.db")
        if logger._mlflow_client.get_experiment_by_name(experiment) is None:
            logger._mlflow_client.create_experiment(experiment)
    finally:
        os.close(descriptor)
    return logger


def check_package(logger: str) -> None:
    """Refuse a logger whose package is not installed.

    Args:
        logger: A word, or the path of a class.

    Raises:
        UsageError: With what to install.
    """
    word = CLASSES.get(logger.rpartition(".")[2], logger)
    missing = [module for module in NEEDED.get(word, ()) if find_spec(module) is None]
    if missing:
        packages = " ".join(PACKAGES.get(word, (word,)))
        raise UsageError(
            f"the logger {logger} needs the package {missing[0]}, which is not installed; run pip install {packages} "
            f"(the extra pl-rl[{word}] is the same)"
        )
