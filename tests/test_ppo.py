"""PPO in a Trainer: budgets, reproducibility, settings and their errors, checkpoints of a model."""

import math
import time
import tomllib
from functools import partial
from pathlib import Path

import gymnasium as gym
import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pl_rl import PPO, CNNActorCritic, EnvConfig, MLPActorCritic, UsageError
from pl_rl.compiled.choice import choose_compilation
from pl_rl.runs.dashboard import LAYOUT
from tests.example_networks import LinearValue
from tests.support import (
    MemoryLogger,
    counters_in,
    event_scalars,
    fit,
    quiet_trainer,
    read_checkpoint,
    same_bits,
    small_ppo,
)


def test_a_plain_trainer_trains():
    L.seed_everything(0, verbose=False)
    model = PPO("CartPole-v1", total_env_steps=2048)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    trainer = L.Trainer(accelerator="cpu", max_epochs=-1)
    trainer.fit(model)
    assert model.env_steps == 2048
    assert not same_bits(before, model.state_dict())


def test_how_often_it_evaluates_is_said_in_all_units(caplog):
    small = {"num_envs": 4, "num_steps": 16, "minibatch_size": 32, "update_epochs": 2, "total_env_steps": 64}
    with caplog.at_level("INFO"):
        fit(small_ppo(**small, eval_freq=6))
        assert "Evaluation every 6 train iterations = 1.5 iterations = 96 env steps." in caplog.text
        caplog.clear()
        fit(small_ppo(**small, eval_freq=0))
        assert "Evaluation every" not in caplog.text


def test_counters_count_what_they_say():
    model = small_ppo()
    trainer = fit(model)
    # 512 transitions in rollouts of 4 * 16 = 64; of each, 2 epochs of 64 / 32 minibatches.
    assert (model.env_steps, model.iteration, model.train_iter) == (512, 8, 8 * 2 * 2)
    assert trainer.global_step == model.train_iter
    assert trainer.current_epoch == model.iteration
    assert model.stop_reason == "total_env_steps=512 reached"


@pytest.mark.parametrize(
    ("limits", "total_env_steps", "iterations"),
    [
        ({}, 500, 8),  # the iteration that passes the budget is finished
        ({}, 1, 1),
        ({"max_epochs": 3}, 512, 3),
        ({"max_epochs": 100}, 512, 8),
        ({"max_epochs": -1, "max_steps": 5}, 512, 2),  # of 4 updates each, and none is cut short
    ],
)
def test_the_first_limit_reached_ends_the_run(limits, total_env_steps, iterations):
    model = small_ppo(total_env_steps=total_env_steps)
    fit(model, **limits)
    assert (model.iteration, model.env_steps) == (iterations, 64 * iterations)


def test_a_limit_of_the_trainer_is_no_reason_of_the_models():
    model = small_ppo()
    fit(model, max_epochs=2)
    assert model.stop_reason is None


def trained(seed=0, **settings):
    """A trained model and what it logged, less the times."""
    model, logger = small_ppo(seed, **settings), MemoryLogger()
    fit(model, logger=logger)
    scalars = [
        (step, {name: value for name, value in scalars.items() if not name.startswith("time/")})
        for step, scalars in logger.calls
    ]
    return model, scalars


@pytest.mark.parametrize("settings", [{"eval_freq": 10}, {"env": EnvConfig("Pendulum-v1", "sync"), "eval_freq": 10}])
def test_the_same_seed_gives_the_same_bits(settings):
    (one, one_log), (same, same_log), (other, _) = (trained(seed, **settings) for seed in (3, 3, 4))
    assert same_bits(one.state_dict(), same.state_dict())
    assert repr(one_log) == repr(same_log), "including NaN, which does not equal itself"
    assert not same_bits(one.state_dict(), other.state_dict())


@pytest.mark.slow
def test_another_seed_samples_other_actions():
    def policy(seed):
        # Nothing but the actions is random: neither the environment nor the initial weights.
        model = small_ppo(seed, env=EnvConfig("PlRlTest/Counter-v0", kwargs={"truncate_at": 10}), network=LinearValue)
        fit(model)
        return model.network.outputs

    assert torch.equal(policy(1), policy(1))
    assert not torch.equal(policy(1), policy(2))


