"""A run's own record of its evaluations."""

import os
from pathlib import Path

import numpy as np
import pytest

from pl_rl.runs.evaluations import EVALUATIONS, add_evaluation, begin_segment, read_evaluations
from pl_rl.tools.plotting import plot_runs, read_segments
from tests.runs.test_claim import train
from tests.support import MemoryLogger, event_scalars


def record(run, axis="train_iter"):
    return [(row["segment"], row[axis], row["return_mean"]) for row in read_evaluations(run)]


@pytest.mark.slow
@pytest.mark.parametrize("logger", [True, False])
def test_it_holds_each_evaluation_once_however_often_the_run_was_resumed(logger):
    whole = record(train(logger, until=6))
    run = train(logger, until=4)
    os.link(run / EVALUATIONS, "backup")
    before = Path("backup").read_bytes()
    last = run / "checkpoints" / "last.ckpt"
    first = run / "checkpoints" / "previous.ckpt"  # of the iteration before
    assert train(logger, until=5, ckpt_path=first) == run
    assert train(logger, until=6, ckpt_path=last) == run
    assert [point[1:] for point in record(run)] == [point[1:] for point in whole]
    assert sorted({segment for segment, _, _ in record(run)}) == [0, 1, 2]
    assert Path("backup").read_bytes() == before


def test_it_says_what_tensorboard_says():
    run = train(True, until=4)
    scalars = event_scalars(run)
    for axis, group in (("train_iter", "evaluator_iter"), ("env_steps", "evaluator_step")):
        recorded = [(step, np.float32(value)) for _, step, value in record(run, axis)]  # as TensorBoard keeps it
        assert recorded == scalars[f"{group}/return_mean"]


@pytest.mark.slow
def test_a_line_that_was_being_written_is_left_out():
    run = train(False, until=4)
    rows = record(run)
    with (run / EVALUATIONS).open("a") as file:
        file.write("0,5")
    assert record(run) == rows
    assert train(False, until=5, ckpt_path=run / "checkpoints" / "last.ckpt") == run
    assert len(record(run)) == len(rows) + 1


@pytest.mark.slow
def test_plot_draws_it_where_there_is_no_tensorboard():
    run = train(MemoryLogger(), until=4)
    train(MemoryLogger(), until=6, ckpt_path=run / "checkpoints" / "last.ckpt")
    segments = read_segments(run, "evaluator_step")
    assert [int(step) for segment in segments for step in segment.steps] == [
        int(p[1]) for p in record(run, "env_steps")
    ]
    assert len(segments) == 2 and len(plot_runs([run], run)) == 4


def test_what_episodes_tell_later_on_gets_a_column_and_loses_no_row(tmp_path):
    for number, statistics in enumerate([{"a": 1.0}, {"a": 2.0, "success_rate": 0.5}, {"a": 3.0}]):
        add_evaluation(tmp_path, 0, number, 8 * number, statistics)
    kept = [{name: row[name] for name in row.keys() & {"a", "success_rate"}} for row in read_evaluations(tmp_path)]
    assert kept == [{"a": 1.0}, {"a": 2.0, "success_rate": 0.5}, {"a": 3.0}]
    assert begin_segment(tmp_path, 1) == 1
    assert [row["a"] for row in read_evaluations(tmp_path)] == [1.0, 2.0]
