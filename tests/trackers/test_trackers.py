"""The run of a tracker is gone on with, and no point is there twice."""

import multiprocessing
import sys
from pathlib import Path

import pytest
from lightning.pytorch.loggers import MLFlowLogger

import pl_rl
from tests.support import read_checkpoint
from tests.trackers.support import (
    checkpoint,
    mlflow_client,
    mlflow_config,
    mlflow_ids,
    mlflow_logger,
    mlflow_points,
    mlflow_said,
    reproducible,
    trackio_config,
    trackio_ids,
    trackio_logger,
    trackio_points,
    trackio_project,
    trackio_said,
    train,
    wandb_axes,
    wandb_config,
    wandb_ids,
    wandb_logger,
    wandb_points,
    wandb_said,
)

pytestmark = [
    # wandb 0.31 and mlflow-skinny 3.17
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning"),
]


class WandB:
    WORD = "wandb"
    logger = staticmethod(wandb_logger)
    ids = staticmethod(wandb_ids)
    points = staticmethod(wandb_points)
    said = staticmethod(wandb_said)
    config = staticmethod(wandb_config)

    @staticmethod
    def end():
        import wandb

        wandb.finish()


class MLflow:
    WORD = "mlflow"
    logger = staticmethod(mlflow_logger)
    ids = staticmethod(mlflow_ids)
    points = staticmethod(mlflow_points)
    said = staticmethod(mlflow_said)
    config = staticmethod(mlflow_config)

    @staticmethod
    def end():
        pass


class Trackio:
    WORD = "trackio"
    logger = staticmethod(trackio_logger)
    ids = staticmethod(trackio_ids)
    points = staticmethod(trackio_points)
    said = staticmethod(trackio_said)
    config = staticmethod(trackio_config)

    @staticmethod
    def end():
        pass


@pytest.fixture(scope="module")
def trackio_folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(tmp_path_factory.mktemp("trackio")))  # which it reads as it is imported
        yield


# To import MLflow takes seconds.
@pytest.fixture(params=[WandB, pytest.param(MLflow, marks=pytest.mark.slow), Trackio], ids=lambda kind: kind.WORD)
def tracker(request, monkeypatch, trackio_folder):
    pytest.importorskip(request.param.__name__.lower())
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_PROJECT", trackio_project())
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # which MLflow sets
    yield request.param
    request.param.end()
    if request.param is WandB:
        sys.modules["wandb"].teardown()  # its process, which forks of this one would share


@pytest.mark.slow
def test_a_resume_goes_on_with_the_trackers_run_and_no_point_is_there_twice(tracker, tmp_path, monkeypatch, capsys):
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    train(tracker.logger(), 8)
    tracker.end()
    [whole] = tracker.ids()
    expected = tracker.points(whole)
    monkeypatch.chdir(tmp_path)
    run = train(tracker.logger(), 5)
    for iteration, until in ((3, 6), (5, 8)):
        assert train(tracker.logger(), until, checkpoint(run, iteration)) == run
    tracker.end()
    [run_id] = tracker.ids()
    points = tracker.points(run_id)
    assert reproducible(points) == reproducible(expected)
    assert {name: [step for step, _ in values] for name, values in points.items()} == {
        name: [step for step, _ in values] for name, values in expected.items()
    }
    assert len(points) > 20 and len(points["evaluator_iter/return_mean"]) == 9
    assert capsys.readouterr().out.count("fidelity: exact") == 2
    [saved] = read_checkpoint(run / "checkpoints" / "last.ckpt")["pl_rl_trackers"]
    assert saved["run_id"] == run_id


@pytest.mark.slow
def test_a_second_fit_of_one_trainer_is_refused_as_its_logger_has_a_run(tracker):
    logger = tracker.logger()
    train(logger, 1)
    with pytest.raises(pl_rl.UsageError, match=r"has a run already, \S+, and each has its own; to go on with it call"):
        train(logger, 1)
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]
    train(logger, 2, ckpt_path="last")
    tracker.end()
    [run_id] = tracker.ids()
    assert [step for step, _ in tracker.points(run_id)["losses/entropy"]] == [64, 128]


