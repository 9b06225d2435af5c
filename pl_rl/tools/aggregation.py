"""Several runs as one curve: which belong together, and what they have in common.

Shapes: ``T`` evaluations, ``R`` runs.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pl_rl.errors import UsageError
from pl_rl.files.plain_data import flat_settings
from pl_rl.files.plain_yaml import read_yaml

Floats = npt.NDArray[np.float64]

BOOTSTRAP_SAMPLES = 2000
# At most so many settings are named in a label.
LONGEST_LABEL = 3


class Curve(NamedTuple):
    """Returns along one axis; all of equal length."""

    steps: npt.NDArray[Any]
    """Train iterations, env steps or seconds."""
    mean: Floats
    low: Floats
    high: Floats


class Group(NamedTuple):
    """Runs of the same settings, which differ by their seeds."""

    label: str
    runs: list[Path]


def interquartile_mean(values: Floats) -> Floats:
    """The mean of the middle half along the last axis, ``[...]`` of ``[..., R]``: https://arxiv.org/abs/2108.13264."""
    runs = values.shape[-1]
    cut = runs // 4
    middle: Floats = np.sort(values, axis=-1)[..., cut : runs - cut].mean(-1)
    return middle


def mean(values: Floats) -> Floats:
    """``[...]`` of ``[..., R]``."""
    result: Floats = values.mean(-1)
    return result


STATISTICS: dict[str, Callable[[Floats], Floats]] = {"iqm": interquartile_mean, "mean": mean}


def aggregated(curves: list[Curve], aggregate: Literal["iqm", "mean"]) -> Curve:
    """What the curves of several runs have in common, with 95 % intervals of the bootstrap over runs.

    Between its evaluations a run counts by linear interpolation, and only as far as all of them have come.

    Args:
        curves: One for each run.
        aggregate: The statistic.
    """
    first, last = max(curve.steps[0] for curve in curves), min(curve.steps[-1] for curve in curves)
    steps = np.unique(np.concatenate([curve.steps for curve in curves]))
    steps = steps[(first <= steps) & (steps <= last)]
    if not len(steps):
        raise UsageError("the runs to be aggregated have no step in common; draw them with --aggregate runs")
    values = np.stack([np.interp(steps, curve.steps, curve.mean) for curve in curves], -1)
    low, high = bootstrap_interval(values, STATISTICS[aggregate])
    return Curve(steps, STATISTICS[aggregate](values), low, high)


def bootstrap_interval(values: Floats, statistic: Callable[[Floats], Floats]) -> tuple[Floats, Floats]:
    """The 2.5th and 97.5th percentile of a statistic over runs drawn with replacement, each ``[T]``.

    Args:
        values: ``[T, R]``.
        statistic: Takes ``[..., R]``.
    """
    runs = values.shape[-1]
    drawn = np.random.default_rng(0).integers(runs, size=(BOOTSTRAP_SAMPLES, runs))
    intervals = np.array([np.percentile(statistic(row[drawn]), [2.5, 97.5]) for row in values])
    return intervals[:, 0], intervals[:, 1]


def smoothed(curve: Curve, points: int) -> Curve:
    """The mean over each point and those before it, as many as there are up to ``points``."""
    before = [np.concatenate([[0.0], np.cumsum(values)]) for values in curve[1:]]
    ends = np.arange(1, len(curve.steps) + 1)
    starts = np.maximum(ends - points, 0)
    return Curve(curve.steps, *((sums[ends] - sums[starts]) / (ends - starts) for sums in before))


def grouped(runs: list[Path], names: Mapping[Path, str]) -> list[Group]:
    """Runs of the same settings together, each group by what tells it from the others.

    Args:
        runs: Run directories, in whose ``hparams.yaml`` the settings are; one without is a group of its own.
        names: Of the runs, for those that their settings do not tell apart.
    """
    settings = {run: _settings(run) for run in runs}
    groups: dict[Any, list[Path]] = {}
    for run in runs:
        groups.setdefault(repr(sorted(settings[run].items())) if settings[run] else run, []).append(run)
    told = [settings[members[0]] for members in groups.values()]
    keys = {key for flat in told for key in flat}
    differing = sorted(key for key in keys if len({repr(flat.get(key)) for flat in told}) > 1)
    result = []
    for members, flat in zip(groups.values(), told, strict=True):
        label = _label(flat, differing) if flat and len(groups) > 1 else ""
        if not label:
            label = names[members[0]] if len(members) == 1 else str(flat.get("env.id", "runs"))
        result.append(Group(f"{label} ({len(members)} runs)" if len(members) > 1 else label, members))
    return result


def _label(flat: Mapping[str, Any], differing: list[str]) -> str:
    said = [f"{key.rpartition('.')[2]}={flat.get(key)}" for key in differing[:LONGEST_LABEL]]
    return ", ".join([*said, "..."] if len(differing) > LONGEST_LABEL else said)


def _settings(run: Path) -> dict[str, Any]:
    """The settings that a run began with, by dotted names; empty where it does not tell."""
    try:
        settings = read_yaml(run / "hparams.yaml")
    except UsageError:
        return {}
    return flat_settings(settings) if isinstance(settings, Mapping) else {}
