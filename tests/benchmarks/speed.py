"""How fast PPO libraries train on a CPU: pl_rl beside Stable-Baselines3, skrl, SheepRL, CleanRL and purejaxrl.

Run it with ``python -m tests.benchmarks.speed``; on two cores it takes about four minutes a round, a tenth of that with
``--scale 0.1``. Every library trains the same workloads (see workers/workloads.py) in float32, with as little logging
as it allows and no evaluation; Atari beside Stable-Baselines3 alone, which has gymnasium's wrappers in worker processes
(pl_rl what it chooses itself). The libraries alternate within each round, the order turns with every other round, and
the ratios are taken round by round. pl_rl trains with the threads that it chooses itself, each peer with 1 or with as
many as there are cores: those that were faster in a trial of a quarter of the run, the single one within 5 %, since
several spin where another process wants a core.

The peers' virtual environments are made on demand in ~/.cache/pl_rl_benchmarks; ``--python sb3=/path/to/python`` takes
one that is there already. (On Linux, pip takes a CUDA build of PyTorch unless PIP_EXTRA_INDEX_URL names the CPU one.)
CleanRL and purejaxrl are no packages: they take part where ``--source cleanrl=/path`` names a checkout, with CartPole,
which both have. A library that fails is left out and a sentence says why.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.peers import REQUIREMENTS, SOURCES, SetupFailure, find_python
from tests.benchmarks.processes import WorkerFailure, num_cores, run_worker
from tests.benchmarks.workers.workloads import WORKLOADS

OURS = "pl_rl"
NAMES = {
    OURS: "pl_rl",
    "sb3": "Stable-Baselines3",
    "skrl": "skrl",
    "sheeprl": "SheepRL",
    "cleanrl": "CleanRL, torch",
    "purejaxrl": "purejaxrl, jax",
}
COLD = "pl_rl, nothing cached"
STARTED, MEMORY = "cartpole", "cartpole-wide"
"""Workloads whose start and whose memory are told."""
TRIAL, CLOSE = 0.25, 0.95
"""Part of a run that threads are chosen by, and of the highest speed that the fewest threads must reach."""

Result = dict[str, Any]


def parse_arguments() -> argparse.Namespace:
    """What to run, and where to put the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="runs of each library on each workload (5)")
    parser.add_argument("--scale", type=float, default=1.0, help="part of the env steps to train for (1)")
    parser.add_argument("--peers", nargs="*", choices=REQUIREMENTS, help="libraries (all packages)")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), help="runs (all)")
    parser.add_argument("--python", action="append", default=[], metavar="PEER=PATH", help="interpreter of a peer")
    parser.add_argument("--source", action="append", default=[], metavar="PEER=PATH", help="checkout of a peer")
    parser.add_argument("--cold", action="store_true", help="also start pl_rl once with empty compile caches")
    parser.add_argument("--output", type=Path, help="JSON file for all results (a temporary one)")
    parser.add_argument("--figure", type=Path, help="PNG file for a bar chart")
    given = parser.parse_args()
    for option, known in {"python": REQUIREMENTS, "source": SOURCES}.items():
        paths = dict(pair.partition("=")[::2] for pair in getattr(given, option))
        if unknown := paths.keys() - known.keys():
            parser.error(f"--{option} knows no peer {', '.join(sorted(unknown))}; choose from {', '.join(known)}")
        setattr(given, option, paths)
    if given.peers is None:
        given.peers = [peer for peer in REQUIREMENTS if peer not in SOURCES or peer in given.source]
    for peer in given.peers:
        if peer in SOURCES and peer not in given.source:
            parser.error(f"{peer} is no package: git clone {SOURCES[peer]} and give --source {peer}={peer}")
    return given


