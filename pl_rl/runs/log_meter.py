"""How far the log files of a run reach, as each of its checkpoints remembers it."""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from pl_rl.errors import UsageError
from pl_rl.files.writing import is_regular
from pl_rl.runs.directory import display_path
from pl_rl.runs.identity import mark
from pl_rl.runs.log_files import CSV_FILE, EVENT_FILES, CSVProgress, EventProgress, Progress

# TensorBoard's texts at the steps, of both axes, at which a resume went on.
SEAM_TAGS = {"train_iter": "resume/train_iter", "env_steps": "resume/env_steps"}


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
    """Knows the log files of a run from one save to the next, and notices if one is gone."""

    def __init__(self) -> None:
        self._progress: dict[Path, Progress] = {}
        self._lost: set[Path] = set()

    def read(self, folder: Path, files: list[Path]) -> dict[str, Progress]:
        """Read what files have gained; says once of a file that it is not what it was.

        Args:
            folder: In which they lie.
            files: All of one kind that are there now; two loggers may share a folder.
        """
        for path in [path for path in self._progress if path.parent == folder and not is_regular(path)]:
            self._tell(path)
            del self._progress[path]
        for path in files:
            progress = self._progress.setdefault(path, CSVProgress() if path.name == CSV_FILE else EventProgress())
            if not progress.extend(path):
                self._tell(path)
        return {path.name: self._progress[path] for path in files}

    def lost(self, folder: Path) -> list[str]:
        """The files in a folder that were deleted or changed since the run began to write to them."""
        return sorted(path.name for path in self._lost if path.parent == folder)

    def _tell(self, path: Path) -> None:
        if path not in self._lost:
            self._lost.add(path)
            sys.stderr.write(
                f"warning: {display_path(path)} was deleted or changed while the run writes to it; what it held is "
                "lost, and the run goes on\n"
            )


def measure_logs(loggers: list[Logger], run: Path, run_id: str, meter: LogMeter) -> list[dict[str, Any]]:
    """How far the files of each local logger reach; flushes them first, and notes in their folders whose they are.

    Args:
        loggers: Any; those that do not write to local directories are passed over.
        run: The run's directory, from which a logger's own may differ.
        run_id: Of the run.
        meter: Of the run's files.
    """
    logs = []
    for logger in local_loggers(loggers):
        folder = Path(logger.root_dir, _version_name(logger))
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.flush()
            files = Path(logger.log_dir)
            found = event_files(files)
        else:
            logger.save()
            files = folder
            found = [files / CSV_FILE] if is_regular(files / CSV_FILE) else []
        if folder.is_dir():
            mark(folder, run, run_id)
        progress = meter.read(files, found)
        logs.append(
            {
                "class": type(logger).__name__,
                "folder": os.path.relpath(folder, run),
                "reached": {name: file.reached for name, file in progress.items()},
                "digests": {name: file.digest() for name, file in progress.items()},
                "lost": [name for name in meter.lost(files) if (name == CSV_FILE) == isinstance(logger, CSVLogger)],
            }
        )
    return logs


def read_logs(logs: list[dict[str, Any]]) -> list[Log]:
    """What a checkpoint, whose entries have been compared with its schema, says of its run's logs.

    Raises:
        UsageError: If a name is none that :func:`measure_logs` gives.
    """
    try:
        return [_log(log) for log in logs]
    except ValueError as error:
        raise UsageError(
            f"the checkpoint's account of its log files is damaged: {error}; use another checkpoint of the run"
        ) from error


def _log(log: Mapping[str, Any]) -> Log:
    read = Log(log["class"], log["folder"], log["reached"], log.get("digests", {}), log.get("lost", []))
    names = [read.kind, *read.reached, *read.digests, *read.digests.values(), *read.lost]
    for name in names:
        if "/" in name:
            raise ValueError(f"{name!r} is no name")
    for text in [*names, *read.folder.split("/")]:
        if re.search(r"[\x00-\x1f\x7f-\x9f]", text) or len(text.encode()) > 255:
            raise ValueError(f"{text[:255]!r} is no name")
    if len(read.folder) > 1000:
        raise ValueError("the path of a folder is too long")
    return read


def _version_name(logger: TensorBoardLogger | CSVLogger) -> str:
    return logger.version if isinstance(logger.version, str) else f"version_{logger.version}"


def local_loggers(loggers: list[Logger]) -> list[TensorBoardLogger | CSVLogger]:
    """Those that write to local directories."""
    return [logger for logger in loggers if isinstance(logger, TensorBoardLogger | CSVLogger)]


def write_into(logger: TensorBoardLogger | CSVLogger, folder: Path) -> None:
    """Let a logger write to a folder, wherever it was to write or has written before."""
    logger._root_dir, logger._name, logger._version = str(folder.parent.parent), folder.parent.name, folder.name
    logger._experiment = None
    if isinstance(logger, CSVLogger):
        logger._save_dir = str(folder.parent.parent)


def event_files(folder: Path) -> list[Path]:
    """The event files of a folder."""
    return sorted(path for path in folder.glob(EVENT_FILES) if is_regular(path))
