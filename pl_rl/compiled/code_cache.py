"""Cache of machine code on disk; code is loaded only if nobody but the user can have written it.

The entry of a key is a shared library, followed by the SHA-256 of key and library (the loader ignores what follows). So
a file that is truncated, damaged or belongs to another key is found out before a byte of it is executed. It is loaded
from memory: exactly what was checked is executed, whatever becomes of the file.
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
    """Why there is no cache on disk, in words."""


def read(key: str) -> bytes | None:
    """The library that is cached for a key; ``None`` if there is none or, with a message, if it cannot be trusted."""
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
    """The content of a regular file that belongs to the user and that nobody else can write.

    Raises:
        OSError: If it is anything else.
    """
    # O_NONBLOCK, or opening a named pipe would wait for a writer.
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
    """Cache a library, atomically; a message says so if it cannot be cached."""
    try:
        place = folder()
        _remove_partial_files(place)
        _write(place / f"{key}.so", _with_digest(key, library))
    except (NotKept, OSError) as error:
        say(f"Machine code is compiled for this run alone: {error}.")


def _write(path: Path, content: bytes) -> None:
    """Atomic and durable: after a power failure there is all of it or nothing."""
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
        OSError: If it is no library, or none for this machine.
    """
    digest = hashlib.sha256(library).digest()
    if digest not in _loaded:
        try:
            _loaded[digest] = _load_from_memory(library)
        except OSError:  # a system that forbids to execute memory without a file
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
        # It stays open: the loader knows a library by its path, which another one must not get.
        return ctypes.CDLL(f"/proc/self/fd/{descriptor}")
    except OSError:
        os.close(descriptor)
        raise


def folder() -> Path:
    """The cache folder: ``$XDG_CACHE_HOME/pl_rl``, or ``~/.cache/pl_rl``.

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

    Every folder and link on the way is checked. The owner of the root is trusted, whatever its number is in this
    namespace.
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
    """Remove partial files of killed processes: those that are older than any write takes."""
    for path in place.glob(f"*{PARTIAL}"):
        if time.time() - path.stat().st_mtime > PARTIAL_SECONDS:
            path.unlink(missing_ok=True)
