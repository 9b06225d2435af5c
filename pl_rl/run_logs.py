"""The log files of a run that is continued: the same directory, and no point twice.

TensorBoard's ``purge_step`` cannot do this, as one threshold serves all tags of a directory, of which some count train
iterations and some env steps. A checkpoint therefore holds how far each file reached, and a resume cuts the files
back to that. What is cut off is kept in a folder of its own, under a name that no reader takes for a log.
"""

import csv
import io
import os
import re
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from pl_rl.errors import UsageError
from pl_rl.files import LOG_FILES, check_names, is_regular, put_aside, shorten, write_whole
from pl_rl.log_files import CSV_FILE, EVENT_FILES, CSVProgress, EventProgress, Progress, damage_of, read_table
from pl_rl.run_identity import has_link_below, identity_of, is_log_of, mark
from pl_rl.runs import shown

CSV_KEPT = "metrics.before-resume.csv"


class Log(NamedTuple):
    """What a checkpoint knows of the files of one logger."""

    kind: str
    """Class of the logger."""
    folder: str
    """Relative to the run's directory."""
    reached: dict[str, int]
    """How far each file reached: bytes of an event file, rows of a CSV file."""
    digests: dict[str, str]
    """Of each file's content until there; those of the first format are not known."""
    lost: list[str]
    """Files that were deleted or changed while the run wrote to them."""


class LogMeter:
    """Measures the log files of a run at each of its saves, and notices if one is gone."""

    def __init__(self) -> None:
        self._progress: dict[Path, Progress] = {}
        self._lost: set[Path] = set()

    def measure(self, loggers: list[Logger], run: Path, run_id: str) -> list[dict[str, Any]]:
        """How far the files of each local logger reach; flushes them first, and notes in their folders whose they are.

        Args:
            loggers: Any; those that do not write to local directories are passed over.
            run: The run's directory, from which a logger's own may differ.
            run_id: Of the run.
        """
        logs = []
        for logger in _local(loggers):
            folder = Path(logger.root_dir, _version_name(logger))
            logger.save()
            if isinstance(logger, TensorBoardLogger):
                files = Path(logger.log_dir)
                found = _event_files(files)
            else:
                files = folder
                found = [files / CSV_FILE] if is_regular(files / CSV_FILE) else []
            if folder.is_dir():
                mark(folder, run, run_id)
            progress = {path.name: self._extended(path) for path in found}
            self._notice(files, found)
            logs.append(
                {
                    "class": type(logger).__name__,
                    "folder": os.path.relpath(folder, run),
                    "reached": {name: file.reached for name, file in progress.items()},
                    "digests": {name: file.digest() for name, file in progress.items()},
                    "lost": sorted(path.name for path in self._lost if path.parent == files),
                }
            )
        return logs

    def _extended(self, path: Path) -> Progress:
        progress = self._progress.setdefault(path, CSVProgress() if path.name == CSV_FILE else EventProgress())
        if not progress.extend(path):
            self._tell(path)
        return progress

    def _notice(self, folder: Path, found: list[Path]) -> None:
        for path in [path for path in self._progress if path.parent == folder and path not in found]:
            del self._progress[path]
            self._tell(path)

    def _tell(self, path: Path) -> None:
        if path not in self._lost:
            self._lost.add(path)
            sys.stderr.write(
                f"warning: {shown(path)} was deleted or changed while the run writes to it; what it held is lost, and "
                "the run goes on\n"
            )


