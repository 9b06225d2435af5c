"""The log files of a run that is continued: the same directory, and no point twice.

TensorBoard's ``purge_step`` cannot do this, as one threshold serves all tags of a directory, of which some count train
iterations and some env steps. A checkpoint therefore holds how far each file reached, and a resume cuts the files
back to that. What is cut off is kept in a folder of its own, under a name that no reader takes for a log.
"""

import csv
import os
import shutil
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

EVENT_FILES = "events.out.tfevents.*"
CSV_FILE = "metrics.csv"
REPLACED = "replaced"
CSV_KEPT = "metrics.before-resume.csv"


def measure_logs(loggers: list[Logger], run: Path) -> list[dict[str, Any]]:
    """How far the files of each local logger reach: bytes of an event file, rows of a CSV file; flushes them first.

    Args:
        loggers: Any; those that do not write to local directories are passed over.
        run: The run's directory, from which a logger's own may differ.
    """
    logs = []
    for logger in _local(loggers):
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.flush()
            reached = {path.name: path.stat().st_size for path in Path(logger.log_dir).glob(EVENT_FILES)}
        else:
            logger.save()
            path = Path(logger.log_dir, CSV_FILE)
            reached = {CSV_FILE: path.read_bytes().count(b"\n") - 1} if path.is_file() else {}
        folder = Path(logger.root_dir, _version_name(logger))
        logs.append({"class": type(logger).__name__, "folder": os.path.relpath(folder, run), "reached": reached})
    return logs


def continue_logs(loggers: list[Logger], run: Path, logs: list[dict[str, Any]], cut: bool) -> list[str]:
    """Make the loggers go on where a run's loggers wrote, after the last point that its checkpoint knows.

    To be called before the loggers are used, since the choice of a directory cannot be taken back afterwards.

    Args:
        loggers: Those of the trainer that continues the run. One is left alone where the run had none of its kind, or
            none of the files that the run wrote are there: a checkpoint may have been copied beside other logs.
        run: The run's directory.
        logs: From :func:`measure_logs`.
        cut: Whether to take away what lies after the checkpoint.

    Returns:
        What is missing, in words.
    """
    missing = []
    waiting = list(logs)
    for logger in _local(loggers):
        log = next((log for log in waiting if log["class"] == type(logger).__name__), None)
        if log is None:
            continue
        waiting.remove(log)
        folder, reached = Path(os.path.normpath(run / log["folder"])), log["reached"]
        files = folder / (getattr(logger, "sub_dir", None) or "")
        if reached and not any((files / name).is_file() for name in [*reached, CSV_KEPT]):
            continue
        logger._root_dir, logger._name, logger._version = str(folder.parent.parent), folder.parent.name, folder.name
        if isinstance(logger, CSVLogger):
            logger._save_dir = str(folder.parent.parent)
            complete = _continue_csv(logger, files, reached.get(CSV_FILE, 0), cut)
        else:
            complete = not cut or _cut_events(files, reached)
            _open_as_latest(logger, files)
        if not complete:
            missing.append(f"log: points before the checkpoint are not in {files.name} any more")
    return missing


def open_csv(loggers: list[Logger]) -> None:
    """Open CSV files in a directory of which only the lock is there, which Lightning would warn of."""
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", r"Experiment logs directory")
                _ = logger.experiment


def place_aside(folder: Path, name: str) -> Path:
    """A free path in the folder for what a resume replaces."""
    replaced = folder / REPLACED
    replaced.mkdir(exist_ok=True)
    number = 1
    while (replaced / f"{name}.{number}").exists():
        number += 1
    return replaced / f"{name}.{number}"


def _version_name(logger: TensorBoardLogger | CSVLogger) -> str:
    return logger.version if isinstance(logger.version, str) else f"version_{logger.version}"


def _local(loggers: list[Logger]) -> list[TensorBoardLogger | CSVLogger]:
    return [logger for logger in loggers if isinstance(logger, TensorBoardLogger | CSVLogger)]


def _cut_events(folder: Path, reached: dict[str, int]) -> bool:
    """Cut the event files of a folder; whether all that is to be left was there."""
    for path in folder.glob(EVENT_FILES):
        length = reached.get(path.name, 0)
        if path.stat().st_size <= length:
            continue
        with path.open("rb") as file, place_aside(folder, path.name.replace("tfevents", "cut")).open("wb") as aside:
            file.seek(length)
            shutil.copyfileobj(file, aside)
        if length:
            os.truncate(path, length)
        else:
            path.unlink()
    left = {path.name: path.stat().st_size for path in folder.glob(EVENT_FILES)}
    return left == reached


def _open_as_latest(logger: TensorBoardLogger, folder: Path) -> None:
    """Open a new event file whose name sorts behind all others.

    Readers take the files in the order of their names, which begin with the second that they were made in, and a clock
    may have been set back.
    """
    seconds = [int(path.name.split(".")[3]) for path in folder.glob(EVENT_FILES) if path.name.split(".")[3].isdigit()]
    moment = max(time.time(), max(seconds, default=0) + 1)
    with patch("tensorboard.summary.writer.event_file_writer.time", SimpleNamespace(time=lambda: moment)):
        _ = logger.experiment


def _continue_csv(logger: CSVLogger, folder: Path, rows: int, cut: bool) -> bool:
    """Cut the CSV file of a folder and make the logger append to it; whether all that is to be left was there."""
    path, kept = folder / CSV_FILE, folder / CSV_KEPT
    # Lightning deletes the file when it opens the directory, so until the new one is there it has another name.
    if path.is_file():
        path.replace(kept)
    history = _csv_rows(kept)[: rows if cut else None]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Experiment logs directory")
        writer = logger.experiment
    if history:
        writer.metrics_keys = list(history[0])
        partial = path.with_suffix(".partial")
        with partial.open("w", newline="") as file:
            table = csv.DictWriter(file, fieldnames=writer.metrics_keys)
            table.writeheader()
            table.writerows(history)
        partial.replace(path)
    return len(history) >= rows


def _csv_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
