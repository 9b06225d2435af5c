"""A directory for a run that begins, which no other run has or gets, whatever writes its logs.

It is the folder of the first logger that writes to local files of its own, and else a new ``version_N`` under the log
root. A run in another place is noted under the log root by a link of the next number, so that all runs that began in a
folder are found there in the order in which they began.
"""

import contextlib
import errno
import os
import re
import sys
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from pl_rl.errors import UsageError
from pl_rl.files.writing import CHECKPOINTS
from pl_rl.runs.directory import display_path
from pl_rl.runs.identity import mark_new
from pl_rl.runs.log_files import CSV_FILE
from pl_rl.runs.log_meter import event_files, local_loggers, write_into

VERSION = "version_"


def claim(loggers: list[Logger], log_root: Path, run_id: str) -> Path | None:
    """Make or take the directory of a run that begins, and mark it as the run's.

    Args:
        loggers: Of the run. Those without a version get their next one, where two share a folder the same.
        log_root: Folder of the ``version_N`` folders.
        run_id: Of the run.

    Returns:
        The directory; ``None`` where files go to a remote store alone.

    Raises:
        UsageError: If the folder of a logger is another run's, or nothing can be written.
    """
    try:
        number_loggers(loggers)
        own = next((logger for logger in local_loggers(loggers) if "://" not in logger.root_dir), None)
        if own is None and "://" in str(log_root):
            return None
        run = Path(own.log_dir).absolute() if own is not None else _new_version(log_root)
        if (own is not None and _is_used(own, run)) or not mark_new(run, run_id):
            raise UsageError(
                f"{display_path(run)!r} is the directory of a run, and each has its own; to go on with it add "
                "--ckpt_path last (in Python fit(model, ckpt_path='last')), to begin another leave out the logger's "
                "version, or make a new Trainer with new loggers"
            )
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise
        raise UsageError(
            f"no run directory can be made under {display_path(error.filename or log_root)!r}: {error.strerror}; mend "
            "that, or choose another folder with --trainer.default_root_dir"
        ) from error
    _note(run, log_root)
    return run


def number_loggers(loggers: list[Logger]) -> None:
    """Give versions to loggers that have none yet, and make their folders; two in one folder get the same.

    Args:
        loggers: Any; those that do not write to local files are passed over.

    Raises:
        OSError: If a folder cannot be made.
    """
    made: dict[str, Path] = {}
    for logger in _unnumbered(loggers):
        root = _root_of(logger)
        key = os.path.realpath(root)
        if key not in made:
            made[key] = _new_version(Path(root))
        logger._version = _number(made[key].name)


def join_loggers(loggers: list[Logger], run: Path, log_root: Path) -> None:
    """Let loggers that a run did not have before write into its directory, where they would write beside it.

    Otherwise the folder of a logger would be taken for a newer run.

    Args:
        loggers: As for :func:`number_loggers`, which gives others their versions.
        run: The directory of the run that goes on.
        log_root: Folder of the ``version_N`` folders.

    Raises:
        OSError: If a folder cannot be made.
    """
    beside = {os.path.realpath(run.parent), os.path.realpath(log_root)}
    for logger in _unnumbered(loggers):
        if os.path.realpath(_root_of(logger)) in beside:
            write_into(logger, run if not _has_log(logger, run) else _new_folder(run, "log_"))
    number_loggers(loggers)


def _unnumbered(loggers: list[Logger]) -> list[TensorBoardLogger | CSVLogger]:
    return [log for log in local_loggers(loggers) if log._version is None and "://" not in log.root_dir]


def _root_of(logger: TensorBoardLogger | CSVLogger) -> str:
    """The folder of a logger's versions, as it will be; TensorBoard's takes ``$NAME`` for a variable."""
    if isinstance(logger, CSVLogger):
        return logger.root_dir
    return os.path.expanduser(os.path.expandvars(logger.root_dir))  # noqa: PTH111


def _is_used(logger: TensorBoardLogger | CSVLogger, run: Path) -> bool:
    """Whether there are files of a run in a logger's folder that this process has not begun."""
    if any((run / CHECKPOINTS).glob("*.ckpt")):
        return True
    return logger._experiment is None and (bool(event_files(run)) or (run / CSV_FILE).exists())


def _has_log(logger: TensorBoardLogger | CSVLogger, folder: Path) -> bool:
    return (folder / CSV_FILE).exists() if isinstance(logger, CSVLogger) else bool(event_files(folder))


def _new_version(root: Path) -> Path:
    return _new_folder(root, VERSION)


def _new_folder(root: Path, prefix: str) -> Path:
    """Make the next numbered folder, which is nobody else's however many ask in one moment.

    Raises:
        OSError: If it cannot be made.
    """
    root.mkdir(parents=True, exist_ok=True)
    while True:
        folder = _next(root, prefix)
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder


def _next(root: Path, prefix: str) -> Path:
    numbers = [_number(path.name, prefix) for path in root.iterdir()]
    return root / f"{prefix}{1 + max((number for number in numbers if number is not None), default=-1)}"


def _number(name: str, prefix: str = VERSION) -> int | None:
    match = re.fullmatch(rf"{prefix}(\d{{1,18}})", name)
    return int(match[1]) if match else None


def _note(run: Path, log_root: Path) -> None:
    """Leave a link to a run that lies elsewhere under the log root."""
    real_root, real_run = os.path.realpath(log_root), os.path.realpath(run)
    if "://" in str(log_root) or (os.path.dirname(real_run) == real_root and _number(run.name) is not None):  # noqa: PTH120
        return
    try:
        log_root.mkdir(parents=True, exist_ok=True)
        while True:
            with contextlib.suppress(FileExistsError):
                # Relative, so that all can be moved together.
                _next(log_root, VERSION).symlink_to(os.path.relpath(real_run, real_root), target_is_directory=True)
                return
    except OSError as error:
        sys.stderr.write(
            f"warning: {display_path(run)} cannot be noted under {display_path(log_root)} ({error.strerror}), so "
            "--ckpt_path last does not find it; go on with it by its path\n"
        )
