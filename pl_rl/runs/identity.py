"""Which run a directory, a folder of logs and a checkpoint belong to: each has the run's id.

A checkpoint may name folders of logs outside of its run. One of them is the run's only if its own file says so, and
says of the very directory that the checkpoint lies in: whoever copies or makes up a checkpoint cannot write that.
"""

import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pl_rl.files.writing import create_new, is_regular, reading, write_whole

IDENTITY_FILE = ".run_id"
# What a run without an id has in its directory, and a folder that only logs were written to has not.
_OF_A_RUN = ("checkpoints", "config.yaml", "command.yaml")


class Identity(NamedTuple):
    """What a folder says of itself."""

    run_id: str
    run: Path
    """The run's directory."""


def new_run_id() -> str:
    """An id that no other run has; drawn from the system, so that no training depends on it."""
    return secrets.token_hex(16)


def run_id_in(state: Mapping[str, Any]) -> str | None:
    """The id in a checkpoint's state; ``None`` in one of the first format."""
    run_id = state.get("run_id")
    return run_id if isinstance(run_id, str) and re.fullmatch(r"[0-9a-f]{32}", run_id) else None


def mark(folder: Path, run: Path, run_id: str) -> None:
    """Note in a folder, unless it is noted, which run it belongs to.

    Args:
        folder: The run's directory, or one that its loggers write to.
        run: The run's directory.
        run_id: Of the run.

    Raises:
        OSError: If it cannot be written.
    """
    # Relative, so that a run can be moved with its logs.
    where = os.path.relpath(os.path.realpath(run), os.path.realpath(folder))
    content = os.fsencode(f"{run_id}\n{where}\n")
    if _content(folder) != content:
        write_whole(folder / IDENTITY_FILE, content)


def mark_new(run: Path, run_id: str) -> bool:
    """Make a folder, unless it is there, and mark it as a run's directory; whether it was nobody's.

    Raises:
        OSError: If it cannot be made or written.
    """
    run.mkdir(parents=True, exist_ok=True)
    try:
        with create_new(run / IDENTITY_FILE) as file:
            file.write(f"{run_id}\n.\n".encode())
    except FileExistsError:
        return False
    return True


def identity_of(folder: Path) -> Identity | None:
    """Which run a folder belongs to; ``None`` if it does not say."""
    match = re.fullmatch(rb"([0-9a-f]{32})\n([^\0]+)\n", _content(folder), re.DOTALL)
    if match is None:
        return None
    run = os.path.realpath(Path(os.path.realpath(folder), os.fsdecode(match[2])))
    return Identity(match[1].decode(), Path(run))


def is_log_of(folder: Path, run: Path, run_id: str | None) -> bool:
    """Whether a folder is one that the loggers of a run wrote to.

    Args:
        folder: That the run's checkpoint names.
        run: The directory that the checkpoint lies in.
        run_id: The checkpoint's; ``None`` in those of the first format, for which only folders inside of the run's
            directory that do not look like a run themselves are taken.
    """
    if folder == run:
        return True
    if folder.is_relative_to(run) and has_link_below(run, folder):
        return False
    identity = identity_of(folder)
    if run_id is None:
        is_run = identity is not None or any((folder / name).exists() for name in _OF_A_RUN)
        return folder.is_relative_to(run) and not is_run
    return identity == Identity(run_id, Path(os.path.realpath(run)))


def has_link_below(folder: Path, path: Path) -> bool:
    """Whether a part of a path after a folder is a symbolic link."""
    return any(part.is_symlink() for part in [path, *path.parents] if part != folder and part.is_relative_to(folder))


def _content(folder: Path) -> bytes:
    path = folder / IDENTITY_FILE
    if not is_regular(path):
        return b""
    with reading(path) as file:
        return file.read(10_000)
