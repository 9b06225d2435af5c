"""The log files of a run that is continued: the same directory, and no point twice.

TensorBoard's ``purge_step`` cannot do this, as one threshold serves all tags of a directory, of which some count train
iterations and some env steps. A checkpoint therefore holds how far each file reached, and a resume cuts the files
back to that. What is cut off is kept in a folder of its own, under a name that no reader takes for a log.
"""

import csv
import os
import time
import warnings
from pathlib import Path
from typing import Any

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
        folder = Path(logger.log_dir)
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.flush()
            reached = {path.name: path.stat().st_size for path in folder.glob(EVENT_FILES)}
        else:
            logger.save()
            path = folder / CSV_FILE
            reached = {CSV_FILE: path.read_bytes().count(b"\n") - 1 if path.is_file() else 0}
        logs.append({"class": type(logger).__name__, "folder": os.path.relpath(folder, run), "reached": reached})
    return logs


def continue_logs(loggers: list[Logger], run: Path, logs: list[dict[str, Any]]) -> None:
    """Make the loggers go on where a run's loggers wrote, after the last point that its checkpoint knows.

    To be called before the loggers are used, since the choice of a directory cannot be taken back afterwards.

    Args:
        loggers: Those of the trainer that continues the run; one of a kind that the run did not have is left alone.
        run: The run's directory.
        logs: From :func:`measure_logs`.
    """
    waiting = list(logs)
    for logger in _local(loggers):
        log = next((log for log in waiting if log["class"] == type(logger).__name__), None)
        if log is None:
            continue
        waiting.remove(log)
        folder = Path(os.path.normpath(run / log["folder"]))
        logger._root_dir, logger._name, logger._version = str(folder.parent.parent), folder.parent.name, folder.name
        if isinstance(logger, CSVLogger):
            logger._save_dir = str(folder.parent.parent)
            _continue_csv(logger, folder, log["reached"].get(CSV_FILE, 0))
        else:
            _cut_events(folder, log["reached"])


def _local(loggers: list[Logger]) -> list[TensorBoardLogger | CSVLogger]:
    return [logger for logger in loggers if isinstance(logger, TensorBoardLogger | CSVLogger)]


def _cut_events(folder: Path, reached: dict[str, int]) -> None:
    for path in folder.glob(EVENT_FILES):
        length = reached.get(path.name, 0)
        tail = path.read_bytes()[length:]
        if not tail:
            continue
        replaced = folder / REPLACED
        replaced.mkdir(exist_ok=True)
        _unused(replaced / path.name.replace("tfevents", "cut")).write_bytes(tail)
        if length:
            os.truncate(path, length)
        else:
            path.unlink()
    # Readers take the files in the order of their names, which begin with the second that they were made in.
    while any(f".{int(time.time())}." in path.name for path in folder.glob(EVENT_FILES)):
        time.sleep(0.02)


def _continue_csv(logger: CSVLogger, folder: Path, rows: int) -> None:
    path, kept = folder / CSV_FILE, folder / CSV_KEPT
    # Lightning deletes the file when it opens the directory, so until the new one is there it has another name.
    if path.is_file():
        path.replace(kept)
    history = _csv_rows(kept)[:rows]
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


def _csv_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _unused(path: Path) -> Path:
    number = 1
    while path.with_name(f"{path.name}.{number}").exists():
        number += 1
    return path.with_name(f"{path.name}.{number}")