@pytest.mark.slow
def test_a_model_can_be_trained_again_from_the_start():
    model = small_ppo()
    fit(model)
    torch.manual_seed(0)
    fit(model)
    assert (model.env_steps, model.iteration, model.train_iter) == (512, 8, 32)


@pytest.mark.slow
def test_how_often_is_evaluated_changes_nothing_in_training():
    never, often, sampled = (
        trained(eval_freq=eval_freq, eval_deterministic=deterministic)[0]
        for eval_freq, deterministic in [(0, True), (4, True), (4, False)]
    )
    assert same_bits(never.state_dict(), often.state_dict())
    assert same_bits(never.state_dict(), sampled.state_dict())


def test_training_does_not_draw_from_the_global_random_generators():
    model = small_ppo()
    torch.manual_seed(7)
    np.random.seed(7)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    fit(model)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


def one_iteration_of_the_counter(truncate_at=None, terminate_at=None, **settings):
    """Scalars of one update on five counted steps, V(s) = 10 s + 1, gamma = lambda = 0.5."""
    logger = MemoryLogger()
    model = small_ppo(
        env=EnvConfig("PlRlTest/Counter-v0", kwargs={"truncate_at": truncate_at, "terminate_at": terminate_at}),
        network=LinearValue,
        total_env_steps=5,
        num_envs=1,
        num_steps=5,
        minibatch_size=5,
        update_epochs=1,
        gamma=0.5,
        gae_lambda=0.5,
        **settings,
    )
    fit(model, logger=logger)
    return {name: value for _, scalars in logger.calls for name, value in scalars.items()}


def test_a_time_limit_is_bootstrapped_with_the_final_observation():
    # Values 1, 11, 21, 1, 11 and next values 11, 21, 31, 11, 21 make the errors 5.5, 1.5, -2.5, 5.5, 1.5, and so
    # A_4 = 1.5, A_3 = 5.5 + 0.25 * 1.5, A_2 = -2.5, A_1 = 1.5 + 0.25 * -2.5, A_0 = 5.5 + 0.25 * 0.875.
    advantages = np.array([5.71875, 0.875, -2.5, 5.875, 1.5])
    scalars = one_iteration_of_the_counter(truncate_at=3)
    # Returns less values are the advantages.
    assert scalars["losses/value_loss"] == pytest.approx(0.5 * (advantages**2).mean(), rel=1e-6)
    values = np.array([1, 11, 21, 1, 11])
    explained = 1 - advantages.var() / (advantages + values).var()
    assert scalars["losses/explained_variance"] == pytest.approx(explained, rel=1e-5)


def test_a_terminated_episode_has_no_future():
    # The third error is 3 - 21 = -18, so A_1 = 1.5 + 0.25 * -18 = -3 and A_0 = 5.5 + 0.25 * -3 = 4.75.
    advantages = np.array([4.75, -3.0, -18.0, 5.875, 1.5])
    scalars = one_iteration_of_the_counter(terminate_at=3)
    assert scalars["losses/value_loss"] == pytest.approx(0.5 * (advantages**2).mean(), rel=1e-6)


def test_losses_of_a_first_update_by_hand():
    # The ratio is 1, so the surrogate is minus the mean advantage: of normalized ones that is 0.
    advantages = np.array([5.71875, 0.875, -2.5, 5.875, 1.5])
    normalized = one_iteration_of_the_counter(truncate_at=3)
    raw = one_iteration_of_the_counter(truncate_at=3, norm_adv=False)
    assert normalized["losses/policy_loss"] == pytest.approx(0, abs=1e-6)
    assert raw["losses/policy_loss"] == pytest.approx(-advantages.mean(), rel=1e-6)
    # Two actions of equal probability.
    assert raw["losses/entropy"] == pytest.approx(np.log(2), rel=1e-6)
    assert (raw["losses/approx_kl"], raw["losses/clip_fraction"]) == (0, 0)
    # One episode of return 1 + 2 + 3 ended.
    assert (raw["rollout/return_mean"], raw["rollout/length_mean"], raw["rollout/episodes"]) == (6, 3, 1)


