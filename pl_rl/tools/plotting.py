"""Learning curves as pictures."""

import os
from pathlib import Path
from typing import NamedTuple

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
from pl_rl.runs.log_meter import SEAM_TAGS, event_files
from pl_rl.tools import Aggregate, Axis, PictureFormat, Returns
from pl_rl.tools.aggregation import Curve, Group, aggregated, grouped, smoothed

STATISTICS = {"return_mean", "return_min", "return_max"}
AXES = {"evaluator_iter": "train iterations", "evaluator_step": "env steps"}
LABELS = {**AXES, "rollout_step": "env steps"} | dict.fromkeys(("evaluator_time", "rollout_time"), "training time (s)")
# By whose returns and what they are drawn against.
GROUPS: dict[tuple[Returns, Axis], str] = {
    ("evaluation", "train_iter"): "evaluator_iter",
    ("evaluation", "env_steps"): "evaluator_step",
    ("evaluation", "time"): "evaluator_time",
    ("training", "env_steps"): "rollout_step",
    ("training", "time"): "rollout_time",
}


class Drawing(NamedTuple):
    """What is drawn, and how."""

    aggregate: Aggregate = "iqm"
    """What runs of the same settings have in common: the interquartile mean or the mean; ``runs`` draws each."""
    returns: Returns = "evaluation"
    axis: Axis | None = None
    """``None`` draws a picture for train iterations and one for env steps."""
    smooth: int = 1
    """Points that are averaged."""
    file_format: PictureFormat = "png"

    def groups(self) -> list[str]:
        """The names of the pictures.

        Raises:
            UsageError: For train iterations of training, whose episodes are counted by env steps alone.
        """
        if self.smooth < 1:
            raise UsageError(f"--smooth {self.smooth} averages over no point; use 1 or more")
        axes: list[Axis] = [self.axis] if self.axis else ["train_iter", "env_steps"]
        found = [GROUPS[self.returns, axis] for axis in axes if (self.returns, axis) in GROUPS]
        if not found:
            raise UsageError(f"returns of training are not logged against {self.axis}; use --axis env_steps or time")
        return found


DEFAULT = Drawing()


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
    if group.endswith("_time"):
        segments = _one_after_another([curve for curve in curves if curve is not None])
    segments = segments or _recorded_curves(run, group)
    if not segments:
        what = "return of training" if group.startswith("rollout") else "evaluation"
        raise UsageError(f"{str(run)!r} holds no {what} ({group}); give a run's version_N directory")
    return segments


def _one_after_another(curves: list[Curve]) -> list[Curve]:
    """Curves on the axis of time, each beginning where the one before it ends."""
    ends = np.cumsum([0.0, *(curve.steps[-1] for curve in curves)])
    return [curve._replace(steps=curve.steps + end) for curve, end in zip(curves, ends, strict=False)]


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


def plot_runs(runs: list[Path], output: Path, drawing: Drawing = DEFAULT) -> list[Path]:
    """Draw the returns of runs.

    Runs of the same settings are drawn as one curve with the 95 % interval of a bootstrap over them. Others have a
    colour each, and the range of an evaluation's episodes around their means. A single run that was resumed is drawn
    twice, first as it was before and then with what was added, the seam marked where it went on.

    Args:
        runs: Run directories.
        output: Folder that the files are written to.
        drawing: What is drawn, and how.

    Returns:
        The files, such as ``evaluator_iter.png`` and ``evaluator_step.png``, for a resumed run each with ``_pretrain``
        and ``_resume``.

    Raises:
        UsageError: If a run does not hold what is to be drawn, or the files cannot be written.
    """
    curves = {group: {run: _smoothed(read_segments(run, group), drawing) for run in runs} for group in drawing.groups()}
    aggregate = drawing.aggregate
    groups = [Group(name, [run]) for run, name in _names(runs).items()]
    if aggregate != "runs":
        groups = grouped(runs, _names(runs))
    if output.exists() and not output.is_dir():
        raise UsageError(f"{str(output)!r} is not a folder; --output names the folder that the files are written to")
    files = []
    for axis in curves:
        resumed = len(runs) == 1 and len(curves[axis][runs[0]]) > 1
        for suffix, last in [("_pretrain", 1), ("_resume", None)] if resumed else [("", None)]:
            figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
            axes = figure.subplots()
            for number, (name, members) in enumerate(groups):
                segments, seams = [curves[axis][run] for run in members], seams_of(members[0], axis)
                if len(members) > 1 and aggregate != "runs":
                    segments = [[aggregated([_joined(parts) for parts in segments], aggregate)]]
                _draw_run(axes, _escaped(name), segments[0][:last], seams, first_colour=number, by_segment=resumed)
            _finish(axes, axis, aggregate if any(len(group.runs) > 1 for group in groups) else None)
            files.append(output / f"{axis}{suffix}.{drawing.file_format}")
            _save(figure, files[-1], drawing.file_format)
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


