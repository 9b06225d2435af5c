"""One command, given again and again, as schedulers do: it begins a run, and from then on continues it."""

import os
from pathlib import Path

from pl_rl.run_lock import locked
from pl_rl.runs import newest_sound_checkpoint, run_begun_by, shown


def queued_again() -> bool:
    """Whether this is a SLURM job that ran before."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0


def checkpoint_of_command(command: list[str], log_root: Path) -> Path | None:
    """Where the newest run goes on that a command began, word for word; ``None`` if there is nothing to go on from.

    Raises:
        UsageError: If none of the run's checkpoints is sound, or another process is about to save its first.
    """
    run = run_begun_by(command, log_root)
    if run is None:
        print(f"auto_resume: this command began no run under {shown(log_root)} yet, so it begins one", flush=True)
        return None
    if not any((run / "checkpoints").glob("*.ckpt")):
        with locked(run):
            print(f"auto_resume: {shown(run)} ended before its first checkpoint, so a new run begins", flush=True)
        return None
    return newest_sound_checkpoint(run)
