"""Settings that change while a run trains: each takes effect or is refused, and a resume goes on with them."""

import inspect
from functools import cache

import lightning as L
import pytest
import torch

from pl_rl import PPO, MLPActorCritic, UsageError
from pl_rl.callbacks import RunCheckpoint
from tests.support import MemoryLogger, fit, same_bits, small_ppo
from tests.test_resume import differences, train

# What each setting becomes, where one that has no effect would be seen.
CHANGES = {
    "total_env_steps": 256,
    "update_epochs": 3,
    "learning_rate": 1e-4,
    "anneal_lr": True,
    "gamma": 0.5,
    "gae_lambda": 0.1,
    "clip_coef": 1e-3,
    "anneal_clip": True,
    "clip_vloss": True,
    "norm_adv": False,
    "ent_coef": 10.0,
    "vf_coef": 50.0,
    "max_grad_norm": None,
    "target_kl": 1e-12,
    "eval_freq": 4,
    "eval_episodes": 3,
    "eval_num_envs": 1,
    "eval_deterministic": False,
    "stop_value": 1.0,
}
REFUSED = {
    "env": "Pendulum-v1",
    "network": MLPActorCritic,
    "num_envs": 2,
    "num_steps": 32,
    "minibatch_size": 16,
    "norm_obs": True,
    "norm_reward": False,
    "compile_update": False,
}
RUN = {
    "norm_reward": True,
    "learning_rate": 0.05,
    "clip_coef": 0.05,
    "max_grad_norm": 0.1,
    "eval_freq": 8,
    "eval_episodes": 2,
    "eval_num_envs": 2,
}


class Change(L.Callback):
    """Does something once, between two iterations."""

    def __init__(self, change, iteration=2):
        self.change = change
        self.iteration = iteration

    def on_train_epoch_end(self, trainer, pl_module):
        if pl_module.iteration == self.iteration:
            self.change(pl_module)


def outcome(change, **settings):
    """The weights, and what was logged of evaluations."""
    model, logger = small_ppo(**{**RUN, **settings}), MemoryLogger()
    fit(model, logger=logger, callbacks=[Change(change)])
    evaluations = [(step, scalars) for step, scalars in logger.calls if any("evaluator" in name for name in scalars)]
    return model.state_dict(), evaluations


@cache
def unchanged_outcome(compiled):
    return outcome(lambda model: None, compile_update=compiled)


def assert_takes_effect(change, compiled):
    weights, evaluations = outcome(change, compile_update=compiled)
    before, evaluations_before = unchanged_outcome(compiled)
    assert not same_bits(weights, before) or evaluations != evaluations_before


def test_every_setting_is_tried():
    assert CHANGES.keys() | REFUSED.keys() == inspect.signature(PPO).parameters.keys()
    assert not CHANGES.keys() & REFUSED.keys()


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_that_a_callback_changes_takes_effect(name, compiled):
    assert_takes_effect(lambda model: setattr(model, name, CHANGES[name]), compiled)


@pytest.mark.parametrize("name", REFUSED)
def test_a_setting_that_cannot_change_is_refused(name):
    now = {"compile_update": True} if name == "compile_update" else {}
    with pytest.raises(UsageError, match=f"^{name} cannot be changed: "):
        outcome(lambda model: setattr(model, name, REFUSED[name]), **now)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize(
    ("name", "value"), [("lr", 0.0), ("weight_decay", 0.9), ("betas", (0.1, 0.1)), ("eps", 10.0), ("maximize", True)]
)
def test_an_optimizers_group_that_a_callback_changes_takes_effect(name, value, compiled):
    def change(model):
        model.trainer.optimizers[0].param_groups[0][name] = value

    assert_takes_effect(change, compiled)


def test_the_discount_of_scaled_rewards_follows():
    model = small_ppo(norm_reward=True)
    fit(model, callbacks=[Change(lambda model: setattr(model, "gamma", 0.5))])
    assert model.reward_scaler.gamma == 0.5


