"""Evaluations: when, on which axes, and what they stop."""

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from pl_rl import EnvConfig
from tests.support import MemoryLogger, event_scalars, fit, same_bits, small_ppo

STATISTICS = {
    f"{quantity}_{statistic}" for quantity in ("return", "length") for statistic in ("mean", "min", "max", "std")
}


@pytest.mark.slow
def test_results_are_written_on_both_axes(tmp_path):
    fit(small_ppo(eval_freq=8), logger=TensorBoardLogger(tmp_path, name=None, version="run"))
    scalars = event_scalars(tmp_path / "run")
    by_iter = {tag.split("/")[1]: points for tag, points in scalars.items() if tag.startswith("evaluator_iter/")}
    by_step = {tag.split("/")[1]: points for tag, points in scalars.items() if tag.startswith("evaluator_step/")}
    assert set(by_iter) == set(by_step) == STATISTICS
    for name in STATISTICS:
        # An iteration is 64 env steps and 4 train iterations, so 8 train iterations are 128 env steps.
        assert [step for step, _ in by_iter[name]] == [0, 8, 16, 24, 32]
        assert [step for step, _ in by_step[name]] == [0, 128, 256, 384, 512]
        assert [value for _, value in by_iter[name]] == [value for _, value in by_step[name]]


def evaluated_at(**settings):
    logger = MemoryLogger()
    fit(small_ppo(**settings), logger=logger)
    return [step for step, _ in logger.points("evaluator_iter/return_mean")]


@pytest.mark.parametrize(
    ("eval_freq", "at"),
    [
        (0, []),
        (1, [0, 4, 8, 12, 16, 20, 24, 28, 32]),
        (10, [0, 12, 20, 32]),  # after the iterations, of 4 updates, that pass 10, 20 and 30
        (32, [0, 32]),
        (1000, [0]),
    ],
)
def test_the_policy_is_evaluated_untrained_and_where_multiples_of_the_frequency_are_passed(eval_freq, at):
    assert evaluated_at(eval_freq=eval_freq) == at


def test_statistics_are_of_the_episodes_asked_for():
    logger = MemoryLogger()
    model = small_ppo(
        env=EnvConfig("PlRlTest/Counter-v0", kwargs={"truncate_at": 3}), eval_freq=32, eval_episodes=2, eval_num_envs=2
    )
    fit(model, logger=logger)
    # Rewards 1, 2, 3 in each episode.
    assert logger.values("evaluator_iter/return_mean") == [6.0, 6.0]
    assert logger.values("evaluator_iter/return_std") == [0.0, 0.0]
    assert logger.values("evaluator_step/length_max") == [3.0, 3.0]


def test_the_stop_value_ends_the_run_and_says_so(caplog):
    model = small_ppo(eval_freq=8, stop_value=1.0)
    with caplog.at_level("INFO"):
        fit(model)
    # The untrained policy reaches a return of 1, which does not count; the first evaluation after that is at 8 updates.
    assert (model.iteration, model.train_iter) == (2, 8)
    assert "reached stop_value=1" in model.stop_reason
    assert model.stop_reason in caplog.text


@pytest.mark.slow
def test_the_stop_value_is_a_mean_return_that_is_reached_or_passed():
    env = EnvConfig("PlRlTest/Counter-v0", kwargs={"truncate_at": 4})
    # 1 + 2 + 3 + 4 = 10 is reached, 11 is not.
    reached, missed = small_ppo(env=env, eval_freq=8, stop_value=10.0), small_ppo(env=env, eval_freq=8, stop_value=10.5)
    fit(reached)
    fit(missed)
    assert reached.iteration < missed.iteration == 8
    assert reached.stop_reason == "evaluation return 10 reached stop_value=10"
    assert missed.stop_reason == "total_env_steps=512 reached"


@pytest.mark.slow
def test_a_trained_policy_that_reaches_the_stop_value_is_not_trained_further():
    logger = MemoryLogger()
    settings = {"total_env_steps": 20_000, "num_steps": 64, "minibatch_size": 64, "learning_rate": 2e-3, "gamma": 0.9}
    model = small_ppo(eval_freq=8, stop_value=60.0, **settings)
    fit(model, logger=logger)
    *before, last = logger.values("evaluator_iter/return_mean")
    assert len(before) >= 1
    assert max(before) < 60 <= last
    assert logger.points("evaluator_iter/return_mean")[-1][0] == model.train_iter


@pytest.mark.slow
def test_other_callbacks_can_monitor_the_results():
    model = small_ppo(eval_freq=8)
    logger = MemoryLogger()
    trainer = fit(model, logger=logger)
    for name in STATISTICS:
        last = logger.values(f"evaluator_iter/{name}")[-1]
        assert trainer.callback_metrics[f"evaluator/{name}"] == torch.tensor(last, dtype=torch.float32)


@pytest.mark.slow
def test_the_best_return_is_the_runs_metric_for_hyperparameters():
    logger = MemoryLogger()
    fit(small_ppo(eval_freq=8), logger=logger)
    returns = logger.values("evaluator_iter/return_mean")
    assert logger.values("hp_metric") == [max(returns[: i + 1]) for i in range(len(returns))]


@pytest.mark.slow
def test_each_evaluation_plays_episodes_of_its_own():
    logger = MemoryLogger()
    # The policy stays as it is, so that only the episodes make a difference.
    fit(small_ppo(eval_freq=4, learning_rate=1e-12), logger=logger)
    assert len(set(logger.values("evaluator_iter/return_mean"))) > 1


@pytest.mark.slow
def test_evaluating_moves_no_weight():
    model = small_ppo(eval_freq=1)
    fit(model)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    fit_free = small_ppo(eval_freq=0)
    fit(fit_free)
    assert same_bits(weights, fit_free.state_dict())
