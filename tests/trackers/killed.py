"""Runs that a tracker follows are killed at random moments and gone on with, and the tracker is asked what it has.

Each life of a run is a fork of this process, which has imported everything: most of its time it trains.
"""

import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

LAST = Path("lightning_logs", "version_0", "checkpoints", "last.ckpt")


def live(kind, until, group):
    """Train on to an iteration, from the last checkpoint if there is one."""
    if group:
        os.setpgid(0, 0)
    os.environ |= {"WANDB_SILENT": "true", "WANDB_MODE": "offline"}
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    from tests.trackers import support

    support.train(getattr(support, f"{kind}_logger")(), until, ckpt_path=LAST if LAST.is_file() else None)
    if kind == "wandb":
        sys.modules["wandb"].finish()  # as at the regular end of an interpreter
    os._exit(0)


def kill_until_done(kind, until, kills, seed, group=False):
    """How often a run was killed after its first checkpoint until it was over.

    Args:
        kind: Of tracker, ``wandb`` or ``mlflow``.
        until: Its length in iterations.
        kills: At most.
        seed: Of the moments.
        group: Whether all processes of the run die at once, as when a scheduler or a lack of memory ends them, and not
            only the one that trains.
    """
    context, moments, done = multiprocessing.get_context("fork"), random.Random(seed), 0
    while True:
        process = context.Process(target=live, args=(kind, until, group))
        process.start()
        if done < kills:
            deadline = time.monotonic() + 60
            stamp = LAST.stat().st_mtime_ns if LAST.is_file() else 0
            while process.is_alive() and time.monotonic() < deadline:
                if LAST.is_file() and LAST.stat().st_mtime_ns != stamp:
                    break
                time.sleep(0.005)
            process.join(moments.uniform(0, 0.4))
        else:
            process.join(120)
        if process.exitcode == 0:
            return done
        if process.exitcode is not None:
            raise AssertionError(f"a life ended with {process.exitcode}")
        (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
        process.join()
        done += 1
