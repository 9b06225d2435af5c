"""Files that are written into a run's directory, whatever stands there under their names.

A run's directory may come from elsewhere. What has the name of one of its files may then be a link to a file of the
user's, another name of one (a hard link), a pipe or a device. So nothing here follows a link, changes a file in place
or waits for a pipe: files are made under a name that was free, and renamed.
"""

import contextlib
import errno
import os
import shlex
import stat
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import IO

from pl_rl.errors import UsageError

CHECKPOINTS, REPLACED = "checkpoints", "replaced"
# What is written into a run's directory and its folder of checkpoints, and by the loggers into theirs.
RUN_FILES = (".lock*", ".run_id", ".*.partial", ".*.replaced", "command.yaml", "evaluations.csv", "tracker_*.jsonl")
LOG_FILES = (".run_id", ".*.partial", "hparams.yaml", "config*.yaml", "metrics*.csv", "events.out.tfevents.*")

_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}
_CHUNK = 2**20


def kind_of(path: Path) -> str | None:
    """What stands at a path, in words; ``None`` for a regular file and for nothing."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no regular file")


def is_regular(path: Path) -> bool:
    """Whether a file is there that is neither a link nor anything else than bytes on a disk."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def check_names(folder: Path, patterns: tuple[str, ...]) -> None:
    """Refuse a folder of a run in which links, pipes or folders have the names of files that are written there.

    Before anything is, since Lightning and TensorBoard do follow links.

    Raises:
        UsageError: With the first of them.
    """
    for place in (folder, folder / CHECKPOINTS):
        for path in sorted(place.iterdir()) if place.is_dir() else []:
            is_place = path.name in (CHECKPOINTS, REPLACED)
            if not is_place and not any(fnmatch(path.name, pattern) for pattern in patterns):
                continue
            kind, right = kind_of(path) or "a file", "a folder" if is_place else "a file"
            if kind != right:
                command = shlex.join(["mv", str(path), str(path.with_name(f"aside-{path.name}"))])
                # Not where the name has commands for a terminal in it.
                way_out = f": {command}" if command.isprintable() else ""
                raise UsageError(
                    f"{str(path)!r} is {kind} where {right} of the run belongs, and a run writes to nothing outside of "
                    f"its directory; put what it stands for in its place, or move it away{way_out}"
                )


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a regular file.

    Raises:
        OSError: If it is something else, or cannot be opened.
    """
    _refuse_other_kinds(path)
    # The rest is for what takes its place in this moment: O_NONBLOCK does not wait for a pipe's other end.
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        _refuse_other_kinds(path)
    return descriptor


def reading(path: Path) -> IO[bytes]:
    """A regular file to read from.

    Raises:
        OSError: If it is something else, or cannot be opened.
    """
    return os.fdopen(open_regular(path), "rb")


def create(path: Path) -> IO[bytes]:
    """A new file to write to, in the place of one that may be there.

    Raises:
        OSError: If a folder is there, or none can be made.
    """
    path.unlink(missing_ok=True)
    return create_new(path)


def create_new(path: Path) -> IO[bytes]:
    """A new file to write to.

    Raises:
        FileExistsError: If anything has its name.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), "wb")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is whole or not there, in the place of one that may be there.

    Raises:
        OSError: If it cannot be written.
    """
    with replacing(path) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to that takes its place when all is written.

    Raises:
        OSError: If it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with create(partial) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        flush(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def flush(path: Path) -> None:
    """What the system has of a file or folder goes to the disk.

    Raises:
        OSError: If it cannot be opened or written.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_aside(path: Path, folder: Path, name: str, since: int = 0) -> None:
    """Keep a copy of a file where no reader takes it for one of the run's.

    Args:
        path: Of the file.
        folder: In whose folder ``replaced`` the copy is made.
        name: What the copy's name begins with.
        since: The first byte to copy.

    Raises:
        OSError: If it cannot be read or written.
    """
    replaced = folder / REPLACED
    replaced.mkdir(exist_ok=True)
    if replaced.is_symlink():
        raise _refusal(replaced, "a symbolic link")
    with reading(path) as source, _create_numbered(replaced, name) as target:
        source.seek(since)
        _copy(source, target)


def shorten(path: Path, length: int) -> None:
    """Shorten a file, in a copy that takes its place: its bytes may be another file's too (a hard link).

    Raises:
        OSError: If it cannot be read or written.
    """
    with reading(path) as source, replacing(path) as target:
        _copy(source, target, length)


def _create_numbered(folder: Path, name: str) -> IO[bytes]:
    number = 1
    while True:
        try:
            return create_new(folder / f"{name}.{number}")
        except FileExistsError:
            number += 1


def _copy(source: IO[bytes], target: IO[bytes], length: int | None = None) -> None:
    left = float("inf") if length is None else length
    while left > 0 and (chunk := source.read(int(min(left, _CHUNK)))):
        target.write(chunk)
        left -= len(chunk)


def _refuse_other_kinds(path: Path) -> None:
    kind = kind_of(path)
    if kind is not None:
        raise _refusal(path, kind)


def _refusal(path: Path, kind: str) -> OSError:
    return OSError(errno.EINVAL, f"it is {kind} and not a regular file", str(path))
