"""Learning curves as pictures."""

import os
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pl_rl.errors import UsageError
from pl_rl.files.terminal import printable
from pl_rl.files.writing import replacing
from pl_rl.runs.directory import LOG_ROOT, display_path, runs_under
from pl_rl.runs.evaluations import ENV_STEPS, SEGMENT, TRAIN_ITER, read_evaluations
from pl_rl.runs.log_meter import event_files
from pl_rl.tools import Aggregate, PictureFormat
from pl_rl.tools.aggregation import Curve, Group, aggregated, grouped

STATISTICS = {"return_mean", "return_min", "return_max"}
AXES = {"evaluator_iter": "train iterations", "evaluator_step": "env steps"}


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


def find_runs(places: list[Path], log_root: Path = LOG_ROOT) -> list[Path]:
    """Run directories: those that are given, all in a log root that is given which were evaluated, or the newest.

    Raises:
        UsageError: If there is none.
    """
    if not places:
        newest = runs_under(log_root)[-1:]
        if not newest:
            raise UsageError(f"there is no run under {str(log_root)!r}; name a run's directory")
        return newest
    return [run for place in places for run in (_evaluated_under(place) or [place])]


def _evaluated_under(log_root: Path) -> list[Path]:
    """The runs of a log root that have an evaluation."""
    axis = next(iter(AXES))
    return [
        run
        for run in runs_under(log_root)
        if any(_read_curve(path, axis) for path in event_files(run)) or _recorded_curves(run, axis)
    ]


def plot_runs(
    runs: list[Path], output: Path, aggregate: Aggregate = "iqm", file_format: PictureFormat = "png"
) -> list[Path]:
    """Draw evaluation return against train iterations and against env steps.

    Runs of the same settings are drawn as one curve with the 95 % interval of a bootstrap over them. Others have a
    colour each, and the range of an evaluation's episodes around their means. A single run that was resumed is drawn
    twice, first as it was before and then with what was added, the seam marked.

    Args:
        runs: Run directories.
        output: Folder that the files are written to.
        aggregate: What runs of the same settings have in common: ``iqm``, the interquartile mean, or ``mean``; ``runs``
            draws each.
        file_format: Of the pictures.

    Returns:
        The files: ``evaluator_iter.png`` and ``evaluator_step.png``, for a resumed run each with ``_pretrain`` and
        ``_resume``.

    Raises:
        UsageError: If a run holds no evaluation, or the files cannot be written.
    """
    curves = {group: {run: read_segments(run, group) for run in runs} for group in AXES}
    groups = [Group(name, [run]) for run, name in _names(runs).items()]
    if aggregate != "runs":
        groups = grouped(runs, _names(runs))
    if output.exists() and not output.is_dir():
        raise UsageError(f"{str(output)!r} is not a folder; --output names the folder that the files are written to")
    files = []
    for axis, label in AXES.items():
        resumed = len(runs) == 1 and len(curves[axis][runs[0]]) > 1
        for suffix, last in [("_pretrain", 1), ("_resume", None)] if resumed else [("", None)]:
            figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
            axes = figure.subplots()
            for number, (name, members) in enumerate(groups):
                segments = [curves[axis][run] for run in members]
                if len(members) > 1 and aggregate != "runs":
                    segments = [[aggregated([_joined(parts) for parts in segments], aggregate)]]
                _draw_run(axes, _escaped(name), segments[0][:last], first_colour=number, by_segment=resumed)
            _finish(axes, label, aggregate if any(len(group.runs) > 1 for group in groups) else None)
            files.append(output / f"{axis}{suffix}.{file_format}")
            _save(figure, files[-1], file_format)
    return files


def _names(runs: list[Path]) -> dict[Path, str]:
    """A name for each run: its folder's, with the folders above it where others have the same."""
    paths = [run.resolve() for run in runs]
    names = {run: path.name for run, path in zip(runs, paths, strict=True)}
    if len(set(names.values())) < len(names):
        common = Path(os.path.commonpath(paths))
        names = {run: str(path.relative_to(common)) for run, path in zip(runs, paths, strict=True)}
    return names


def _escaped(name: str) -> str:
    return printable(name).replace("$", r"\$")  # which would begin a formula


def _joined(segments: list[Curve]) -> Curve:
    """A run's curve as a whole."""
    return Curve(*(np.concatenate(parts) for parts in zip(*segments, strict=True)))


def _save(figure: Figure, path: Path, file_format: PictureFormat) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            figure.savefig(file, format=file_format)
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


def _finish(axes: Axes, label: str, aggregate: Aggregate | None) -> None:
    band = {None: "mean, min to max", "runs": "mean, min to max"}
    axes.set_xlabel(label)
    axes.set_ylabel(f"evaluation return ({band.get(aggregate, f'{str(aggregate).upper()} of runs, 95 % interval')})")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.margins(x=0.01)
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
