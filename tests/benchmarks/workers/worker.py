"""What all workers share: their arguments, and what they measure. Needs the standard library alone.

A worker trains one workload with one library and prints a line of JSON.
"""

import argparse
import dataclasses
import json
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path

from workloads import WORKLOADS, Workload

SETTLED = 0.2
"""Part of the env steps before the steady speed is measured."""
EARLY = 0.25
"""Part of the env steps after which the early memory is read."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A worker's arguments; ``threads`` is None where the library is left its own choice.

    ``source`` is a checkout of a library that is no package.
    """

    name: str
    workload: Workload
    env_steps: int
    threads: int | None
    seed: int
    max_seconds: float
    started: float
    source: Path | None


def parse_arguments() -> Task:
    """The task on the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("--env-steps", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overrides", type=json.loads, default={}, help="other values of the workload, as JSON")
    parser.add_argument("--max-seconds", type=float, default=float("inf"), help="stop earlier (pl_rl alone)")
    parser.add_argument("--started", type=float, default=time.time(), help="time.time() when the process was started")
    parser.add_argument("--source", type=Path, help="checkout of the library, if it is no package")
    given = parser.parse_args()
    workload = dataclasses.replace(WORKLOADS[given.workload], **given.overrides)
    env_steps = given.env_steps or workload.total_env_steps
    named = given.threads, given.seed, given.max_seconds, given.started, given.source
    return Task(given.workload, workload, env_steps, *named)


class Clock:
    """Notes when each iteration ended.

    Args:
        task: What is trained.
        library: Name of the library.
        distribution: Name of its package.
    """

    def __init__(self, task: Task, library: str, distribution: str) -> None:
        self.task = task
        self.names = {"library": library, "version": version(distribution)}
        self.marks: list[tuple[int, float]] = []
        self.first_update_seconds = self.rss_early = self.rss_end = 0.0

    def begin(self) -> None:
        """Call it just before the first env step; later calls change nothing."""
        if not self.marks:
            self.marks.append((0, time.perf_counter()))

    def mark(self, env_steps: int) -> bool:
        """Call it at the end of each iteration; whether time is over."""
        now = time.perf_counter()
        if len(self.marks) == 1:
            self.first_update_seconds = time.time() - self.task.started
        self.marks.append((env_steps, now))
        if not self.rss_early and env_steps >= EARLY * self.task.env_steps:
            self.rss_early = resident_mb()
        if env_steps >= self.task.env_steps:
            self.rss_end = resident_mb()
        return now - self.marks[0][1] > self.task.max_seconds

    def report(self) -> None:
        """Print what was measured."""
        env_steps, end = self.marks[-1]
        settled = [mark for mark in self.marks[:-1] if mark[0] >= SETTLED * env_steps] or self.marks
        steps_then, then = settled[0]
        result = {
            **self.names,
            "workload": self.task.name,
            "env_steps": env_steps,
            "threads": self.task.threads,
            "train_seconds": end - self.marks[0][1],
            "steady_env_steps_per_second": (env_steps - steps_then) / (end - then),
            "first_update_seconds": self.first_update_seconds,
            "peak_rss_mb": peak_mb(resource.RUSAGE_SELF),
            # Linux counts what a child shares with its parent before it becomes another program.
            "peak_rss_mb_largest_child": peak_mb(resource.RUSAGE_CHILDREN),
            "rss_mb_early": self.rss_early,
            "rss_mb_end": self.rss_end,
        }
        print(json.dumps(result), flush=True)


def peak_mb(who: int) -> float:
    """Largest resident memory so far; macOS counts bytes, others kilobytes."""
    return resource.getrusage(who).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3 / 1.024)


def resident_mb() -> float:
    """Resident memory now; NaN where the system has no ``/proc``."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() / 1e6 if statm.exists() else float("nan")