def test_the_gradient_norm_by_hand_is_logged_as_it_was_before_clipping():
    # V = slope * s + offset, so with vf_coef = 2 the gradient of 2 * 0.5 * mean((V - R)**2) is -2 * mean(A s) in the
    # slope and -2 * mean(A) in the offset. The two logits add a little.
    scalars = one_iteration_of_the_counter(truncate_at=3, vf_coef=2.0, ent_coef=0.0, max_grad_norm=None)
    advantages, steps = np.array([5.71875, 0.875, -2.5, 5.875, 1.5]), np.array([0, 1, 2, 0, 1])
    critic = np.array([2 * (advantages * steps).mean(), 2 * advantages.mean()])
    # Each logit's gradient is at most the mean absolute normalized advantage, which is below 1.
    assert np.linalg.norm(critic) <= scalars["losses/grad_norm"] <= np.linalg.norm([*critic, 1, 1])
    clipped = one_iteration_of_the_counter(truncate_at=3, vf_coef=2.0, max_grad_norm=0.1)
    assert clipped["losses/grad_norm"] == scalars["losses/grad_norm"]


def test_the_gradient_is_clipped_to_its_norm():
    class PlainDescent(PPO):
        def configure_optimizers(self):
            return torch.optim.SGD(self.network.parameters(), lr=1.0)

    model = small_ppo(
        model_class=PlainDescent,
        max_grad_norm=0.125,
        learning_rate=1.0,
        total_env_steps=64,
        update_epochs=1,
        minibatch_size=64,
    )
    before = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    fit(model)
    moved = torch.nn.utils.parameters_to_vector(model.parameters()).detach() - before
    assert moved.norm().item() == pytest.approx(0.125, rel=1e-3)


def test_learning_rate_and_clip_are_annealed_to_the_end_of_the_budget():
    logger = MemoryLogger()
    model = small_ppo(learning_rate=1e-3, anneal_lr=True, clip_coef=0.2, anneal_clip=True)
    trainer = fit(model, logger=logger)
    # Iteration i of 8 learns with 1 - i / 8 of the initial value.
    expected = [1 - i / 8 for i in range(8)]
    assert logger.values("schedule/learning_rate") == pytest.approx([1e-3 * share for share in expected])
    assert logger.values("schedule/clip_coef") == pytest.approx([0.2 * share for share in expected])
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3 / 8)


@pytest.mark.parametrize(("env_steps", "iterations"), [(64 * 4, 4), (64 * 16, 16)])
def test_schedules_have_a_length_and_the_rate_an_end_of_their_own(env_steps, iterations):
    logger = MemoryLogger()
    settings = {"learning_rate": 1e-3, "final_learning_rate": 2e-4, "anneal_env_steps": env_steps}
    fit(small_ppo(anneal_lr=True, anneal_clip=True, **settings), logger=logger)
    done = [min(1, i / iterations) for i in range(8)]
    assert logger.values("schedule/learning_rate") == pytest.approx([1e-3 - 8e-4 * share for share in done])
    assert logger.values("schedule/clip_coef") == pytest.approx([0.2 * (1 - share) for share in done])


def test_each_coefficient_follows_a_schedule_of_its_own():
    logger = MemoryLogger()
    schedules = {"anneal_lr": "cosine", "anneal_clip": lambda progress: 2 - progress, "anneal_ent": "linear"}
    fit(small_ppo(learning_rate=1e-3, clip_coef=0.1, ent_coef=0.01, **schedules), logger=logger)
    done = [i / 8 for i in range(8)]
    cosine = [1e-3 * (1 + math.cos(math.pi * share)) / 2 for share in done]
    assert logger.values("schedule/learning_rate") == pytest.approx(cosine)
    assert logger.values("schedule/clip_coef") == pytest.approx([0.1 * (2 - share) for share in done])
    assert logger.values("schedule/ent_coef") == pytest.approx([0.01 * (1 - share) for share in done])


@pytest.mark.slow
@pytest.mark.parametrize(("before", "now"), [(True, "linear"), (False, "constant"), (True, lambda done: 1 - done)])
def test_a_schedule_by_another_name_has_the_same_bits(before, now):
    names = ("anneal_lr", "anneal_clip", "anneal_ent")
    one, other = (small_ppo(ent_coef=0.01, **dict.fromkeys(names, schedule)) for schedule in (before, now))
    fit(one)
    fit(other)
    assert same_bits(one.state_dict(), other.state_dict())