def continue_logs(loggers: list[Logger], run: Path, logs: Any, run_id: str | None, cut: bool) -> list[str]:
    """Make the loggers go on where a run's loggers wrote, after the last point that its checkpoint knows.

    To be called before the loggers are used, since the choice of a directory cannot be taken back afterwards.

    Args:
        loggers: Those of the trainer that continues the run. One is left alone where the run had none of its kind, or
            where the folder is not the run's: a checkpoint may have been copied beside other logs, or say anything.
        run: The run's directory.
        logs: From :meth:`LogMeter.measure`.
        run_id: The checkpoint's, if it has one.
        cut: Whether to take away what lies after the checkpoint.

    Returns:
        What is missing, in words.

    Raises:
        UsageError: If the logs are not described as they should be, or something else has the name of a file.
    """
    missing = []
    waiting = read_logs(logs)
    for logger in _local(loggers):
        log = next((log for log in waiting if log.kind == type(logger).__name__), None)
        if log is None:
            continue
        waiting.remove(log)
        folder = Path(os.path.normpath(run / log.folder))
        files = folder / (getattr(logger, "sub_dir", None) or "")
        if not is_log_of(folder, run, run_id) or has_link_below(folder, files) or _is_expanded(files):
            missing.append(f"log: {shown(files)} may be another run's, so it is left alone and a new one begins")
        elif _is_there(log, folder, files):
            check_names(files, LOG_FILES)
            missing += [f"log: {fault}" for fault in _continue(logger, folder, files, log, cut)]
    return missing


def read_logs(logs: Any) -> list[Log]:
    """What a checkpoint says of its run's logs.

    Raises:
        UsageError: If it does not say it as :meth:`LogMeter.measure` does.
    """
    try:
        return [_log(log) for log in logs]
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UsageError(
            f"the checkpoint's account of its log files is damaged: {error}; use another checkpoint of the run"
        ) from error


def _log(log: Mapping[str, Any]) -> Log:
    read = Log(log["class"], log["folder"], log["reached"], log.get("digests") or {}, log.get("lost") or [])
    texts = [read.kind, read.folder, *read.reached, *read.digests, *read.digests.values(), *read.lost]
    for text in texts:
        if not isinstance(text, str) or not text.isprintable():
            raise ValueError(f"{text!r} is no name")
    for length in read.reached.values():
        if type(length) is not int or length < 0:
            raise ValueError(f"{length!r} is no length")
    for name in [*read.reached, *read.lost]:
        if "/" in name:
            raise ValueError(f"{name!r} is no name of a file")
    return read


def _is_there(log: Log, folder: Path, files: Path) -> bool:
    """Whether a folder has files of a log, or is known to be its; a checkpoint may have been copied without its logs."""
    left = any(is_regular(files / name) for name in [*log.reached, CSV_KEPT])
    return left or not log.reached or identity_of(folder) is not None


def _continue(logger: TensorBoardLogger | CSVLogger, folder: Path, files: Path, log: Log, cut: bool) -> list[str]:
    """Let a logger go on in a folder; what is missing there, in words."""
    logger._root_dir, logger._name, logger._version = str(folder.parent.parent), folder.parent.name, folder.name
    if isinstance(logger, CSVLogger):
        logger._save_dir = str(folder.parent.parent)
        faults = _continue_csv(logger, files, log, cut)
    else:
        faults = _faults_of_events(files, log)
        if cut:
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


def _version_name(logger: TensorBoardLogger | CSVLogger) -> str:
    return logger.version if isinstance(logger.version, str) else f"version_{logger.version}"


def _local(loggers: list[Logger]) -> list[TensorBoardLogger | CSVLogger]:
    return [logger for logger in loggers if isinstance(logger, TensorBoardLogger | CSVLogger)]


def _event_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(EVENT_FILES) if is_regular(path))


def _is_expanded(path: Path) -> bool:
    """Whether TensorBoard would write somewhere else, as it takes ``$NAME`` for a variable."""
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
    for path in _event_files(folder):
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
    names = [re.match(r"events\.out\.tfevents\.(\d{1,10})\.", path.name) for path in _event_files(folder)]
    moment = max([time.time(), *(int(name[1]) + 1 for name in names if name is not None)])
    with patch("tensorboard.summary.writer.event_file_writer.time", SimpleNamespace(time=lambda: moment)):
        _ = logger.experiment


def _continue_csv(logger: CSVLogger, folder: Path, log: Log, cut: bool) -> list[str]:
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
    history = [row for row in table.rows[: rows if cut else None] if row is not None]
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