class Benchmark:
    """Runs everything, and keeps what was measured.

    Args:
        given: The command line's arguments.
    """

    def __init__(self, given: argparse.Namespace) -> None:
        self.scale = given.scale
        self.sources = given.source
        self.pythons = {OURS: sys.executable}
        self.threads: dict[str, dict[str, int | None]] = {workload: {} for workload in given.workloads}
        self.rounds: dict[str, dict[str, list[Result]]] = {workload: {} for workload in given.workloads}
        self.cold: Result | None = None
        self.failures: list[str] = []
        for peer in given.peers:
            try:
                self.pythons[peer] = given.python.get(peer) or find_python(peer)
            except SetupFailure as error:
                self.fail(error)

    def fail(self, error: Exception) -> None:
        """Say once why something is left out."""
        self.failures.append(str(error))
        print(error, file=sys.stderr, flush=True)

    def run(self, library: str, workload: str, threads: int | None, seed: int, scale: float = 1.0) -> Result:
        """One run of a worker."""
        env_steps = WORKLOADS[workload].scaled_env_steps(self.scale * scale)
        source = self.sources.get(library)
        return run_worker(self.pythons[library], library, workload, env_steps, threads, seed, source=source)

    def prepare(self, workload: str) -> None:
        """Choose each library's threads, which also brings files into memory and fills compile caches."""
        for library in self.pythons:
            if library not in (OURS, *WORKLOADS[workload].peers):
                continue
            choices = [None] if library == OURS else sorted({1, num_cores()})
            try:
                speeds = {
                    threads: self.run(library, workload, threads, 0, TRIAL)["steady_env_steps_per_second"]
                    for threads in choices
                }
            except WorkerFailure as error:
                self.fail(error)
                continue
            close = [threads for threads in choices if speeds[threads] >= CLOSE * max(speeds.values())]
            self.threads[workload][library] = close[0]
            self.rounds[workload][library] = []

    def round(self, workload: str, number: int) -> None:
        """One run of every library, in an order that turns with every other round."""
        libraries = list(self.rounds[workload])
        for library in libraries[::-1] if number % 2 else libraries:
            try:
                result = self.run(library, workload, self.threads[workload][library], 1 + number)
            except WorkerFailure as error:
                self.fail(error)
                del self.rounds[workload][library]
                continue
            self.rounds[workload][library].append(result)
            speed = result["steady_env_steps_per_second"]
            print(f"round {1 + number}, {workload}, {NAMES[library]}: {speed:,.0f} env steps/s", flush=True)

    def start_cold(self) -> None:
        """Train once with compile caches in an empty folder."""
        with tempfile.TemporaryDirectory() as folder:
            caches = {"XDG_CACHE_HOME": folder, "TORCHINDUCTOR_CACHE_DIR": str(Path(folder, "inductor"))}
            env_steps = WORKLOADS[STARTED].scaled_env_steps(self.scale)
            try:
                self.cold = run_worker(sys.executable, OURS, STARTED, env_steps, environment=caches)
            except WorkerFailure as error:
                self.fail(error)

    def results(self) -> dict[str, Any]:
        """All that was measured, and on what."""
        machine = {"processor": processor(), "cores": num_cores(), "system": platform.platform()}
        return {
            "machine": {**machine, "python": platform.python_version()},
            "scale": self.scale,
            "rounds": self.rounds,
            "cold": self.cold,
            "failures": self.failures,
        }


