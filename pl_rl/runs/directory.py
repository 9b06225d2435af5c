"""Run directories: where they are, what is in them.

A run is a ``version_N`` folder under the log root, with its event files, ``config.yaml`` and ``checkpoints/``.
"""

import contextlib
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pl_rl.checkpoints.format import STATE_KEY, Damaged, read_checkpoint
from pl_rl.checkpoints.saving import LAST
from pl_rl.errors import UsageError
from pl_rl.files.plain_yaml import read_yaml
from pl_rl.files.terminal import printable
from pl_rl.files.writing import is_regular, write_whole
from pl_rl.runs.identity import identity_of, run_id_in
from pl_rl.runs.log_files import CSV_FILE, EVENT_FILES

LOG_ROOT = Path("lightning_logs")
COMMAND_FILE = "command.yaml"


def find_checkpoint(name: str, log_root: Path = LOG_ROOT) -> Path:
    """A checkpoint by path, or by the bare name (``last``, ``best``, ``iteration_40``) of one in the newest run.

    ``last`` is the newest *sound* one; those that were passed over are printed.

    Args:
        name: Path, or file name with or without ``.ckpt``.
        log_root: Folder of the ``version_N`` folders, of which the one with the highest number is meant.

    Raises:
        UsageError: If there is none.
    """
    if not name:
        raise UsageError("the name of the checkpoint is empty; give the path of one, or last")
    path = Path(os.path.normpath(Path(name).absolute()))
    if path.is_file():
        return path
    if Path(name).name != name and path.is_dir():
        raise UsageError(f"{name!r} is a folder; name a checkpoint in it, as in RUN_DIR/checkpoints/last.ckpt")
    if Path(name).name != name:
        raise UsageError(f"checkpoint {name!r} does not exist")
    file_name = name if path.suffix == ".ckpt" else f"{name}.ckpt"
    runs = runs_under(log_root)
    if not runs:
        raise UsageError(f"there is no file {name!r} here, and no run under {str(log_root)!r}")
    # Not an older run's where the newest has none: that would be another run, trained in the wrong belief.
    folder = Path(os.path.normpath(runs[-1].absolute())) / "checkpoints"
    if file_name == LAST and any(folder.glob("*.ckpt")):
        return newest_sound_checkpoint(runs[-1])
    if not (folder / file_name).is_file():
        there = ", ".join(sorted(path.stem for path in folder.glob("*.ckpt"))) or "none"
        raise UsageError(
            f"the newest run, {display_path(runs[-1])}, has no {file_name} (its checkpoints: {there}); give the path "
            "of another run's"
        )
    return folder / file_name


def runs_under(log_root: Path) -> list[Path]:
    """The run directories, in the order in which they began; those elsewhere that links here lead to, too."""
    found = sorted((path for path in log_root.glob("version_*") if path.is_dir()), key=_version)
    return [path.resolve() if path.is_symlink() else path for path in found]


def newest_sound_checkpoint(run: Path) -> Path:
    """The last checkpoint of a run, or the furthest of its others if that is broken; prints which are broken, and why.

    Raises:
        UsageError: If none is sound.
    """
    folder = Path(os.path.normpath(run.absolute())) / "checkpoints"
    faults: dict[Path, str] = {}
    reached: dict[Path, int] = {}
    last = folder / LAST
    if not last.is_file():
        faults[last] = "it is not there"
    for path in [last, *sorted({path for path in folder.glob("*.ckpt") if path.is_file()} - {last})]:
        if path not in faults:
            try:
                checkpoint = read_checkpoint(path)
                if own_run(path, checkpoint) is None:
                    faults[path] = "it is a checkpoint of another run"
                else:
                    reached[path] = checkpoint[STATE_KEY]["counters"]["iteration"]
            except UsageError as error:
                faults[path] = error.reason if isinstance(error, Damaged) else str(error)
        if last in reached:
            return last
    if not reached:
        listed = ", ".join(f"{display_path(path.name)} ({fault})" for path, fault in faults.items())
        raise UsageError(f"{display_path(run)} has no sound checkpoint: {listed}; give the path of another run's")
    for path, fault in faults.items():
        print(printable(f"passed over {display_path(path)}: {fault}"), flush=True)
    return max(reached, key=lambda path: reached[path])


