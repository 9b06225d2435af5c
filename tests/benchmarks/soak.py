"""A long run of CartPole with evaluations, checkpoints and preemptions: does anything grow, is anything left over?

``python -m tests.benchmarks.soak --minutes 60`` prints what it found and draws memory and open files over time.
"""

import argparse
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np

from pl_rl.checkpoints.format import STATE_KEY, read_checkpoint

matplotlib.use("Agg")
from matplotlib import pyplot as plt

COMMAND = [
    *(sys.executable, "-m", "pl_rl", "fit", "--config", "cartpole.yaml", "--auto_resume"),
    *("--model.stop_value", "null", "--model.total_env_steps", "1000000000"),
    *("--checkpoint.keep_every_n_iterations", "500", "--trainer.enable_progress_bar", "false"),
]
SETTLED_SECONDS = 60  # in which a process imports, compiles and first evaluates


class Sample(NamedTuple):
    """What a process holds at a moment."""

    minutes: float
    part: int
    age_seconds: float
    mebibytes: float
    files: int


def main() -> None:
    """Run, watch, preempt, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--preemptions", type=int, default=3)
    parser.add_argument("--figure", type=Path, default=Path("tests/benchmarks/soak.png"))
    args = parser.parse_args()
    samples: list[Sample] = []
    statuses, leftovers = [], []
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pl_rl-soak-") as folder:
        for part in range(args.preemptions + 1):
            until = began + 60 * args.minutes * (part + 1) / (args.preemptions + 1)
            with Path(folder, "output.txt").open("a") as output:
                process = subprocess.Popen(
                    COMMAND, cwd=folder, stdout=output, stderr=output, start_new_session=True,
                    env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
                )  # fmt: skip
            started = time.monotonic()
            while time.monotonic() < until and process.poll() is None:
                samples.append(_sample(process.pid, (time.monotonic() - began) / 60, part, time.monotonic() - started))
                time.sleep(1)
            process.send_signal(signal.SIGTERM)
            statuses.append(process.wait())
            leftovers += _of_session(process.pid)
        run = Path(folder, "lightning_logs", "version_0")
        counters = read_checkpoint(run / "checkpoints" / "last.ckpt")[STATE_KEY]["counters"]
        exact = Path(folder, "output.txt").read_text().count("fidelity: exact")
        runs = len(list(run.parent.iterdir()))
        size = sum(path.stat().st_size for path in run.rglob("*") if path.is_file()) / 2**20
        _print_summary(args, samples, counters, statuses, leftovers, exact)
        print(f"run directories: {runs}; size {size:.1f} MiB; {shutil.disk_usage(folder).free / 2**30:.0f} GiB free")
    _draw(samples, args.figure)
    print(args.figure)


def _sample(pid: int, minutes: float, part: int, age: float) -> Sample:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return Sample(minutes, part, age, pages * os.sysconf("SC_PAGE_SIZE") / 2**20, files)


def _of_session(session: int) -> list[str]:
    """Processes that a run left behind."""
    time.sleep(1)
    left = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(")")[2].split()[3]) == session:
                left.append(path.parent.name)
        except OSError:  # it has just ended
            continue
    return left


def _print_summary(
    args: argparse.Namespace,
    samples: list[Sample],
    counters: dict[str, int],
    statuses: list[int],
    leftovers: list[str],
    exact: int,
) -> None:
    print(f"{args.minutes:g} minutes, {args.preemptions} preemptions; exit statuses {statuses}; exact resumes {exact}")
    print(f"iterations {counters['iteration']:,}, env steps {counters['env_steps']:,}; leftover processes {leftovers}")
    for part in range(args.preemptions + 1):
        settled = [sample for sample in samples if sample.part == part and sample.age_seconds > SETTLED_SECONDS]
        if len(settled) < 10:
            continue
        memory = [sample.mebibytes for sample in settled]
        slope = 60 * np.polyfit([sample.minutes for sample in settled], memory, 1)[0]
        files = {sample.files for sample in settled}
        print(
            f"part {part + 1}: memory {min(memory):.0f} to {max(memory):.0f} MiB, {slope:+.1f} MiB an hour; open files "
            f"{min(files)} to {max(files)}"
        )


def _draw(samples: list[Sample], path: Path) -> None:
    minutes = [sample.minutes for sample in samples]
    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(8, 4.5), layout="constrained")
    above.plot(minutes, [sample.mebibytes for sample in samples], linewidth=1)
    below.plot(minutes, [sample.files for sample in samples], linewidth=1)
    above.set(ylabel="memory / MiB", ylim=(0, None))
    below.set(ylabel="open files", xlabel="minutes", ylim=(0, None))
    for one, other in itertools.pairwise(samples):
        if one.part != other.part:
            for axes in (above, below):
                axes.axvline(other.minutes, color="grey", linestyle=":", linewidth=1)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
