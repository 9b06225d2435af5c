"""The log files of a run that is continued: the same directory, and no point twice.

TensorBoard's ``purge_step`` cannot do this, as one threshold serves all tags of a directory, of which some count train
iterations and some env steps. A checkpoint therefore holds how far each file reached, and a resume cuts the files
back to that. What is cut off is kept in a folder of its own, under a name that no reader takes for a log.
"""

import csv
import io
import os
import re
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from pl_rl.files.writing import LOG_FILES, check_names, is_regular, put_aside, shorten, write_whole
from pl_rl.runs.directory import display_path
from pl_rl.runs.identity import has_link_below, identity_of, is_log_of
from pl_rl.runs.log_files import CSV_FILE, EventProgress, damage_of, read_table
from pl_rl.runs.log_meter import Log, event_files, local_loggers, read_logs, write_into

CSV_KEPT = "metrics.before-resume.csv"


def continue_logs(loggers: list[Logger], run: Path, logs: list[dict[str, Any]], run_id: str | None) -> list[str]:
    """Make the loggers go on where a run's loggers wrote, after the last point that its checkpoint knows.

    To be called before the loggers are used, since the choice of a directory cannot be taken back afterwards.

    Args:
        loggers: Those of the trainer that continues the run. One is left alone where the run had none of its kind, or
            where the folder is not the run's: a checkpoint may have been copied beside other logs, or say anything.
        run: The run's directory.
        logs: From :func:`pl_rl.runs.log_meter.measure_logs`.
        run_id: The checkpoint's, if it has one.

    Returns:
        What is missing, in words.

    Raises:
        UsageError: If the logs are not described as they should be, or something else has the name of a file.
    """
    missing = []
    found = []
    waiting = read_logs(logs)
    for logger in local_loggers(loggers):
        log = next((log for log in waiting if log.kind == type(logger).__name__), None)
        if log is None:
            continue
        waiting.remove(log)
        folder = Path(os.path.normpath(run / log.folder))
        files = folder / (getattr(logger, "sub_dir", None) or "")
        if not is_log_of(folder, run, run_id) or has_link_below(folder, files) or _is_expanded(files):
            missing.append(f"log: {display_path(files)} may be another run's, so it is left alone and a new one begins")
        elif _is_there(log, folder, files):
            check_names(files, LOG_FILES)  # of all, before a file of one is touched
            found.append((logger, folder, files, log))
    for logger, folder, files, log in found:
        missing += [f"log: {fault}" for fault in _continue(logger, folder, files, log)]
    return missing


def _is_there(log: Log, folder: Path, files: Path) -> bool:
    """Whether a folder has files of a log, or says that it is its; a checkpoint may have been copied without them."""
    left = any(is_regular(files / name) for name in [*log.reached, CSV_KEPT])
    return left or not log.reached or identity_of(folder) is not None


def _continue(logger: TensorBoardLogger | CSVLogger, folder: Path, files: Path, log: Log) -> list[str]:
    """Let a logger go on in a folder; what is missing there, in words."""
    write_into(logger, folder)
    if isinstance(logger, CSVLogger):
        faults = _continue_csv(logger, files, log)
    else:
        faults = _faults_of_events(files, log)
        _cut_events(files, log.reached)
        _open_as_latest(logger, files)
    return faults + [f"{name} was deleted or changed while the run wrote to it" for name in log.lost]


def open_csv(loggers: list[Logger]) -> None:
    """Open CSV files in a directory of which only the lock is there, which Lightning would warn of."""
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", r"Experiment logs directory")
                _ = logger.experiment


def _is_expanded(path: Path) -> bool:
    """Whether TensorBoard would write somewhere else, as it takes ``$NAME`` for a variable."""
    # As TensorBoard does it: Path.expanduser raises where there is no such user.
    return os.path.expanduser(os.path.expandvars(path)) != str(path)  # noqa: PTH111


def _faults_of_events(folder: Path, log: Log) -> list[str]:
    """What is not there any more of what the event files of a folder held, in words."""
    faults, short = [], False
    for name, length in log.reached.items():
        path = folder / name
        if not is_regular(path) or path.stat().st_size < length:
            short = True
        elif name in log.digests:
            progress = EventProgress()
            progress.extend(path, length)
            if progress.digest() != log.digests[name]:
                faults.append(damage_of(path, length) or f"{name} is not what was logged")
        else:
            faults += [fault for fault in [damage_of(path, length)] if fault is not None]
    return [*([f"points before the checkpoint are not in {folder.name} any more"] if short else []), *faults]


def _cut_events(folder: Path, reached: dict[str, int]) -> None:
    """Take away what lies behind the checkpoint."""
    for path in event_files(folder):
        length = reached.get(path.name, 0)
        if path.stat().st_size > length:
            put_aside(path, folder, path.name.replace("tfevents", "cut"), since=length)
            if length:
                shorten(path, length)
            else:
                path.unlink()


def _open_as_latest(logger: TensorBoardLogger, folder: Path) -> None:
    """Open a new event file whose name sorts behind all others.

    Readers take the files in the order of their names, which begin with the second that they were made in, and a clock
    may have been set back.
    """
    names = [re.match(r"events\.out\.tfevents\.(\d{1,10})\.", path.name) for path in event_files(folder)]
    moment = max([time.time(), *(int(name[1]) + 1 for name in names if name is not None)])
    with patch("tensorboard.summary.writer.event_file_writer.time", SimpleNamespace(time=lambda: moment)):
        _ = logger.experiment


def _continue_csv(logger: CSVLogger, folder: Path, log: Log) -> list[str]:
    """Cut the CSV file of a folder and make the logger append to it; what is missing or damaged, in words."""
    path, kept = folder / CSV_FILE, folder / CSV_KEPT
    table = read_table(path if is_regular(path) else kept)
    rows = log.reached.get(CSV_FILE, 0)
    damaged = sum(row is None for row in table.rows[:rows])
    faults = []
    if len(table.rows) < rows:
        faults.append(f"points before the checkpoint are not in {folder.name} any more")
    if damaged:
        faults.append(f"{damaged:,} of {rows:,} rows of {CSV_FILE} are damaged, and left out")
    elif not faults and table.digest(rows) != log.digests.get(CSV_FILE, table.digest(rows)):
        faults.append(f"{CSV_FILE} is not what was logged")
    # Lightning deletes the file when it opens the directory, so until the new one is there it has another name.
    if is_regular(path):
        path.replace(kept)
    history = [row for row in table.rows[:rows] if row is not None]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Experiment logs directory")
        writer = logger.experiment
    if history:
        writer.metrics_keys = list(table.names)
        text = io.StringIO(newline="")
        output = csv.DictWriter(text, fieldnames=writer.metrics_keys)
        output.writeheader()
        output.writerows(history)
        write_whole(path, text.getvalue().encode())
    return faults