@pytest.mark.slow
def test_the_entropy_weight_of_the_loss_is_the_scheduled_one():
    weightless, without = small_ppo(ent_coef=0.5, anneal_ent=lambda progress: 0.0), small_ppo(ent_coef=0.0)
    fit(weightless)
    fit(without)
    assert same_bits(weightless.state_dict(), without.state_dict())


def test_a_schedule_that_gives_no_factor_is_refused():
    with pytest.raises(UsageError, match=r"^a schedule gave -1.0 at 0.0% of the run and must give"):
        fit(small_ppo(anneal_clip=lambda progress: -1))


def test_without_annealing_both_stay():
    logger = MemoryLogger()
    fit(small_ppo(learning_rate=1e-3), logger=logger)
    assert logger.values("schedule/learning_rate") == [1e-3] * 8
    assert logger.values("schedule/clip_coef") == [0.2] * 8


def test_metrics_are_logged_against_env_steps():
    logger = MemoryLogger()
    fit(small_ppo(), logger=logger)
    assert [step for step, _ in logger.points("losses/policy_loss")] == [64 * i for i in range(1, 9)]
    assert set(logger.calls[-1][1]) == {
        "losses/loss",
        "losses/policy_loss",
        "losses/value_loss",
        "losses/entropy",
        "losses/approx_kl",
        "losses/clip_fraction",
        "losses/explained_variance",
        "losses/grad_norm",
        "rollout/return_mean",
        "rollout/length_mean",
        "rollout/episodes",
        "schedule/learning_rate",
        "schedule/clip_coef",
        "time/env_steps_per_second",
    }


@pytest.mark.slow
def test_the_loss_is_the_sum_of_its_parts():
    scalars = one_iteration_of_the_counter(truncate_at=3, vf_coef=0.25, ent_coef=0.5)
    parts = [scalars[f"losses/{name}"] for name in ("policy_loss", "value_loss", "entropy")]
    assert scalars["losses/loss"] == pytest.approx(parts[0] + 0.25 * parts[1] - 0.5 * parts[2], rel=1e-6)


@pytest.mark.slow
def test_the_standard_deviation_of_continuous_actions_is_logged():
    logger = MemoryLogger()
    model = small_ppo(env="Pendulum-v1", network=partial(MLPActorCritic, log_std_init=-1.0), learning_rate=1e-9)
    fit(model, logger=logger)
    assert logger.values("policy/std") == [pytest.approx(math.exp(-1), rel=1e-4)] * 8


@pytest.mark.slow
def test_tensorboard_has_a_group_of_charts_for_each_question(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    fit(small_ppo(env="Pendulum-v1", eval_freq=8, norm_obs=True), logger=logger)
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert "custom_scalars__config__" in events.Tags()["tensors"]
    charts = [tags for group in LAYOUT.values() for _, tags in group.values()]
    # Of an environment whose episodes have not ended, there is no return of training.
    ended = {"rollout/return_mean", "rollout/length_mean"}
    assert {tag for tags in charts for tag in tags} - ended <= set(events.Tags()["scalars"])
    assert next(iter(LAYOUT)) == "How good is it?", "what matters first"


def test_how_often_metrics_are_logged_is_counted_in_train_iterations():
    logger = MemoryLogger()
    fit(small_ppo(), logger=logger, log_every_n_steps=10)
    # Train iterations 4, 8, 12, ...: multiples of 10 are passed in iterations 3, 5 and 8 (12, 20, 32).
    assert [step for step, _ in logger.points("losses/policy_loss")] == [192, 320, 512]


@pytest.mark.slow
def test_a_target_kl_ends_an_iterations_updates_early():
    # Any change at all exceeds this target: the first update of each iteration is made, no further one.
    model = small_ppo(target_kl=1e-12)
    trainer = fit(model)
    assert (model.iteration, model.train_iter, trainer.global_step) == (8, 8, 8)
    # And none exceeds this one.
    assert trained(target_kl=1e6)[0].train_iter == 32


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"clip_vloss": True, "learning_rate": 0.1},
        {"ent_coef": 0.1},
        {"vf_coef": 1.0},
        {"clip_coef": 1e-4},
        {"gamma": 0.5},
    ],
)
def test_settings_change_what_is_learnt(settings):
    default = {"learning_rate": 0.1} if "learning_rate" in settings else {}
    assert not same_bits(trained(**default)[0].state_dict(), trained(**settings)[0].state_dict())