def processor() -> str:
    """The processor's name and the width of its vectors, where the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    name = told.get("model name") or platform.processor() or platform.machine()
    flags = told.get("flags", "").split()
    return f"{name}, {'AVX-512' if 'avx512f' in flags else 'AVX2' if 'avx2' in flags else 'neither AVX2 nor AVX-512'}"


def values(results: Sequence[Result], name: str) -> list[float]:
    """One measured value over the rounds; ``speed`` is that of the whole training, the start included."""
    if name == "speed":
        return [result["env_steps"] / result["train_seconds"] for result in results]
    return [result[name] for result in results]


def ratios(ours: Sequence[Result], theirs: Sequence[Result]) -> list[float]:
    """How many times as fast as a peer pl_rl trained, in each round."""
    name = "steady_env_steps_per_second"
    return [mine / other for mine, other in zip(values(ours, name), values(theirs, name), strict=True)]


def spread(numbers: Sequence[float], form: str) -> str:
    """Median, and least to largest."""
    median, low, high = (format(value, form) for value in (statistics.median(numbers), min(numbers), max(numbers)))
    return f"{median} ({low} to {high})"


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table, its first column to the left."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    print(f"\n{title}")
    for row in [header, *rows]:
        cells = (cell.rjust(width) for cell, width in itertools.islice(zip(row, widths, strict=True), 1, None))
        print("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())


def report(benchmark: Benchmark) -> None:
    """Print the processor and the tables."""
    print(f"\n{processor()}, {num_cores()} cores")
    for workload, libraries in benchmark.rounds.items():
        rows = []
        for library, results in libraries.items():
            compared = library != OURS and OURS in libraries
            rows.append(
                [
                    f"{NAMES[library]} {results[0]['version']}",
                    str(results[0]["threads"] or "own"),
                    spread(values(results, "steady_env_steps_per_second"), ",.0f"),
                    f"{statistics.median(values(results, 'speed')):,.0f}",
                    spread(ratios(libraries[OURS], results), ".2f") if compared else "",
                ]
            )
        header = ["", "threads", "env steps/s, after a fifth", "from the first", "pl_rl is ... times as fast"]
        print_table(WORKLOADS[workload].title, header, rows)
    started = dict(benchmark.rounds.get(STARTED, {}))
    rows = [start_row(NAMES[library], results) for library, results in started.items()]
    if benchmark.cold is not None:
        rows.insert(1 if OURS in started else 0, start_row(COLD, [benchmark.cold]))
    if rows:
        header = ["", "whole process, s", "to the first update, s", "peak memory, MB"]
        print_table(f"{WORKLOADS[STARTED].title}: start and memory", header, rows)
    rows = [
        [NAMES[library], *(spread(values(results, name), ",.0f") for name in ("rss_mb_early", "rss_mb_end"))]
        for library, results in benchmark.rounds.get(MEMORY, {}).items()
    ]
    if rows:
        print_table(f"{WORKLOADS[MEMORY].title}: memory, MB", ["", "after a quarter", "at the end"], rows)


def start_row(name: str, results: Sequence[Result]) -> list[str]:
    """What a whole process takes."""
    seconds = (spread(values(results, field), ".1f") for field in ("total_seconds", "first_update_seconds"))
    return [name, *seconds, spread(values(results, "peak_rss_mb"), ",.0f")]


def draw(benchmark: Benchmark, path: Path) -> None:
    """A bar for each library and workload, from the least to the largest as error bars."""
    import matplotlib.pyplot as plt

    drawn = {workload: libraries for workload, libraries in benchmark.rounds.items() if libraries}
    heights = [len(libraries) for libraries in drawn.values()]
    height = 0.31 * sum(heights) + 0.68 * len(drawn) + 0.3
    figure, axes = plt.subplots(
        len(drawn), figsize=(9, height), squeeze=False, height_ratios=heights, layout="constrained"
    )
    for ax, (workload, libraries) in zip(axes[:, 0], drawn.items(), strict=True):
        speeds = {name: values(results, "steady_env_steps_per_second") for name, results in libraries.items()}
        longest = max(map(max, speeds.values()))
        for position, (library, numbers) in enumerate(speeds.items()):
            median = statistics.median(numbers)
            errors = [[median - min(numbers)], [max(numbers) - median]]
            color = "#0072B2" if library == OURS else "#A6A6A6"
            ax.barh(position, median, 0.72, xerr=errors, color=color, ecolor="#222222", capsize=3)
            text = f"{median:,.0f}"
            if library != OURS and OURS in libraries:
                text += f"   (pl_rl: {statistics.median(ratios(libraries[OURS], libraries[library])):.1f}x)"
            weight = "bold" if library == OURS else "normal"
            ax.text(max(numbers) + 0.015 * longest, position, text, va="center", weight=weight)
        ax.set_yticks(range(len(speeds)), [NAMES[library] for library in speeds])
        for label, library in zip(ax.get_yticklabels(), speeds, strict=True):
            label.set_weight("bold" if library == OURS else "normal")
        ax.invert_yaxis()
        ax.set_xlim(0, 1.28 * longest)
        ax.set_title(WORKLOADS[workload].title, loc="left", fontsize=10.5)
        ax.xaxis.set_major_formatter("{x:,.0f}")
        ax.tick_params("y", length=0)
        ax.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel(
        "env steps per second, collecting and learning (in brackets: how many times as fast pl_rl is)"
    )
    figure.savefig(path, dpi=100)
    print(f"figure: {path}")


def main() -> int:
    """Measure, then report."""
    given = parse_arguments()
    benchmark = Benchmark(given)
    for workload in given.workloads:
        benchmark.prepare(workload)
    for number in range(given.rounds):
        for workload in given.workloads:
            benchmark.round(workload, number)
    if given.cold:
        benchmark.start_cold()
    report(benchmark)
    if given.output is None:
        handle, name = tempfile.mkstemp(prefix="pl_rl_speed_", suffix=".json")
        os.close(handle)
        given.output = Path(name)
    given.output.write_text(json.dumps(benchmark.results(), indent=1) + "\n")
    print(f"\nresults: {given.output}")
    if given.figure is not None:
        draw(benchmark, given.figure)
    return int(any(OURS not in libraries for libraries in benchmark.rounds.values()))


if __name__ == "__main__":
    sys.exit(main())
