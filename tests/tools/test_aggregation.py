"""Several runs in one picture: what belongs together, and what they have in common."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from pl_rl import UsageError, cli
from pl_rl.tools.aggregation import Curve, aggregated, bootstrap_interval, grouped, interquartile_mean, mean, smoothed
from pl_rl.tools.plotting import Drawing, find_runs, plot_runs
from tests.tools.test_plotting import BLUE, ORANGE, colours_in, written_run


def run_of(name, means, **settings):
    run = written_run(name, means)
    (run / "hparams.yaml").write_text(yaml.safe_dump({"env": {"id": "CartPole-v1"}, **settings}))
    return run


def curve(steps, means):
    means = np.array(means, float)
    return Curve(np.array(steps), means, means - 1, means + 1)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([5.0], 5.0),
        ([1.0, 3.0], 2.0),
        ([0.0, 3.0, 9.0], 4.0),
        ([100.0, 1.0, 2.0, -50.0], 1.5),
        ([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 1000.0], 6.5),
    ],
)
def test_the_interquartile_mean_leaves_a_quarter_out_at_each_end(values, expected):
    assert interquartile_mean(np.array(values)) == expected
    assert interquartile_mean(np.array([values, values])).tolist() == [expected, expected]


def test_an_interval_is_that_of_the_runs_drawn_again():
    values = np.array([[1.0, 2.0, 3.0, 4.0, 5.0], [7.0, 7.0, 7.0, 7.0, 7.0]])
    low, high = bootstrap_interval(values, mean)
    # The mean of 5 draws has the deviation sqrt(2 / 5) = 0.632 around 3.
    assert low[0] == pytest.approx(3 - 1.96 * 0.632, abs=0.25) and high[0] == pytest.approx(3 + 1.96 * 0.632, abs=0.25)
    assert low[1] == high[1] == 7
    assert (bootstrap_interval(values, mean)[0] == low).all(), "the same each time"


def test_runs_are_compared_where_all_of_them_have_been():
    one, other = curve([0, 10, 20, 30], [0, 10, 20, 30]), curve([5, 15, 25], [0, 0, 0])
    together = aggregated([one, other], "mean")
    assert together.steps.tolist() == [5, 10, 15, 20, 25]
    assert together.mean.tolist() == [2.5, 5, 7.5, 10, 12.5]
    assert (together.low <= together.mean).all() and (together.mean <= together.high).all()


def test_smoothing_averages_each_point_with_those_before_it():
    smooth = smoothed(curve([0, 10, 20, 30], [0, 6, 12, 0]), 3)
    assert smooth.steps.tolist() == [0, 10, 20, 30]
    assert smooth.mean.tolist() == [0, 3, 6, 6]
    assert smooth.low.tolist() == [-1, 2, 5, 5]


def test_runs_without_a_common_step_are_refused():
    with pytest.raises(UsageError, match="no step in common; draw them with --aggregate runs"):
        aggregated([curve([0, 1], [0, 0]), curve([5, 6], [0, 0])], "iqm")


def test_runs_of_the_same_settings_are_a_group_named_by_what_differs():
    runs = [run_of(f"logs/version_{i}", [1.0, 2.0], gamma=0.9 if i < 3 else 0.99, num_envs=8) for i in range(5)]
    assert [(group.label, len(group.runs)) for group in grouped(runs, {run: run.name for run in runs})] == [
        ("gamma=0.9 (3 runs)", 3),
        ("gamma=0.99 (2 runs)", 2),
    ]
    (alone,) = grouped(runs[:3], {run: run.name for run in runs})
    assert alone.label == "CartPole-v1 (3 runs)"


def test_runs_that_do_not_tell_their_settings_stay_apart():
    runs = [written_run("logs/version_0", [1.0]), written_run("logs/version_1", [2.0])]
    assert [group.label for group in grouped(runs, {run: run.name for run in runs})] == ["version_0", "version_1"]


@pytest.mark.slow
def test_seeds_are_one_curve_and_each_where_that_is_asked_for():
    runs = [run_of(f"logs/version_{i}", [10.0 * i, 20.0, 30.0 + i]) for i in range(4)]
    together, each = plot_runs(runs, Path("one"))[0], plot_runs(runs, Path("each"), Drawing("runs"))[0]
    assert colours_in(together)[BLUE] > 500 and ORANGE not in colours_in(together)
    assert min(colours_in(each)[BLUE], colours_in(each)[ORANGE]) > 500


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "start"), [("svg", b"<?xml"), ("pdf", b"%PDF"), ("png", b"\x89PNG")])
def test_pictures_have_the_format_that_is_asked_for(ending, start):
    run = written_run("run", [1.0, 2.0])
    cli.main(["plot", str(run), "--output", "pictures", "--format", ending])
    files = sorted(Path("pictures").iterdir())
    assert [file.name for file in files] == [f"evaluator_iter.{ending}", f"evaluator_step.{ending}"]
    assert all(file.read_bytes().startswith(start) for file in files)


def test_a_log_root_stands_for_its_evaluated_runs_and_nothing_for_the_newest():
    runs = [written_run(f"lightning_logs/version_{i}", [1.0, 2.0]) for i in (2, 10)]
    Path("lightning_logs/version_11").mkdir()
    assert find_runs([Path("lightning_logs")]) == runs
    Path("lightning_logs/version_11").rmdir()
    assert find_runs([]) == runs[1:]
    assert find_runs(runs) == runs
    with pytest.raises(UsageError, match="no run under 'nosuch'"):
        find_runs([], Path("nosuch"))