def test_the_value_loss_is_clipped_when_asked_for():
    def value_losses(clip_vloss):
        _, scalars = trained(clip_vloss=clip_vloss, learning_rate=0.1, total_env_steps=64)
        return scalars[0][1]["losses/value_loss"]

    # The worse of two losses, on the same first rollout.
    assert value_losses(True) != value_losses(False)


def test_values_may_be_clipped_by_a_coefficient_of_their_own():
    def weights(**settings):
        return trained(clip_vloss=True, learning_rate=0.1, **settings)[0].state_dict()

    assert same_bits(weights(), weights(vf_clip_coef=0.2))
    assert not same_bits(weights(), weights(vf_clip_coef=1e-3))
    # It is annealed as the other one.
    assert same_bits(weights(anneal_clip=True), weights(anneal_clip=True, vf_clip_coef=0.2))
    assert not same_bits(weights(anneal_clip=True, vf_clip_coef=1.0), weights(anneal_clip=True))


@pytest.mark.parametrize(("precision", "weights"), [("64-true", torch.float64), ("bf16-mixed", torch.float32)])
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_precisions(precision, weights, env):
    model = small_ppo(env=env, total_env_steps=128, eval_freq=4, eval_episodes=1)
    fit(model, precision=precision)
    assert {parameter.dtype for parameter in model.parameters()} == {weights}
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert model.train_iter == 8


def loggers(kind):
    csv, board = CSVLogger("csv"), TensorBoardLogger("board")
    return {"csv": csv, "board": board, "both": [csv, board], "none": False}[kind]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "board", "both", "none"])
def test_any_logger_works(kind, tmp_path):
    fit(small_ppo(eval_freq=8), logger=loggers(kind))
    assert (tmp_path / "csv").exists() == (kind in ("csv", "both"))
    assert (tmp_path / "board").exists() == (kind in ("board", "both"))
    if kind in ("csv", "both"):
        header = (tmp_path / "csv/lightning_logs/version_0/metrics.csv").read_text().splitlines()[0]
        assert {"losses/policy_loss", "evaluator_step/return_mean"} <= set(header.split(","))
    if kind in ("board", "both"):
        scalars = event_scalars(tmp_path / "board/lightning_logs/version_0")
        assert {"losses/policy_loss", "evaluator_step/return_mean"} <= set(scalars)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"total_env_steps": 0}, "total_env_steps=0 must be at least 1"),
        ({"num_envs": 0}, "num_envs=0 must be at least 1"),
        ({"num_steps": -1}, "num_steps=-1 must be at least 1"),
        ({"update_epochs": 0}, "update_epochs=0 must be at least 1"),
        ({"minibatch_size": 0}, "minibatch_size=0 must be at least 1"),
        ({"eval_episodes": 0}, "eval_episodes=0 must be at least 1"),
        ({"eval_num_envs": 0}, "eval_num_envs=0 must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate=nan must be positive"),
        ({"clip_coef": -0.1}, "clip_coef=-0.1 must be positive"),
        ({"max_grad_norm": 0.0}, "max_grad_norm=0.0 must be positive"),
        ({"target_kl": -1.0}, "target_kl=-1.0 must be positive"),
        ({"env": EnvConfig("CartPole-v1", timeout=0.0)}, "env.timeout=0.0 must be positive, in seconds"),
        ({"gamma": 1.5}, "gamma=1.5 must lie between 0 and 1"),
        ({"gae_lambda": -0.5}, "gae_lambda=-0.5 must lie between 0 and 1"),
        ({"eval_freq": -1}, "eval_freq=-1 must not be negative; 0 turns evaluation off"),
        ({"norm_adv": "no"}, "norm_adv='no' must be true or false"),
        ({"compile_update": 1}, "compile_update=1 must be true or false"),
        (
            {"anneal_lr": None},
            "anneal_lr=None must be constant, linear, cosine, true (linear), false, or in Python a function",
        ),
        (
            {"anneal_ent": "steep"},
            "anneal_ent='steep' must be constant, linear, cosine, true (linear), false, or in Python a function",
        ),
        ({"update_epochs": 2.5}, "update_epochs=2.5 must be a whole number"),
        ({"num_envs": 4.0}, "num_envs=4.0 must be a whole number"),
        ({"eval_freq": True}, "eval_freq=True must be a whole number"),
        ({"gamma": "high"}, "gamma='high' is not a number"),
        ({"ent_coef": None}, "ent_coef=None is not a number"),
        ({"total_env_steps": float("inf")}, "total_env_steps=inf must be a finite number"),
        ({"minibatch_size": 1}, "minibatch_size=1 leaves nothing to normalize advantages over; use norm_adv=false"),
    ],
)
def test_a_setting_that_cannot_work_is_named_with_its_value(settings, message):
    with pytest.raises(UsageError) as error:
        small_ppo(**settings)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("num_envs", "num_steps", "minibatch_size", "message"),
    [
        (
            8,
            128,
            300,
            "num_envs*num_steps=1024 is not divisible by minibatch_size=300; use --model.minibatch_size 256 or 512",
        ),
        (4, 16, 65, "num_envs*num_steps=64 is not divisible by minibatch_size=65; use --model.minibatch_size 64"),
        (1, 7, 3, "num_envs*num_steps=7 is not divisible by minibatch_size=3; use --model.minibatch_size 7"),
    ],
)
def test_sizes_that_do_not_divide_are_answered_with_sizes_that_do(num_envs, num_steps, minibatch_size, message):
    with pytest.raises(UsageError) as error:
        small_ppo(num_envs=num_envs, num_steps=num_steps, minibatch_size=minibatch_size)
    assert str(error.value) == message


