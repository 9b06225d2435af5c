"""The log files of a run that is continued: the same directory, and no point twice.

TensorBoard's ``purge_step`` cannot do this, as one threshold serves all tags of a directory, of which some count train
iterations and some env steps. A checkpoint therefore holds how far each file reached, and a resume cuts the files
back to that. What is cut off is kept in a folder of its own, under a name that no reader takes for a log.
"""

import csv
import os
import warnings
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

CSV_FILE = "metrics.csv"
REPLACED = "replaced"
CSV_KEPT = "metrics.before-resume.csv"


def measure_logs(loggers: list[Logger]) -> dict[str, int]:
    """How far each log file reaches: bytes of an event file, rows of a CSV file; flushes them first."""
    reached = {}
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.flush()
            for path in Path(logger.log_dir).glob("events.out.tfevents.*"):
                reached[path.name] = path.stat().st_size
        elif isinstance(logger, CSVLogger):
            logger.save()
            path = Path(logger.log_dir, CSV_FILE)
            reached[CSV_FILE] = path.read_bytes().count(b"\n") - 1 if path.is_file() else 0
    return reached


def continue_logs(loggers: list[Logger], run: Path, reached: dict[str, int]) -> None:
    """Make the loggers go on in a run's directory, after the last point that its checkpoint knows.

    To be called before the loggers are used, since the choice of a directory cannot be taken back afterwards.

    Args:
        loggers: Those that write to local directories are redirected; others are left alone.
        run: The run's directory.
        reached: From :func:`measure_logs`.
    """
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger | CSVLogger):
            logger._root_dir, logger._name, logger._version = str(run.parent.parent), run.parent.name, run.name
            if isinstance(logger, CSVLogger):
                logger._save_dir = str(run.parent.parent)
                _continue_csv(logger, run, reached.get(CSV_FILE, 0))
            else:
                _cut_events(run, reached)


def _cut_events(run: Path, reached: dict[str, int]) -> None:
    for path in run.glob("events.out.tfevents.*"):
        length = reached.get(path.name, 0)
        tail = path.read_bytes()[length:]
        if not tail:
            continue
        replaced = run / REPLACED
        replaced.mkdir(exist_ok=True)
        _unused(replaced / path.name.replace("tfevents", "cut")).write_bytes(tail)
        if length:
            os.truncate(path, length)
        else:
            path.unlink()


def _continue_csv(logger: CSVLogger, run: Path, rows: int) -> None:
    path, kept = run / CSV_FILE, run / CSV_KEPT
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