def test_a_subclass_can_compute_a_setting():
    class Scheduled(PPO):
        @property
        def ent_coef(self):
            return 0.1 * self.iteration

        @ent_coef.setter
        def ent_coef(self, value):
            pass

    scheduled, plain = small_ppo(model_class=Scheduled), small_ppo()
    for model in (scheduled, plain):
        fit(model)
    assert not same_bits(scheduled.state_dict(), plain.state_dict())


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("clip_coef", -0.1, "clip_coef=-0.1 must be positive"),
        ("ent_coef", float("nan"), "ent_coef=nan must be a finite number"),
        ("gamma", 2.0, "gamma=2.0 must lie between 0 and 1"),
    ],
)
def test_a_value_that_cannot_work_is_refused_and_not_kept(name, value, sentence):
    model = small_ppo()
    before = getattr(model, name)
    with pytest.raises(UsageError, match=sentence):
        fit(model, callbacks=[Change(lambda model: setattr(model, name, value))])
    assert getattr(model, name) == before


def test_a_schedule_may_end_at_zero():
    model = small_ppo()
    fit(model, callbacks=[Change(lambda model: setattr(model, "learning_rate", 0.0), iteration=8)])
    assert model.iteration == 8


@pytest.mark.parametrize("number", [torch.tensor(0.25), torch.tensor(0.25).numpy()[()]], ids=["torch", "numpy"])
def test_a_number_of_a_library_becomes_a_plain_one(number):
    model = small_ppo()
    model.ent_coef = number
    assert (type(model.ent_coef), model.ent_coef) == (float, 0.25)


def test_hyperparameters_that_nobody_reads_are_refused():
    def change(model):
        model.hparams.ent_coef = 10.0

    with pytest.raises(
        UsageError, match=r"hparams were changed during fit \(ent_coef: 0.0 -> 10.0\).*set the attribute"
    ):
        outcome(change)


def test_a_setting_assigned_before_a_run_is_one_of_the_models(tmp_path):
    model = small_ppo()
    model.ent_coef = 0.25
    model.num_envs = 8
    trainer = fit(model, max_epochs=1)
    assert model.env_steps == 8 * 16
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    loaded = PPO.load_from_checkpoint(tmp_path / "one.ckpt")
    assert (loaded.ent_coef, loaded.num_envs) == (0.25, 8)
    model.num_envs = 3
    with pytest.raises(UsageError, match="num_envs\\*num_steps=48 is not divisible by minibatch_size=32"):
        fit(model)


def set_rate_of_group(model):
    model.trainer.optimizers[0].param_groups[0]["lr"] *= 0.25


def set_rate(model):
    model.learning_rate = 1e-4


def set_weights_of_terms(model):
    model.ent_coef, model.vf_coef, model.max_grad_norm = 0.2, 2.0, None


@pytest.mark.parametrize("annealed", [False, True], ids=["constant", "annealed"])
@pytest.mark.parametrize("change", [set_rate_of_group, set_rate, set_weights_of_terms])
def test_a_resume_goes_on_with_what_a_callback_changed(tmp_path, change, annealed):
    """Whether it was stopped right after the change, or an iteration later."""

    def callbacks():
        return [Change(change, iteration=3), RunCheckpoint(last_every_n_iterations=1)]

    settings = {"anneal_lr": annealed, "total_env_steps": 64 * 10}
    unchanged, _ = train(tmp_path / "unchanged", 8, **settings)
    model, _ = train(tmp_path / "whole", 8, callbacks=callbacks(), **settings)
    assert not same_bits(unchanged.state_dict(), model.state_dict())
    for until in (3, 4):
        root = tmp_path / f"parts {until}"
        train(root, until, callbacks=callbacks(), **settings)
        train(root, 8, "last", callbacks=callbacks(), **settings)
        assert differences(tmp_path / "whole", root) == {}


def test_a_resume_with_another_value_wins(tmp_path):
    def change(model):
        model.ent_coef, model.learning_rate, model.gamma = 0.2, 1e-4, 0.5

    callbacks = [Change(change), RunCheckpoint(last_every_n_iterations=1)]
    train(tmp_path, 3, callbacks=callbacks)
    model, trainer = train(tmp_path, 4, "last", ent_coef=0.3, learning_rate=1e-5)
    assert (model.ent_coef, model.learning_rate, model.gamma) == (0.3, 1e-5, 0.5)
    assert trainer.optimizers[0].param_groups[0]["lr"] == 1e-5
