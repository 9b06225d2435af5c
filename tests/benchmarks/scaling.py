"""How pl_rl's speed follows the number of environments, the size of minibatches and the width of the network.

Run it with ``python -m tests.benchmarks.scaling --figure scaling.png``; it takes about eight minutes. Each point is the
median of a few rounds, each of them a process of its own that trains on CartPole-v1 for a few seconds.
"""

import argparse
import dataclasses
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.processes import WorkerFailure, run_worker

OURS = "pl_rl"
WORKLOAD = "cartpole"
NUM_STEPS = 32
ENOUGH_ENV_STEPS = 2**30


@dataclasses.dataclass(frozen=True)
class Series:
    """One thing that is varied.

    Attributes:
        label: What it is.
        points: The workload's values by the value that is varied.
        exponent: Of the power that speed would follow if nothing else cost anything; through the first point where it
            is positive, through the last where it is negative.
        reference: Of that line.
    """

    label: str
    points: dict[int, dict[str, Any]]
    exponent: int
    reference: str


def sizes(num_envs: int, minibatch_size: int) -> dict[str, Any]:
    """Values of the workload."""
    return {"num_envs": num_envs, "num_steps": NUM_STEPS, "minibatch_size": minibatch_size}


def powers(low: int, high: int) -> list[int]:
    """Powers of two, both ends among them."""
    return [2**exponent for exponent in range(low.bit_length() - 1, high.bit_length())]


ENVIRONMENTS = {number: sizes(number, number * NUM_STEPS // 4) for number in powers(1, 1024)}
MINIBATCHES = {size: sizes(64, size) for size in powers(32, 2048)}
WIDTHS = {width: {"encoder_sizes": [], "head_sizes": [width, width]} for width in powers(16, 1024)}
SERIES = [
    Series("environments", ENVIRONMENTS, 1, "in proportion"),
    Series("minibatch size", MINIBATCHES, 1, "in proportion"),
    Series("hidden width", WIDTHS, -2, "1 / width squared"),
]


def measure(rounds: int, seconds: float) -> dict[str, dict[int, list[float]]]:
    """Env steps per second in each round, at each point of each series that could be measured."""
    speeds: dict[str, dict[int, list[float]]] = {series.label: {} for series in SERIES}
    points = [(series, value) for series in SERIES for value in series.points]
    for number in range(rounds):
        # Speed that changes with time must not look like speed that changes with a value.
        for series, value in points[::-1] if number % 2 else points:
            overrides = series.points[value]
            try:
                result = run_worker(
                    sys.executable, OURS, WORKLOAD, ENOUGH_ENV_STEPS, overrides=overrides, max_seconds=seconds
                )
            except WorkerFailure as error:
                print(f"{series.label} {value}: {error}", file=sys.stderr, flush=True)
                continue
            speed = result["steady_env_steps_per_second"]
            speeds[series.label].setdefault(value, []).append(speed)
            print(f"round {1 + number}  {series.label:16}{value:>6}{speed:>12,.0f} env steps/s", flush=True)
    return {label: dict(sorted(points.items())) for label, points in speeds.items()}


def draw(measured: list[tuple[Series, dict[int, list[float]]]], path: Path) -> None:
    """A panel for each series, both axes logarithmic; error bars from the slowest round to the fastest."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    figure, axes = plt.subplots(1, len(measured), figsize=(9, 3.3), sharey=True, layout="constrained")
    for ax, (series, rounds) in zip(axes, measured, strict=True):
        speeds = {value: statistics.median(numbers) for value, numbers in rounds.items()}
        errors = [
            [speeds[value] - min(numbers) for value, numbers in rounds.items()],
            [max(numbers) - speeds[value] for value, numbers in rounds.items()],
        ]
        values, medians = list(speeds), list(speeds.values())
        ax.set(xscale="log", yscale="log")
        ax.errorbar(values, medians, errors, fmt="o-", color="#0072B2", markersize=4.5, capsize=2, label="measured")
        anchor = min(speeds) if series.exponent > 0 else max(speeds)
        ideal = [speeds[anchor] * (value / anchor) ** series.exponent for value in values]
        ax.plot(values, ideal, "--", color="#767676", linewidth=1.2, label=series.reference)
        ticks = [value for place, value in enumerate(values) if place % 2 == 0]
        ax.set_xticks(ticks, [f"{value:,}" for value in ticks])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel(series.label)
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(fontsize=8, frameon=False, loc="best")
    every_speed = [speed for _, rounds in measured for numbers in rounds.values() for speed in numbers]
    axes[0].set_ylim(0.7 * min(every_speed), 1.6 * max(every_speed))
    axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[0].yaxis.set_major_formatter("{x:,.0f}")
    axes[0].yaxis.set_minor_formatter(NullFormatter())
    axes[0].set_ylabel("env steps per second")
    figure.savefig(path, dpi=100)
    print(f"figure: {path}")


def main() -> int:
    """Measure, then draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="runs of each point (3)")
    parser.add_argument("--seconds", type=float, default=3.0, help="training time of each point (3)")
    parser.add_argument("--output", type=Path, help="JSON file for the numbers (a temporary one)")
    parser.add_argument("--figure", type=Path, help="PNG file for the chart")
    given = parser.parse_args()
    speeds = measure(given.rounds, given.seconds)
    if given.output is None:
        handle, name = tempfile.mkstemp(prefix="pl_rl_scaling_", suffix=".json")
        os.close(handle)
        given.output = Path(name)
    given.output.write_text(json.dumps(speeds, indent=1) + "\n")
    print(f"results: {given.output}")
    measured = [(series, speeds[series.label]) for series in SERIES if len(speeds[series.label]) > 1]
    if given.figure is not None and measured:
        draw(measured, given.figure)
    return int(any(len(speeds[series.label]) < len(series.points) for series in SERIES))


if __name__ == "__main__":
    sys.exit(main())
