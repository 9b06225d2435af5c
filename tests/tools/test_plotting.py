"""Learning curves as PNG files."""

import os
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from pl_rl import UsageError
from pl_rl.tools.plotting import Drawing, _smoothed, plot_runs, read_segments, seams_of
from tests.resume.test_resume import last_of, run_of, train


def written_run(name, means, first=0):
    """An event file as an evaluation every 100 train iterations and 800 env steps writes it."""
    with SummaryWriter(name, filename_suffix=f".{first}") as writer:
        for i, mean in enumerate(means, start=first):
            for group, step in [("evaluator_iter", 100 * i), ("evaluator_step", 800 * i)]:
                for statistic, value in [("mean", mean), ("min", mean - 5), ("max", mean + 10)]:
                    writer.add_scalar(f"{group}/return_{statistic}", value, step)
    return Path(name)


def colours_in(path):
    """How many pixels there are of each colour, white left out."""
    pixels = (matplotlib.image.imread(path)[..., :3] * 255).round().astype(int).reshape(-1, 3)
    colours, counts = np.unique(pixels, axis=0, return_counts=True)
    return {tuple(colour.tolist()): count for colour, count in zip(colours, counts, strict=True) if colour.min() < 255}


BLUE, ORANGE = (31, 119, 180), (255, 127, 14)


def test_a_curve_holds_what_was_logged_on_its_axis():
    run = written_run("run", [10.0, 20.0, 40.0])
    (by_iter,), (by_step,) = read_segments(run, "evaluator_iter"), read_segments(run, "evaluator_step")
    assert by_iter.steps.tolist() == [0, 100, 200]
    assert by_step.steps.tolist() == [0, 800, 1600]
    for curve in (by_iter, by_step):
        assert curve.mean.tolist() == [10, 20, 40]
        assert curve.low.tolist() == [5, 15, 35]
        assert curve.high.tolist() == [20, 30, 50]


@pytest.mark.slow
def test_a_curve_of_many_points_is_whole():
    # TensorBoard's reader keeps a sample of 1,000 points unless told otherwise.
    (curve,) = read_segments(written_run("run", range(1500)), "evaluator_iter")
    assert len(curve.steps) == 1500


@pytest.mark.slow
def test_a_picture_is_drawn_for_each_axis():
    run = written_run("run", [10.0, 20.0, 40.0])
    files = plot_runs([run], Path("new/folder"))
    assert files == [Path("new/folder/evaluator_iter.png"), Path("new/folder/evaluator_step.png")]
    for file in files:
        assert file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert matplotlib.image.imread(file).shape[:2] == (600, 960)
        colours = colours_in(file)
        assert colours[BLUE] > 500, "the line of means"
        # The band from minimum to maximum is the line's colour at 18 %: 255 - 0.18 * (255 - 31) = 215 and so on.
        band = sum(count for colour, count in colours.items() if np.abs(np.array(colour) - (215, 231, 242)).max() <= 2)
        assert band > 10_000


@pytest.mark.slow
def test_each_run_has_its_own_colour():
    runs = [written_run("one", [10.0, 20.0, 40.0]), written_run("two", [90.0, 80.0, 70.0])]
    for file in plot_runs(runs, Path("both")):
        colours = colours_in(file)
        assert min(colours[BLUE], colours[ORANGE]) > 500
    assert ORANGE not in colours_in(plot_runs(runs[:1], Path("first"))[0])


@pytest.mark.slow
def test_runs_whose_folders_have_the_same_name_are_all_drawn():
    runs = [written_run("one/version_0", [10.0, 20.0, 40.0]), written_run("two/version_0", [90.0, 80.0, 70.0])]
    colours = colours_in(plot_runs(runs, Path("both"))[0])
    assert min(colours.get(BLUE, 0), colours.get(ORANGE, 0)) > 500


@pytest.mark.slow
def test_a_resumed_run_is_drawn_before_and_after_the_seam():
    run = written_run("run", [10.0, 20.0, 40.0])
    before = [file.name for file in plot_runs([run], Path("before"))]
    written_run("run", [50.0, 60.0], first=3)
    assert [len(segment.steps) for segment in read_segments(run, "evaluator_step")] == [3, 2]
    assert before == ["evaluator_iter.png", "evaluator_step.png"]
    files = {file.stem: colours_in(file) for file in plot_runs([run], Path("after"))}
    for axis in ("evaluator_iter", "evaluator_step"):
        assert ORANGE not in files[f"{axis}_pretrain"]
        assert min(files[f"{axis}_resume"][BLUE], files[f"{axis}_resume"][ORANGE]) > 200


