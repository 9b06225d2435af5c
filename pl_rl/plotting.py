"""Learning curves as pictures."""

from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pl_rl.errors import UsageError

AXES = {"evaluator_iter": "train iterations", "evaluator_step": "env steps"}


class Curve(NamedTuple):
    """An evaluation's returns along one axis; all of equal length."""

    steps: npt.NDArray[np.int64]
    mean: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]


def read_curve(run: Path, group: str) -> Curve:
    """The evaluation returns in a run's event files.

    Args:
        run: Run directory.
        group: ``evaluator_iter`` or ``evaluator_step``.

    Raises:
        UsageError: If the directory holds no evaluation.
    """
    if not run.is_dir():
        raise UsageError(f"there is no run directory {str(run)!r}")
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    tags = [f"{group}/return_{statistic}" for statistic in ("mean", "min", "max")]
    if not set(tags) <= set(events.Tags()["scalars"]):
        raise UsageError(f"{str(run)!r} holds no evaluation ({tags[0]}); give a run's version_N directory")
    mean, low, high = ([point.value for point in events.Scalars(tag)] for tag in tags)
    steps = [point.step for point in events.Scalars(tags[0])]
    return Curve(np.array(steps), np.array(mean), np.array(low), np.array(high))


def plot_runs(runs: list[Path], output: Path) -> list[Path]:
    """Draw evaluation return against train iterations and against env steps, one colour for each run.

    Args:
        runs: Run directories.
        output: Folder that the PNG files are written to.

    Returns:
        The files, ``evaluator_iter.png`` and ``evaluator_step.png``.

    Raises:
        UsageError: If a run holds no evaluation.
    """
    curves = {group: [read_curve(run, group) for run in runs] for group in AXES}
    output.mkdir(parents=True, exist_ok=True)
    files = []
    for group, label in AXES.items():
        figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
        _draw(figure.subplots(), [run.resolve().name for run in runs], curves[group], label)
        files.append(output / f"{group}.png")
        figure.savefig(files[-1])
    return files


def _draw(axes: Axes, names: list[str], curves: list[Curve], label: str) -> None:
    colours = mpl.colormaps["tab10"]
    for number, (name, curve) in enumerate(zip(names, curves, strict=True)):
        colour = colours(number % 10)
        axes.plot(curve.steps, curve.mean, color=colour, linewidth=1.8, marker=".", markersize=4, label=name)
        axes.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
    axes.set_xlabel(label)
    axes.set_ylabel("evaluation return (mean, min to max)")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.margins(x=0.01)
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