@pytest.mark.slow
def test_edge_values_that_do_work():
    settings = {"gamma": 1.0, "gae_lambda": 0.0, "max_grad_norm": None, "num_envs": 1, "minibatch_size": 16}
    assert trained(**settings)[0].env_steps == 512
    assert trained(minibatch_size=1, norm_adv=False, total_env_steps=64, update_epochs=1)[0].train_iter == 64


def test_an_unsupported_space_is_refused_when_the_model_is_made():
    with pytest.raises(UsageError, match="MLPActorCritic needs vector observations"):
        small_ppo(env="PlRlTest/Images-v0")
    config = EnvConfig("PlRlTest/Recorder-v0", kwargs={"action_space": gym.spaces.Text(2)})
    with pytest.raises(UsageError, match=r"Text\(1, 2.*is not supported"):
        small_ppo(env=config)


def saved_checkpoint(**settings):
    model = small_ppo(**settings)
    checkpoint = ModelCheckpoint("checkpoints", filename="last", save_top_k=-1, every_n_epochs=1)
    fit(model, callbacks=[checkpoint], enable_checkpointing=True)
    return model, checkpoint.best_model_path


def test_a_checkpoint_makes_the_same_model_again():
    init_args = {"encoder_sizes": [8], "activation": "relu"}
    network = {"class_path": "pl_rl.MLPActorCritic", "init_args": init_args}
    model, path = saved_checkpoint(network=network, env=EnvConfig("CartPole-v1", kwargs={"max_episode_steps": 30}))
    loaded = PPO.load_from_checkpoint(path)
    obs = torch.randn(5, 4)
    assert all(torch.equal(one, other) for one, other in zip(model.network(obs), loaded.network(obs), strict=True))
    assert isinstance(loaded.network, MLPActorCritic)
    assert isinstance(loaded.network.encoder[1], torch.nn.ReLU)
    assert loaded.hparams == model.hparams
    assert loaded.hparams["network"]["init_args"] == init_args
    assert loaded.hparams["env"]["kwargs"] == {"max_episode_steps": 30}


@pytest.mark.slow
def test_a_setting_can_be_changed_when_a_checkpoint_is_loaded():
    _, path = saved_checkpoint()
    loaded = PPO.load_from_checkpoint(path, clip_coef=0.1)
    assert (loaded.clip_coef, loaded.num_envs) == (0.1, 4)


def test_a_checkpoint_holds_nothing_but_data():
    model, path = saved_checkpoint()
    checkpoint = read_checkpoint(path)
    assert same_bits(checkpoint["state_dict"], model.state_dict())
    assert checkpoint["global_step"] == 32
    assert counters_in(path)["env_steps"] == 512
    assert checkpoint["pl_rl"]["format_version"] >= 1