def note_command(run: Path, command: list[str]) -> None:
    """Write down the command that began a run, unless there is a note."""
    note = run / COMMAND_FILE
    if not note.exists():
        write_whole(note, yaml.safe_dump({"command": command}, allow_unicode=True).encode())


def run_begun_by(command: list[str], log_root: Path) -> Path | None:
    """The newest run that a command began, word for word; ``None`` if there is none."""
    for run in reversed(runs_under(log_root)):
        with contextlib.suppress(UsageError):  # there is no note, or a broken one, which says nothing of other runs
            note = run / COMMAND_FILE
            if note.is_file() and read_yaml(note) == {"command": command}:
                return run
    return None


def run_of_checkpoint(checkpoint: Path) -> Path | None:
    """The run directory whose ``checkpoints/`` folder a checkpoint, or what it is a link to, lies in; else ``None``."""
    for path in (checkpoint.absolute(), checkpoint.resolve()):  # a link elsewhere leads to its run
        if path.parent.name == "checkpoints":
            return path.parent.parent
    return None


def own_run(checkpoint: Path, content: Mapping[str, Any]) -> Path | None:
    """The run directory that a checkpoint lies in, unless it is another run's, by the ids of both.

    Args:
        checkpoint: Its path.
        content: What it holds.
    """
    run = run_of_checkpoint(checkpoint)
    identity = None if run is None else identity_of(run)
    run_id = run_id_in(content[STATE_KEY])
    return None if identity is not None and run_id is not None and identity.run_id != run_id else run


def run_to_continue(checkpoint: Path, content: Mapping[str, Any]) -> Path | None:
    """The run directory that a resume writes to, as :func:`own_run`; ``None`` also where it is no run's.

    Somebody may have put a checkpoint into a folder of their own that is called ``checkpoints``.
    """
    run = own_run(checkpoint, content)
    if run is None or identity_of(run) is not None:
        return run
    # Before runs had ids, they had log files.
    return run if any(is_regular(path) for name in (EVENT_FILES, CSV_FILE) for path in run.glob(name)) else None


def age_of(path: Path) -> str:
    """How long ago a file was written, in words."""
    seconds = max(0, int(time.time() - path.stat().st_mtime))
    for unit, size in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= size:
            return f"{seconds // size:,} {unit}{'s' if seconds >= 2 * size else ''}"
    return f"{seconds} second{'s' if seconds != 1 else ''}"


def config_of_run(run: Path) -> Path | None:
    """The configuration that a run was last trained with: of its latest resume that changed it, or of its start."""
    resumes = {config_number(path): path for path in run.glob("config_resume*.yaml") if path.is_file()}
    start = run / "config.yaml"
    return resumes[max(resumes)] if max(resumes, default=0) > 0 else start if start.is_file() else None


def config_number(path: Path) -> int:
    """Which resume a configuration was written by; 0 for a file that has no such name."""
    match = re.fullmatch(r"config_resume(\d{1,9})\.yaml", path.name)
    return int(match[1]) if match else 0


def display_path(path: Path | str) -> str:
    """A path as a person would type it: relative where it lies below the working directory; a URL as it is."""
    if "://" in str(path):
        return printable(path)
    absolute = Path(path).absolute()
    here = Path.cwd()
    return printable(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)


def last_good_checkpoint(trainer: Any) -> str:
    """Where a run that fails can go on from, in words."""
    kept = getattr(trainer.checkpoint_callback, "last_model_path", "")
    return f"the last good checkpoint is {display_path(kept)}" if kept else "no checkpoint was saved"


def _version(run: Path) -> int:
    match = re.fullmatch(r"version_(\d+)", run.name)
    return int(match[1]) if match else -1
