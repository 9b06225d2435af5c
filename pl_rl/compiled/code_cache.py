"""Machine code that is kept on disk, and loaded only if nobody but the user can have written it.

What is kept for a key is a shared library, followed by the SHA-256 of key and library (what loads a library ignores
what follows it). A file that is cut, overwritten or another's is thereby known before a byte of it is executed. It is
loaded from memory: exactly what was checked, whatever becomes of the file.
"""

import ctypes
import hashlib
import os
import stat
import tempfile
import time
from functools import cache
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info

from pl_rl.files.writing import flush

DIGEST_BYTES = 32
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
PARTIAL, PARTIAL_SECONDS = ".partial", 60
_loaded: dict[bytes, ctypes.CDLL] = {}


class NotKept(Exception):
    """Why nothing can be kept on disk, in words."""


def read(key: str) -> bytes | None:
    """The library that is kept for a key, if it is there, sound and the user's; says so if it is there and is not."""
    try:
        path = folder() / f"{key}.so"
    except NotKept:
        return None
    try:
        content = _own(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = error.strerror or str(error)
    else:
        library = content[:-DIGEST_BYTES]
        if content == _with_digest(key, library):
            return library
        reason = "it is damaged"
    say(f"{path} is not used ({reason}); it is compiled again.")
    return None


def _own(path: Path) -> bytes:
    """A file's content, if it is one, the user's, and nobody else can write it.

    Raises:
        OSError: If it is not.
    """
    # Not to wait for a writer, should it be a pipe.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is no file")
        if fault := _fault_of_owner(status) or _fault_of_mode(status):
            raise PermissionError(f"it {fault}")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def keep(key: str, library: bytes) -> None:
    """Keep a library for the next run, whole or not at all; says so where it cannot be kept."""
    try:
        place = folder()
        _remove_partial_files(place)
        _write(place / f"{key}.so", _with_digest(key, library))
    except (NotKept, OSError) as error:
        say(f"Machine code is compiled for this run alone: {error}.")


def _write(path: Path, content: bytes) -> None:
    """So that after a loss of power there is all of it or nothing."""
    descriptor, partial = tempfile.mkstemp(PARTIAL, dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    flush(path.parent)


def load(library: bytes) -> ctypes.CDLL:
    """Load a library from memory.

    Raises:
        OSError: If it is none, or not for this machine.
    """
    digest = hashlib.sha256(library).digest()
    if digest not in _loaded:
        try:
            _loaded[digest] = _load_from_memory(library)
        except OSError:  # a system that executes files alone
            with tempfile.TemporaryDirectory() as private:
                path = Path(private, "library.so")
                path.write_bytes(library)
                _loaded[digest] = ctypes.CDLL(str(path))
    return _loaded[digest]


def _load_from_memory(library: bytes) -> ctypes.CDLL:
    descriptor = os.memfd_create("pl_rl")
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(library)
        # It stays open, as the loader knows a library by its name, and another one must not get the same.
        return ctypes.CDLL(f"/proc/self/fd/{descriptor}")
    except OSError:
        os.close(descriptor)
        raise


def folder() -> Path:
    """Where machine code is kept: ``$XDG_CACHE_HOME/pl_rl``, or ``~/.cache/pl_rl``.

    Raises:
        NotKept: If it cannot be made, or others can write what lies there.
    """
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))  # to be ignored unless absolute
    try:
        path = (given if given.is_absolute() else Path.home() / ".cache") / "pl_rl"
        if not path.is_absolute():
            raise NotKept(f"the home directory {str(Path.home())!r} is no absolute path; set XDG_CACHE_HOME")
        for part in reversed([part for part in (path, *path.parents) if not part.exists()]):
            part.mkdir(mode=0o700, exist_ok=True)
        status = path.stat()
        fault = others_can_change(path)
    except (OSError, RuntimeError) as error:  # the latter without a home
        raise NotKept(f"no cache folder can be made ({error}); set XDG_CACHE_HOME to one of your own") from error
    if own := _fault_of_owner(status) or _fault_of_mode(status):
        fault = f"{path} {own}"
    if fault is not None:
        raise NotKept(f"{fault}; mend that, or set XDG_CACHE_HOME to a folder that is yours alone")
    return path


def others_can_change(path: Path) -> str | None:
    """Who but the user could put something else at an absolute path that exists, in words.

    Every folder and link on the way is looked at. Whoever owns the root can do anything, whatever its number is here.
    """
    trusted = {0, os.geteuid(), Path("/").stat().st_uid}
    place, parts = Path("/"), list(reversed(path.parts[1:]))
    while parts:
        part = parts.pop()
        if part == "..":
            place = place.parent
            continue
        here = place / part
        status = here.lstat()
        if status.st_uid not in trusted:
            return f"{here} belongs to user {status.st_uid}"
        if stat.S_ISLNK(status.st_mode):
            target = here.readlink()
            parts += reversed(target.parts[1:] if target.is_absolute() else target.parts)
            place = Path("/") if target.is_absolute() else place
            continue
        if not status.st_mode & stat.S_ISVTX and (fault := _fault_of_mode(status)):
            return f"{here} {fault}"
        place = here
    return None


@cache
def say(sentence: str) -> None:
    """Tell the user, once in a process."""
    rank_zero_info(sentence)


def _with_digest(key: str, library: bytes) -> bytes:
    return library + hashlib.sha256(key.encode() + library).digest()


def _fault_of_owner(status: os.stat_result) -> str | None:
    return None if status.st_uid == os.geteuid() else f"belongs to user {status.st_uid}"


def _fault_of_mode(status: os.stat_result) -> str | None:
    mode = stat.S_IMODE(status.st_mode)
    return f"can be written by others (mode {mode:o})" if mode & OTHERS_WRITE else None


def _remove_partial_files(place: Path) -> None:
    """Those that a killed process left behind; writing one takes no time."""
    for path in place.glob(f"*{PARTIAL}"):
        if time.time() - path.stat().st_mtime > PARTIAL_SECONDS:
            path.unlink(missing_ok=True)