def test_a_network_of_the_users_own_is_trained_saved_and_loaded():
    model, path = saved_checkpoint(network=LinearValue)
    assert isinstance(model.network, LinearValue)
    loaded = PPO.load_from_checkpoint(path)
    assert isinstance(loaded.network, LinearValue)
    assert same_bits(loaded.state_dict(), model.state_dict())


def test_a_network_class_that_is_not_there_is_named():
    _, path = saved_checkpoint(network=LinearValue)
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"]["network"]["class_path"] = "no_such_module.Net"
    torch.save(content, path)
    with pytest.raises(UsageError, match=r"network class 'no_such_module\.Net' cannot be imported"):
        PPO.load_from_checkpoint(path, trust=["no_such_module"])


def test_a_subclass_brings_its_own_optimizer():
    class WithSGD(PPO):
        def configure_optimizers(self):
            return torch.optim.SGD(self.network.parameters(), lr=self.learning_rate, momentum=0.9)

    model = small_ppo(model_class=WithSGD)
    trainer = fit(model)
    assert isinstance(trainer.optimizers[0], torch.optim.SGD)
    assert (trainer.global_step, model.train_iter) == (32, 32)
    assert not same_bits(model.state_dict(), small_ppo(model_class=WithSGD).state_dict())


def test_several_devices_are_refused_without_shards():
    # A forked process stands in for the second device, and Lightning wraps the error that comes out of it.
    trainer = quiet_trainer(devices=2, strategy="ddp_fork")
    with pytest.raises(Exception, match="2 processes share out the shards of a run, and this one has one"):
        trainer.fit(small_ppo())


@pytest.mark.slow
def test_validation_is_the_evaluation_that_training_made():
    logger = MemoryLogger()
    model = small_ppo(eval_freq=32)
    trainer = fit(model, logger=logger)
    (initial, (step, final)) = logger.points("evaluator_iter/return_mean")
    assert (initial[0], step) == (0, 32)
    (result,) = trainer.validate(model, verbose=False)
    # Lightning rounds results to float32.
    assert result["evaluator/return_mean"] == np.float32(final)


@pytest.mark.slow
def test_a_test_plays_other_episodes_than_the_evaluation():
    model = small_ppo(eval_episodes=20)
    trainer = fit(model)
    (validated,) = trainer.validate(model, verbose=False)
    (tested,) = trainer.test(model, verbose=False)
    assert validated["evaluator/return_mean"] != tested["test/return_mean"]


def test_predictions_are_episodes():
    model = small_ppo(eval_episodes=3)
    (episodes,) = fit(model).predict(model)
    assert len(episodes.returns) == len(episodes.lengths) == 3
    # In CartPole each step earns one.
    assert episodes.returns == episodes.lengths


def test_the_trainer_and_torch_are_left_as_they_were():
    torch.set_num_threads(2)
    trainer = fit(small_ppo(), limit_val_batches=0.5)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert threads == 2
    assert trainer.limit_val_batches == 0.5


def test_the_number_of_threads_changes_neither_the_first_weights_nor_the_process():
    weights = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        weights.append(small_ppo().state_dict())
        assert torch.get_num_threads() == threads
    torch.set_num_threads(1)
    assert same_bits(*weights)


def test_parameter_groups_keep_rates_of_their_own():
    class TwoRates(PPO):
        def configure_optimizers(self):
            groups = [
                {"params": self.network.actor.parameters(), "lr": 0.01},
                {"params": self.network.critic.parameters(), "lr": 0.04},
            ]
            return torch.optim.SGD(groups)

    model = small_ppo(model_class=TwoRates, anneal_lr=True)
    trainer = fit(model)
    # The last of 8 iterations runs at 1 - 7/8 of the rates.
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == pytest.approx([0.01 / 8, 0.04 / 8])


def test_a_scheduler_that_nobody_would_step_is_refused():
    class Scheduled(PPO):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    with pytest.raises(UsageError, match="a learning-rate scheduler; return the optimizer"):
        fit(small_ppo(model_class=Scheduled))