def trained_run(name, first=0, began=1_000.0, seam=None):
    """Training returns 1, 2, 3, a point every 100 env steps and 10 seconds."""
    with SummaryWriter(name, filename_suffix=f".{first}") as writer:
        if seam is not None:
            writer.add_text("resume/env_steps", "Continued.", seam, walltime=began)
            writer.add_text("resume/train_iter", "Continued.", seam // 8, walltime=began)
        for i in range(first, first + 3):
            writer.add_scalar("rollout/return_mean", i + 1.0, 100 * i, walltime=began + 10 * (i - first))
            for group, step in [("evaluator_iter", 100 * i // 8), ("evaluator_step", 100 * i)]:
                for statistic in ("mean", "min", "max"):
                    writer.add_scalar(f"{group}/return_{statistic}", i + 1.0, step, walltime=began + 10 * (i - first))
    return Path(name)


def test_returns_of_training_are_drawn_against_env_steps():
    run = trained_run("run")
    (curve,) = read_segments(run, "rollout_step")
    assert curve.steps.tolist() == [0, 100, 200]
    assert curve.mean.tolist() == curve.low.tolist() == curve.high.tolist() == [1, 2, 3]
    assert [path.name for path in plot_runs([run], run, Drawing(returns="training"))] == ["rollout_step.png"]


def test_returns_of_training_are_not_drawn_against_train_iterations():
    with pytest.raises(UsageError, match="not logged against train_iter; use --axis env_steps or time"):
        plot_runs([trained_run("run")], Path("out"), Drawing(returns="training", axis="train_iter"))


@pytest.mark.slow
def test_one_axis_alone():
    run = trained_run("run")
    for axis, name in [("train_iter", "evaluator_iter"), ("env_steps", "evaluator_step"), ("time", "evaluator_time")]:
        assert [path.name for path in plot_runs([run], run, Drawing(axis=axis))] == [f"{name}.png"]


@pytest.mark.parametrize("group", ["evaluator_time", "rollout_time"])
def test_time_is_that_of_training_and_not_of_the_pause(group, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1_000.0)  # at which the file says that it was opened
    trained_run("run")
    monkeypatch.setattr("time.time", lambda: 9_000.0)
    trained_run("run", first=3, began=9_000.0)
    first, second = read_segments(Path("run"), group)
    assert first.steps.tolist() == [0, 10, 20]
    assert second.steps.tolist() == [20, 30, 40]


@pytest.mark.slow
def test_the_seam_is_where_the_resume_went_on(monkeypatch):
    trained_run("run")
    trained_run("run", first=3, seam=248)
    assert seams_of(Path("run"), "evaluator_step") == [248]
    assert seams_of(Path("run"), "evaluator_iter") == [31]
    drawn = []
    monkeypatch.setattr("matplotlib.axes.Axes.axvline", lambda axes, x, **style: drawn.append(x))
    plot_runs([Path("run")], Path("out"))
    assert drawn == [31, 248]


@pytest.mark.slow
def test_a_seam_that_nobody_noted_is_at_the_last_point_before(monkeypatch):
    trained_run("run")
    trained_run("run", first=3)
    drawn = []
    monkeypatch.setattr("matplotlib.axes.Axes.axvline", lambda axes, x, **style: drawn.append(x))
    plot_runs([Path("run")], Path("out"))
    assert drawn == [25, 200]


def test_curves_are_smoothed_across_a_seam():
    trained_run("run")
    trained_run("run", first=3)
    drawing = Drawing(smooth=2)
    first, second = _smoothed(read_segments(Path("run"), "evaluator_step"), drawing)
    assert first.mean.tolist() == [1, 1.5, 2.5]
    assert second.mean.tolist() == [3.5, 4.5, 5.5]
    assert second.steps.tolist() == [300, 400, 500]
    with pytest.raises(UsageError, match="--smooth 0 averages over no point"):
        plot_runs([Path("run")], Path("out"), Drawing(smooth=0))


@pytest.mark.slow
def test_a_run_of_a_single_evaluation_can_be_drawn():
    assert all(file.is_file() for file in plot_runs([written_run("run", [10.0])], Path("run")))


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(UsageError, match="there is no run directory 'nosuch'"):
        plot_runs([Path("nosuch")], Path("pictures"))


def test_a_folder_without_evaluations_is_named_and_nothing_is_drawn():
    Path("empty").mkdir()
    with pytest.raises(UsageError, match=r"'empty' holds no evaluation.*version_N"):
        plot_runs([written_run("run", [1.0]), Path("empty")], Path("pictures"))
    assert not Path("pictures").exists()


@pytest.mark.parametrize("plant", [os.link, os.symlink])
def test_no_link_is_followed(plant):
    run = written_run("run", [10.0, 20.0])
    precious = Path("precious").absolute()
    precious.write_text("mine")
    for name in ("evaluator_iter.png", ".evaluator_iter.png.partial", "evaluator_step.png"):
        plant(precious, run / name)
    for file in plot_runs([run], run):
        assert file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and not file.is_symlink()
    assert precious.read_text() == "mine"


def test_what_is_no_event_file_is_passed_over():
    run = written_run("run", [10.0, 20.0])
    os.mkfifo(run / "events.out.tfevents.1")
    (run / "events.out.tfevents.2").mkdir()
    (run / "events.out.tfevents.3").symlink_to("/dev/zero")
    (curve,) = read_segments(run, "evaluator_iter")
    assert curve.mean.tolist() == [10, 20]


def test_a_file_that_cannot_be_written_is_named():
    run = written_run("run", [10.0, 20.0])
    (run / "evaluator_iter.png").mkdir()
    with pytest.raises(UsageError, match=r"run/evaluator_iter\.png cannot be written \(.*; name another folder"):
        plot_runs([run], run)


@pytest.mark.slow
def test_a_resume_notes_its_seam_on_both_axes(tmp_path):
    train(tmp_path, until=3)
    train(tmp_path, until=5, ckpt_path=last_of(tmp_path))
    run = run_of(tmp_path)
    assert seams_of(run, "evaluator_iter") == [3 * 4]
    assert seams_of(run, "evaluator_step") == [3 * 64]
    assert len(plot_runs([run], tmp_path, Drawing(returns="training"))) == 2, "before and after the seam"
