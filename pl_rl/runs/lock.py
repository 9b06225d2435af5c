"""One process trains in a run directory."""

import contextlib
import errno
import fcntl
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from pl_rl.errors import RunFailure, UsageError
from pl_rl.files.writing import RUN_FILES, check_names, open_regular
from pl_rl.runs.directory import display_path

LOCK, TAKEOVER = ".lock", ".lock.takeover"
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)

# Directories that this process trains in: the system's locks are between processes, not between threads.
_held: set[Path] = set()
_guard = threading.Lock()


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keep other processes from training in a directory, which is made if it is not there.

    The lock is the system's (``fcntl``), which ends with the process however it ends and which worker processes do not
    inherit; the file says whose it is. Where a file system has no locks, the file alone decides: who makes it has it,
    and that of a dead process of this machine is taken over.

    Raises:
        UsageError: If another process has it, the directory cannot be written, or a link or a pipe in it has the name
            of a file that is written.
        RunFailure: If the directory is deleted and so cannot be written any more.
    """
    made = not run.exists()
    path = run / LOCK
    with _one_thread(run), contextlib.ExitStack() as descriptors:
        try:
            run.mkdir(parents=True, exist_ok=True)
            check_names(run, RUN_FILES)
            descriptor = _acquire(path)
            descriptors.callback(os.close, descriptor)
        except OSError as error:
            raise UsageError(
                f"run directory {display_path(run)!r} cannot be written: {error.strerror}; mend that, or choose "
                "another folder with --trainer.default_root_dir"
            ) from error
        try:
            yield
        except FileNotFoundError as error:
            if run.is_dir():
                raise
            raise RunFailure(
                f"run directory {display_path(run)!r} was deleted while the run wrote to it, and the run ended; begin "
                "it again, or put a copy of the directory in its place and continue with --ckpt_path last"
            ) from error
        finally:
            # Before it is closed, as another process checks that the file it locked is still there.
            with contextlib.suppress(OSError):
                if _is_at(descriptor, path):
                    path.unlink()
            if made:
                with contextlib.suppress(OSError):  # it is not empty, as a rule
                    run.rmdir()


@contextmanager
def _one_thread(run: Path) -> Iterator[None]:
    """Keep the other threads of this process from a directory.

    Raises:
        UsageError: If one is in it.
    """
    key = Path(os.path.realpath(run))
    with _guard:
        if key in _held:
            raise UsageError(f"run {display_path(run)!r} is in use by this process; wait for it or end it")
        _held.add(key)
    try:
        yield
    finally:
        with _guard:
            _held.discard(key)


def _acquire(path: Path) -> int:
    """A descriptor of the lock file, which is this process's.

    Raises:
        UsageError: If it is another's.
        OSError: If it cannot be opened or written.
    """
    while True:
        descriptor, is_new = _open(path)
        try:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                free = True
            except OSError as error:
                if error.errno not in WITHOUT_LOCKS:
                    raise _in_use(path, descriptor) from error
                free = is_new or _take_over(path, descriptor)
            if free and _is_at(descriptor, path) and _claim(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _open(path: Path) -> tuple[int, bool]:
    """A descriptor of the lock file, and whether it was made for it."""
    while True:
        with contextlib.suppress(FileExistsError):
            return open_regular(path, os.O_RDWR | os.O_CREAT | os.O_EXCL), True
        with contextlib.suppress(FileNotFoundError):
            return open_regular(path, os.O_RDWR), False


def _take_over(path: Path, descriptor: int) -> bool:
    """Become the holder of a lock file whose holder is dead, on a file system without locks; whether it is still there.

    Raises:
        UsageError: If it may live, or another process takes over in this moment.
    """
    if _may_live(_holder(descriptor)):
        raise _in_use(path, descriptor)
    guard = path.with_name(TAKEOVER)
    try:
        os.close(open_regular(guard, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    except FileExistsError as error:
        raise _in_use(path, descriptor) from error
    try:
        # Looked at again, as another process may have taken over since.
        if _is_at(descriptor, path) and _may_live(_holder(descriptor)):
            raise _in_use(path, descriptor)
        return _is_at(descriptor, path) and _claim(path, descriptor)
    finally:
        guard.unlink()


def _claim(path: Path, descriptor: int) -> bool:
    """Write into a lock file whose it is; not into one that is also another file (a hard link), which is removed."""
    if os.fstat(descriptor).st_nlink > 1:
        path.unlink()
        return False
    _sign(descriptor)
    return True


def _sign(descriptor: int) -> None:
    moment = datetime.now().astimezone().isoformat(" ", "seconds")
    holder = f"process {os.getpid()} on {socket.gethostname()}, since {moment}\n".encode()
    # Never empty for another process that looks: this writes over what was there, and then cuts the rest.
    os.pwrite(descriptor, holder, 0)
    os.ftruncate(descriptor, len(holder))


def _is_at(descriptor: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    return False


def _in_use(path: Path, descriptor: int) -> UsageError:
    files = [file for file in (path, path.with_name(TAKEOVER)) if file.exists()]
    return UsageError(
        f"run {display_path(path.parent)!r} is in use by {_holder(descriptor) or 'another process'}; wait for it or "
        f"end it (if it is gone for certain, delete {' and '.join(map(display_path, files)) or display_path(path)})"
    )


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, 1000, 0).decode(errors="replace").partition("\n")[0].strip()


def _may_live(holder: str) -> bool:
    """Whether the process that a lock file names may still run; nobody is named where it is being written."""
    match = re.match(r"process (\d+) on (.*), since", holder)
    if match is None or match[2] != socket.gethostname():
        return True
    try:
        os.kill(int(match[1]), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return int(match[1]) != os.getpid()
