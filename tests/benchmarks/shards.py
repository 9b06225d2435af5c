"""What a second process brings on one machine: env steps a second, and processor time.

Run it with ``python -m tests.benchmarks.shards --configs halfcheetah pong``. Each figure is of a command of its own,
``python -m pl_rl fit``, without evaluations; all ways take turns, round by round.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.processes import num_cores
from tests.benchmarks.speed import processor
from tests.support import event_scalars

WAYS = {
    "1 process, sync": {"model.env.vectorization": "sync"},
    "1 process, async": {"model.env.vectorization": "async"},
    "1 process, as shipped": {},
    "2 shards, 1 process": {"model.shards": 2},
    "2 shards, 2 processes": {"model.shards": 2, "trainer.devices": 2, "model.env.vectorization": "sync"},
    "2 shards, 2 processes, as shipped": {"model.shards": 2, "trainer.devices": 2},
}
QUIET = {"trainer.enable_progress_bar": "false", "trainer.enable_model_summary": "false", "model.eval_freq": 0}


def train(config: str, env_steps: int, settings: dict[str, object]) -> tuple[float, float]:
    """Env steps a second of training, and processor seconds of the whole command for each process.

    Raises:
        subprocess.CalledProcessError: If the command fails.
    """
    with tempfile.TemporaryDirectory() as root:
        options = {**QUIET, "model.total_env_steps": env_steps, "trainer.default_root_dir": root, **settings}
        command = [sys.executable, "-m", "pl_rl", "fit", "--config", f"{config}.yaml"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [*command, *(f"--{name}={value}" for name, value in options.items())], check=True, stdout=subprocess.DEVNULL
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        speeds = event_scalars(Path(root, "lightning_logs", "version_0"))["time/env_steps_per_second"]
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return speeds[-1][1], seconds / int(str(settings.get("trainer.devices", 1)))


def main() -> None:
    """Measure and print a table for each config."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=["halfcheetah", "pong"], help="Shipped configs.")
    parser.add_argument("--env_steps", nargs="+", type=int, default=[100_000, 8_192], help="Of each config.")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(f"{processor()}, {num_cores()} cores")
    for config, env_steps in zip(args.configs, args.env_steps, strict=True):
        measured: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        for _ in range(args.rounds):
            for way, settings in WAYS.items():
                measured[way].append(train(config, env_steps, settings))
        print(
            f"\n| {config}, {env_steps:,} env steps | env steps a second | processor seconds a process |\n|---|---|---|"
        )
        for way, figures in measured.items():
            speeds, seconds = zip(*figures, strict=True)
            spread = f"{statistics.median(speeds):,.0f} ({min(speeds):,.0f} to {max(speeds):,.0f})"
            print(f"| {way} | {spread} | {statistics.median(seconds):.1f} |")


if __name__ == "__main__":
    main()
