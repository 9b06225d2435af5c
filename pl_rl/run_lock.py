"""One process trains in a run directory."""

import contextlib
import errno
import fcntl
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from pl_rl.errors import UsageError
from pl_rl.runs import shown

LOCK = ".lock"


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keep other processes from training in a directory, which is made if it is not there.

    The lock is the system's (``fcntl``), which ends with the process however it ends and which worker processes do not
    inherit; the file says whose it is. Where a file system has no locks, the file alone decides: that of a dead process
    of this machine is taken over.

    Raises:
        UsageError: If another process has it, or the directory cannot be written.
    """
    made = not run.exists()
    path = run / LOCK
    try:
        run.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(path)
        os.ftruncate(descriptor, 0)
        moment = datetime.now().astimezone().isoformat(" ", "seconds")
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}, since {moment}\n".encode(), 0)
    except OSError as error:
        raise UsageError(
            f"run directory {shown(run)!r} cannot be written: {error.strerror}; mend that, or choose another folder "
            "with --trainer.default_root_dir"
        ) from error
    try:
        yield
    finally:
        # In this order, as another process checks that the file it locked is still there.
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        os.close(descriptor)
        if made:
            with contextlib.suppress(OSError):  # it is not empty, as a rule
                run.rmdir()


def _acquire(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = False
            except OSError as error:
                without_locks = error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
                held = not without_locks or _may_live(_holder(descriptor))
            if held:
                raise UsageError(
                    f"run {shown(path.parent)!r} is in use by {_holder(descriptor) or 'another process'}; wait for it "
                    f"or end it (if it is gone for certain, delete {shown(path)})"
                )
            if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, 1000, 0).decode(errors="replace").strip()


def _may_live(holder: str) -> bool:
    """Whether the process that a lock file names may still run."""
    match = re.match(r"process (\d+) on (.*), since", holder)
    if match is None or match[2] != socket.gethostname():
        return match is not None
    try:
        os.kill(int(match[1]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return int(match[1]) != os.getpid()