@pytest.mark.slow
def test_a_second_run_in_one_process_is_another_run_of_the_tracker(tracker):
    train(tracker.logger(), 1)
    train(tracker.logger(), 1, seed=1)
    tracker.end()
    assert sorted(tracker.config(run_id)["seed"] for run_id in tracker.ids()) == [0, 1]
    assert {tracker.config(run_id)["num_envs"] for run_id in tracker.ids()} == {4}
    assert [len(tracker.points(run_id)["evaluator_iter/return_mean"]) for run_id in tracker.ids()] == [2, 2]


@pytest.mark.slow
def test_a_branch_is_a_run_of_its_own_that_knows_its_parent(tracker):
    run = train(tracker.logger(), 2)
    [parent] = tracker.ids()
    branch = train(tracker.logger(), 3, checkpoint(run, 1), branch=True)
    tracker.end()
    assert branch != run
    [child] = set(tracker.ids()) - {parent}
    said = tracker.said(child)
    assert said["parent"] == parent and said["env_steps"] == 64
    assert said["checkpoint"] == str(checkpoint(run, 1))
    assert [step for step, _ in tracker.points(child)["losses/entropy"]] == [128, 192]


@pytest.mark.slow
def test_wandb_draws_each_metric_against_what_its_steps_count():
    pytest.importorskip("wandb")
    train(wandb_logger(), 1)
    WandB.end()
    axes = wandb_axes(wandb_ids()[0])
    assert axes["evaluator_iter/return_mean"] == axes["hp_metric"] == "train_iter"
    assert axes["evaluator_step/return_mean"] == axes["losses/entropy"] == "env_steps"
    assert wandb_points(wandb_ids()[0], axis="train_iter")["evaluator_iter/return_mean"][-1][0] == 4


@pytest.mark.slow
def test_mlflows_files_are_gone_on_with_as_its_database_is(monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run = train(MLFlowLogger("test", save_dir="mlruns"), 3)
    train(MLFlowLogger("test", save_dir="mlruns"), 4, checkpoint(run, 2))
    client = mlflow.MlflowClient("file:mlruns")
    [one] = client.search_runs([client.get_experiment_by_name("test").experiment_id])
    assert [point.step for point in client.get_metric_history(one.info.run_id, "losses/entropy")] == [64, 128, 192, 256]


@pytest.mark.slow
def test_a_second_run_in_one_process_has_mlflows_database_where_it_is(monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for folder in ("one", "other"):
        Path(folder).mkdir()
        monkeypatch.chdir(folder)
        train("mlflow", 1)
        assert len(mlflow_ids()) == 1
        monkeypatch.chdir("..")


@pytest.mark.slow
def test_what_a_tracker_has_lost_is_sent_again(capsys):
    pytest.importorskip("mlflow")
    run = train(mlflow_logger(), 3)
    [run_id] = mlflow_ids()
    mlflow_client().delete_run(run_id)
    train(mlflow_logger(), 4, checkpoint(run, 3))
    [other] = mlflow_ids()
    assert other != run_id and f"the MLflow run {run_id} was deleted" in capsys.readouterr().out
    assert [step for step, _ in mlflow_points(other)["losses/entropy"]] == [64, 128, 192, 256]


@pytest.mark.slow
def test_many_that_start_at_once_have_a_directory_and_a_run_each(tracker, tmp_path):
    many = 20 if tracker is WandB else 6
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(many), context.Queue()
    processes = [context.Process(target=start, args=(tracker, barrier, queue)) for _ in range(many)]
    for process in processes:
        process.start()
    runs = [queue.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * many
    assert set(runs) == {str(tmp_path / "lightning_logs" / f"version_{number}") for number in range(many)}
    assert len(tracker.ids()) == many
    assert all(len(tracker.points(run_id)["evaluator_iter/return_mean"]) == 2 for run_id in tracker.ids())


def start(tracker, barrier, queue):
    barrier.wait(60)
    queue.put(str(train(tracker.WORD, 1)))
    tracker.end()