def _smoothed(segments: list[Curve], drawing: Drawing) -> list[Curve]:
    """A run's segments, averaged across the seams too."""
    if drawing.smooth == 1:
        return segments
    whole = smoothed(_joined(segments), drawing.smooth)
    ends = np.cumsum([len(segment.steps) for segment in segments])[:-1]
    return [Curve(*parts) for parts in zip(*(np.split(values, ends) for values in whole), strict=True)]


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
    by_time = group.endswith("_time")
    if group.startswith("rollout"):
        tags = ["rollout/return_mean"] * 3
    else:
        name = "evaluator_step" if by_time else group
        tags = [f"{name}/return_{statistic}" for statistic in ("mean", "min", "max")]
    try:
        events.Reload()
        if not set(tags) <= set(events.Tags()["scalars"]):
            return None
        mean, low, high = (np.array([float(point.value) for point in events.Scalars(tag)]) for tag in tags)
        began = events.FirstEventTimestamp()
        points = events.Scalars(tags[0])
        steps = np.array([point.wall_time - began if by_time else int(point.step) for point in points])
    except Exception as error:  # TensorBoard fails in as many ways as a file can be broken
        raise UsageError(
            f"event file {display_path(events_file)!r} is damaged ({type(error).__name__}: {error}); move it away to "
            "draw the others"
        ) from error
    if not len(steps) == len(mean) == len(low) == len(high):
        raise UsageError(f"event file {display_path(events_file)!r} has lost points; move it away to draw the others")
    return Curve(steps, mean, low, high)


def seams_of(run: Path, group: str) -> list[float]:
    """Where resumes went on, as :class:`pl_rl.callbacks.ResumeState` noted it; none on the axis of time."""
    if group.endswith("_time"):
        return []
    tag = f"{SEAM_TAGS['train_iter' if group.endswith('_iter') else 'env_steps']}/text_summary"
    seams: list[float] = []
    for path in event_files(run):
        events = EventAccumulator(str(path), size_guidance={"scalars": 1, "tensors": 0})
        events.Reload()
        if tag in events.Tags()["tensors"]:
            seams += [float(point.step) for point in events.Tensors(tag)]
    return seams


def _recorded_curves(run: Path, group: str) -> list[Curve]:
    """The run's own record, which has neither returns of training nor times."""
    if group not in AXES:
        return []
    rows = read_evaluations(run)
    axis = TRAIN_ITER if group == "evaluator_iter" else ENV_STEPS
    curves = []
    for segment in sorted({row[SEGMENT] for row in rows}):
        points = [row for row in rows if row[SEGMENT] == segment and row.keys() >= STATISTICS]
        if points:
            returns = [np.array([row[name] for row in points]) for name in ("return_mean", "return_min", "return_max")]
            curves.append(Curve(np.array([row[axis] for row in points], np.int64), *returns))
    return curves


def _draw_run(
    axes: Axes, name: str, segments: list[Curve], seams: list[float], first_colour: int, by_segment: bool
) -> None:
    for number, segment in enumerate(segments):
        colour = mpl.colormaps["tab10"]((first_colour + (number > 0 and by_segment)) % 10)
        label = {0: name, 1: f"{name}, resumed" if by_segment else None}.get(number)
        curve = segment
        if number > 0:
            # From the last point before the seam, so that no gap is left.
            before = segments[number - 1]
            curve = Curve(*(np.concatenate([old[-1:], new]) for old, new in zip(before, segment, strict=True)))
            # A run of an older version has not noted where it was resumed.
            noted = [seam for seam in seams if curve.steps[0] <= seam <= segment.steps[0]]
            axes.axvline(float((noted or curve.steps)[0]), color="0.4", linewidth=1.0, linestyle="--")
        axes.plot(curve.steps, curve.mean, color=colour, linewidth=1.8, marker=".", markersize=4, label=label)
        axes.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)


def _finish(axes: Axes, group: str, aggregate: Aggregate | None) -> None:
    training = group.startswith("rollout")
    one = "mean of the latest 100 episodes" if training else "mean, min to max"
    band = one if aggregate in (None, "runs") else f"{str(aggregate).upper()} of runs, 95 % interval"
    axes.set_xlabel(LABELS[group])
    axes.set_ylabel(f"{'training' if training else 'evaluation'} return ({band})")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.margins(x=0.01)
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
