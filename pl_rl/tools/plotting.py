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
from pl_rl.files.terminal import printable
from pl_rl.files.writing import replacing
from pl_rl.runs.directory import display_path
from pl_rl.runs.evaluations import ENV_STEPS, SEGMENT, TRAIN_ITER, read_evaluations
from pl_rl.runs.log_meter import event_files

STATISTICS = {"return_mean", "return_min", "return_max"}
AXES = {"evaluator_iter": "train iterations", "evaluator_step": "env steps"}


class Curve(NamedTuple):
    """Returns of evaluations along one axis; all of equal length."""

    steps: npt.NDArray[np.int64]
    mean: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]


def read_segments(run: Path, group: str) -> list[Curve]:
    """The evaluations in a run's event files, or else its own record, one curve for each process that trained it.

    Args:
        run: Run directory.
        group: ``evaluator_iter`` or ``evaluator_step``.

    Raises:
        UsageError: If the directory holds no evaluation.
    """
    if not run.is_dir():
        raise UsageError(f"there is no run directory {str(run)!r}")
    curves = [_read_curve(path, group) for path in event_files(run)]
    segments = sorted((curve for curve in curves if curve is not None), key=lambda curve: int(curve.steps[0]))
    segments = segments or _recorded_curves(run, group)
    if not segments:
        raise UsageError(f"{str(run)!r} holds no evaluation ({group}); give a run's version_N directory")
    return segments


def plot_runs(runs: list[Path], output: Path) -> list[Path]:
    """Draw evaluation return against train iterations and against env steps.

    Several runs have a colour each. A single run that was resumed is drawn twice, first as it was before and then with
    what was added, the seam marked.

    Args:
        runs: Run directories.
        output: Folder that the PNG files are written to.

    Returns:
        The files: ``evaluator_iter.png`` and ``evaluator_step.png``, for a resumed run each with ``_pretrain`` and
        ``_resume``.

    Raises:
        UsageError: If a run holds no evaluation, or the files cannot be written.
    """
    curves = {group: [read_segments(run, group) for run in runs] for group in AXES}
    names = [printable(run.resolve().name).replace("$", r"\$") for run in runs]  # which would begin a formula
    if output.exists() and not output.is_dir():
        raise UsageError(
            f"{str(output)!r} is not a folder; --output names the folder that the PNG files are written to"
        )
    files = []
    for group, label in AXES.items():
        resumed = len(runs) == 1 and len(curves[group][0]) > 1
        for suffix, last in [("_pretrain", 1), ("_resume", None)] if resumed else [("", None)]:
            figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
            axes = figure.subplots()
            for number, (name, segments) in enumerate(zip(names, curves[group], strict=True)):
                _draw_run(axes, name, segments[:last], first_colour=number, by_segment=resumed)
            _finish(axes, label)
            files.append(output / f"{group}{suffix}.png")
            _save(figure, files[-1])
    return files


def _save(figure: Figure, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            figure.savefig(file, format="png")
    except OSError as error:
        raise UsageError(
            f"{display_path(path)} cannot be written ({error.strerror}); name another folder with --output"
        ) from error


def _read_curve(events_file: Path, group: str) -> Curve | None:
    events = EventAccumulator(str(events_file), size_guidance={"scalars": 0})
    tags = [f"{group}/return_{statistic}" for statistic in ("mean", "min", "max")]
    try:
        events.Reload()
        if not set(tags) <= set(events.Tags()["scalars"]):
            return None
        mean, low, high = (np.array([float(point.value) for point in events.Scalars(tag)]) for tag in tags)
        steps = np.array([int(point.step) for point in events.Scalars(tags[0])], np.int64)
    except Exception as error:  # TensorBoard fails in as many ways as a file can be broken
        raise UsageError(
            f"event file {display_path(events_file)!r} is damaged ({type(error).__name__}: {error}); move it away to "
            "draw the others"
        ) from error
    if not len(steps) == len(mean) == len(low) == len(high):
        raise UsageError(f"event file {display_path(events_file)!r} has lost points; move it away to draw the others")
    return Curve(steps, mean, low, high)


def _recorded_curves(run: Path, group: str) -> list[Curve]:
    rows = read_evaluations(run)
    axis = TRAIN_ITER if group == "evaluator_iter" else ENV_STEPS
    curves = []
    for segment in sorted({row[SEGMENT] for row in rows}):
        points = [row for row in rows if row[SEGMENT] == segment and row.keys() >= STATISTICS]
        if points:
            returns = [np.array([row[name] for row in points]) for name in ("return_mean", "return_min", "return_max")]
            curves.append(Curve(np.array([row[axis] for row in points], np.int64), *returns))
    return curves


def _draw_run(axes: Axes, name: str, segments: list[Curve], first_colour: int, by_segment: bool) -> None:
    for number, segment in enumerate(segments):
        colour = mpl.colormaps["tab10"]((first_colour + (number > 0 and by_segment)) % 10)
        label = {0: name, 1: f"{name}, resumed" if by_segment else None}.get(number)
        curve = segment
        if number > 0:
            # From the last point before the seam, so that no gap is left.
            before = segments[number - 1]
            curve = Curve(*(np.concatenate([old[-1:], new]) for old, new in zip(before, segment, strict=True)))
            axes.axvline(float(curve.steps[0]), color="0.4", linewidth=1.0, linestyle="--")
        axes.plot(curve.steps, curve.mean, color=colour, linewidth=1.8, marker=".", markersize=4, label=label)
        axes.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)


def _finish(axes: Axes, label: str) -> None:
    axes.set_xlabel(label)
    axes.set_ylabel("evaluation return (mean, min to max)")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.margins(x=0.01)
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