def test_each_rollout_comes_from_the_policy_that_learns_from_it():
    class Watched(PPO):
        def training_step(self, rollout, batch_idx):
            with torch.no_grad():
                outputs = self.network.policy(rollout.obs.flatten(0, 1))
                current = self.network.distribution.log_prob(outputs, rollout.actions.flatten())
            torch.testing.assert_close(current, rollout.log_probs.flatten())
            self.seen = getattr(self, "seen", 0) + 1
            super().training_step(rollout, batch_idx)

    model = small_ppo(model_class=Watched, learning_rate=0.1)
    fit(model)
    assert model.seen == 8


def test_only_sound_releases_of_lightning_are_installed():
    # 2.6.2 and 2.6.3 were compromised; before 2.6.6, load_from_checkpoint calls what a file names.
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert "lightning>=2.6.6,<2.7" in project["dependencies"]


@pytest.mark.slow
def test_long_runs_compile_their_updates_and_short_ones_do_not(monkeypatch):
    def description(**settings):
        model = small_ppo(**settings)
        fit(model, max_epochs=1, callbacks=[Reader()])
        return read[-1]

    class Reader(L.Callback):
        def on_train_start(self, trainer, pl_module):
            read.append(pl_module.numerics()["updates"])

    read = []
    # 2 epochs over the samples in minibatches of 32
    assert description(total_env_steps=1000 * 32 // 2 - 1) == "eager"
    assert description(total_env_steps=1000 * 32 // 2).startswith("compiled by ")
    assert description(compile_update=True).startswith("compiled by ")
    assert description(compile_update=False, total_env_steps=10**6) == "eager"
    monkeypatch.setattr("pl_rl.compiled.function.find_compiler", lambda: None)
    assert description(total_env_steps=10**6) == "eager"


@pytest.mark.slow
def test_shorter_runs_of_larger_networks_compile_too(monkeypatch):
    def compiles(**settings):
        model = small_ppo(**settings)
        fit(model, max_epochs=1, callbacks=[Reader()])
        return read[-1] != "eager"

    class Reader(L.Callback):
        def on_train_start(self, trainer, pl_module):
            read.append(pl_module.numerics()["updates"])

    read = []
    monkeypatch.setattr("pl_rl.compiled.backend.FLOPS_OF_A_MILLISECOND", 2**20)
    pixels = {"env": "PlRlTest/Pictures-v0", "network": CNNActorCritic}
    assert not compiles()
    assert compiles(**pixels)
    assert not compiles(**pixels, total_env_steps=64)
    assert not compiles(**pixels, compile_update=False)


def test_compiling_is_no_training_time(monkeypatch):
    def slow(*args):
        time.sleep(0.5)
        choose_compilation(*args)

    class Clock(L.Callback):
        def on_train_start(self, trainer, pl_module):
            assert pl_module.elapsed_seconds < 0.4

    monkeypatch.setattr("pl_rl.ppo.choose_compilation", slow)
    fit(small_ppo(), max_epochs=1, callbacks=[Clock()])


def test_a_compilation_that_was_asked_for_and_cannot_be_had_is_an_error(monkeypatch):
    monkeypatch.setattr("pl_rl.compiled.function.find_compiler", lambda: None)
    with pytest.raises(UsageError, match=r"compile_update=true cannot be had: no C\+\+ compiler.*; use null or false"):
        fit(small_ppo(compile_update=True))
    monkeypatch.undo()
    with pytest.raises(UsageError, match="made for precision=32-true, not bf16-mixed"):
        fit(small_ppo(compile_update=True), precision="bf16-mixed")


@pytest.mark.slow
def test_compiled_updates_learn_what_eager_ones_do():
    # One iteration of few updates: rounding has no time to grow.
    eager, compiled = (small_ppo(compile_update=compile_update) for compile_update in (False, True))
    for model in (eager, compiled):
        fit(model, max_epochs=1)
    torch.testing.assert_close(compiled.state_dict(), eager.state_dict(), rtol=1e-4, atol=1e-5)
    assert not same_bits(compiled.state_dict(), eager.state_dict())


def test_weights_saved_alone_can_be_loaded(tmp_path):
    model = small_ppo()
    trainer = fit(model, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    assert same_bits(PPO.load_from_checkpoint(tmp_path / "weights.ckpt").state_dict(), model.state_dict())
