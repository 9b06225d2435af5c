"""One command, given again and again, as schedulers do: it begins a run, and from then on continues it."""

import contextlib
import os
from fnmatch import fnmatch
from pathlib import Path

from pl_rl.files.writing import CHECKPOINTS, is_regular
from pl_rl.runs.directory import COMMAND_FILE, display_path, newest_sound_checkpoint, run_begun_by
from pl_rl.runs.evaluations import EVALUATIONS
from pl_rl.runs.identity import IDENTITY_FILE
from pl_rl.runs.lock import LOCK, locked
from pl_rl.runs.log_files import CSV_FILE, EVENT_FILES, last_step

# What a run writes before its first checkpoint.
_AT_FIRST = (
    COMMAND_FILE,
    IDENTITY_FILE,
    "config.yaml",
    "hparams.yaml",
    EVENT_FILES,
    CSV_FILE,
    EVALUATIONS,
    "tracker_*.jsonl",
    ".*.partial",
)


def requeued() -> bool:
    """Whether this is a SLURM job that ran before."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0


def checkpoint_of_command(command: list[str], log_root: Path) -> Path | None:
    """Where the newest run goes on that a command began, word for word; ``None`` if there is nothing to go on from.

    Raises:
        UsageError: If none of the run's checkpoints is sound, or another process is about to save its first.
    """
    run = run_begun_by(command, log_root)
    if run is None:
        print(
            f"auto_resume: this command began no run under {display_path(log_root)} yet, so it begins one", flush=True
        )
        return None
    if not any((run / "checkpoints").glob("*.ckpt")):
        with locked(run):
            removed = _remove_untrained(run)
            what = "it begins again" if removed else "a new run begins"
            print(f"auto_resume: {display_path(run)} ended before its first checkpoint, so {what}", flush=True)
        if removed:
            with contextlib.suppress(OSError):  # somebody has put something there meanwhile
                run.rmdir()
        return None
    return newest_sound_checkpoint(run)


def _remove_untrained(run: Path) -> bool:
    """Remove what a run wrote that was killed before it trained at all; whether there was nothing else in it.

    Whoever takes the checkpoints of a longer run away leaves its logs, which have points after the first step.
    """
    folder = run / CHECKPOINTS
    if run.is_symlink():
        return False
    files = [path for path in run.iterdir() if path not in (run / LOCK, folder)]
    if folder.is_dir() and not folder.is_symlink():
        files += folder.iterdir()
    for path in files:
        if not is_regular(path) or not any(fnmatch(path.name, name) for name in _AT_FIRST) or last_step(path) > 0:
            return False
    for path in files:
        path.unlink()
    with contextlib.suppress(FileNotFoundError):
        folder.rmdir()
    return True
