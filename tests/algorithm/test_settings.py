"""Settings that change while a run trains: each takes effect or is refused, and a resume goes on with them."""

import inspect
from functools import cache

import gymnasium as gym
import lightning as L
import pytest
import torch

import pl_rl
from pl_rl import PPO, EnvConfig, MLPActorCritic, UsageError
from pl_rl.callbacks import RunCheckpoint
from tests.resume.test_resume import differences, train
from tests.support import SMALL, MemoryLogger, fit, quiet_trainer, same_bits, small_ppo

# What each setting becomes, where one that has no effect would be seen.
CHANGES = {
    "total_env_steps": 256,
    "update_epochs": 3,
    "learning_rate": 1e-4,
    "anneal_lr": True,
    "final_learning_rate": 0.5,
    "anneal_env_steps": 64,
    "gamma": 0.5,
    "gae_lambda": 0.1,
    "clip_coef": 1e-3,
    "anneal_clip": "cosine",
    "clip_vloss": True,
    "vf_clip_coef": 1e-3,
    "norm_adv": False,
    "recompute_adv": True,
    "ent_coef": 10.0,
    "anneal_ent": True,
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
    "shards": 2,
    "num_steps": 32,
    "minibatch_size": 16,
    "norm_obs": True,
    "norm_reward": False,
    "norm_value": True,
    "compile_update": False,
    "adam_eps": 1e-3,
}
# Without which a setting has none.
WITH = {
    "final_learning_rate": {"anneal_lr": True},
    "anneal_env_steps": {"anneal_lr": True},
    "vf_clip_coef": {"clip_vloss": True},
}
RUN = {
    "norm_reward": True,
    "learning_rate": 0.05,
    "clip_coef": 0.05,
    "ent_coef": 0.1,
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
def unchanged_outcome(**settings):
    return outcome(lambda model: None, **settings)


def assert_takes_effect(change, **settings):
    weights, evaluations = outcome(change, **settings)
    before, evaluations_before = unchanged_outcome(**settings)
    assert not same_bits(weights, before) or evaluations != evaluations_before


def test_every_setting_is_tried():
    assert CHANGES.keys() | REFUSED.keys() == inspect.signature(PPO).parameters.keys()
    assert not CHANGES.keys() & REFUSED.keys()


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_that_a_callback_changes_takes_effect(name, compiled):
    assert_takes_effect(
        lambda model: setattr(model, name, CHANGES[name]), compile_update=compiled, **WITH.get(name, {})
    )


@pytest.mark.parametrize("name", REFUSED)
def test_a_setting_that_cannot_change_is_refused(name):
    now = {"compile_update": True} if name == "compile_update" else {}
    with pytest.raises(UsageError, match=f"^{name} cannot be changed: "):
        outcome(lambda model: setattr(model, name, REFUSED[name]), **now)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize(
    ("name", "value"), [("lr", 0.0), ("weight_decay", 0.9), ("betas", (0.1, 0.1)), ("eps", 10.0), ("maximize", True)]
)
def test_an_optimizers_group_that_a_callback_changes_takes_effect(name, value, compiled):
    def change(model):
        model.trainer.optimizers[0].param_groups[0][name] = value

    assert_takes_effect(change, compile_update=compiled)


def test_the_discount_of_scaled_rewards_follows():
    model = small_ppo(norm_reward=True)
    fit(model, callbacks=[Change(lambda model: setattr(model, "gamma", 0.5))])
    assert model.reward_scaler.gamma == 0.5


@pytest.mark.slow
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
        ("final_learning_rate", -1e-4, "final_learning_rate=-0.0001 must be a finite number of 0 or more"),
        ("anneal_env_steps", 0, "anneal_env_steps=0 must be positive"),
        ("vf_clip_coef", 0.0, "vf_clip_coef=0.0 must be positive"),
        ("norm_adv", "no", "norm_adv='no' must be true or false"),
        ("update_epochs", 2.5, "update_epochs=2.5 must be a whole number"),
        ("total_env_steps", float("inf"), "total_env_steps=inf must be a finite number"),
        ("ent_coef", "high", "ent_coef='high' is not a number"),
        ("ent_coef", torch.nn.Parameter(torch.tensor(0.3)), "ent_coef cannot be learnt: it is a setting"),
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
        UsageError, match=r"hparams were changed during fit \(ent_coef: 0.1 -> 10.0\).*set the attribute"
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


@pytest.mark.slow
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


def test_a_schedule_that_is_a_function_is_in_the_checkpoint_by_its_name(tmp_path):
    train(tmp_path, 2, anneal_lr=abs)
    path = str(next(tmp_path.rglob("last.ckpt")))
    assert torch.load(path, weights_only=True)["hyper_parameters"]["anneal_lr"] == "builtins.abs"
    with pytest.raises(UsageError, match=r"^anneal_lr='builtins.abs' must be .* or in Python a function"):
        PPO.load_from_checkpoint(path, trust=["builtins.abs"])
    assert PPO.load_from_checkpoint(path, anneal_lr=abs).anneal_lr is abs


@pytest.mark.slow
def test_a_resume_with_another_value_wins(tmp_path):
    def change(model):
        model.ent_coef, model.learning_rate, model.gamma = 0.2, 1e-4, 0.5

    callbacks = [Change(change), RunCheckpoint(last_every_n_iterations=1)]
    train(tmp_path, 3, callbacks=callbacks)
    model, trainer = train(tmp_path, 4, "last", ent_coef=0.3, learning_rate=1e-5)
    assert (model.ent_coef, model.learning_rate, model.gamma) == (0.3, 1e-5, 0.5)
    assert trainer.optimizers[0].param_groups[0]["lr"] == 1e-5


# --- what a run changed is the run's alone ---------------------------------------------------------------------------


def change_much(model):
    model.ent_coef, model.learning_rate, model.gamma, model.eval_freq = 10.0, 0.01, 0.5, 3


def settings_in(model):
    return {name: getattr(model, name) for name in CHANGES}


def test_the_next_fit_of_a_model_begins_with_its_own_settings(tmp_path):
    L.seed_everything(0, verbose=False)
    model = PPO(**{**SMALL, "norm_reward": True, "compile_update": False})
    given = settings_in(model)
    fit(model, callbacks=[Change(change_much)])
    assert model.ent_coef == 10.0
    trainer = fit(model, callbacks=[Change(lambda model: None)], max_epochs=3)
    assert settings_in(model) == given
    assert (model.reward_scaler.gamma, model._evaluation.every) == (given["gamma"], given["eval_freq"])
    assert trainer.optimizers[0].param_groups[0]["lr"] == given["learning_rate"]


@pytest.mark.slow
def test_a_resume_of_a_second_fit_trains_with_its_settings(tmp_path):
    model, _ = train(tmp_path / "first", 3, callbacks=[Change(change_much)])
    L.seed_everything(0, verbose=False)
    trainer = pl_rl.Trainer(
        accelerator="cpu", default_root_dir=tmp_path, max_epochs=2, callbacks=[RunCheckpoint()], logger=True,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model)
    resumed, trainer = train(tmp_path, 3, "last")
    assert settings_in(resumed) == settings_in(model)
    assert trainer.optimizers[0].param_groups[0]["lr"] == model.learning_rate == model.hparams.learning_rate


def test_a_model_whose_schedule_ended_at_zero_can_train_again():
    model = small_ppo()
    fit(model, callbacks=[Change(lambda model: setattr(model, "learning_rate", 0.0), iteration=8)])
    fit(model, max_epochs=1)
    assert model.learning_rate == model.hparams.learning_rate > 0


def test_what_a_run_made_of_a_setting_can_be_kept_by_assigning_it():
    model = small_ppo()
    fit(model, callbacks=[Change(lambda model: setattr(model, "ent_coef", 0.25))])
    assert model.hparams.ent_coef == 0.0
    model.ent_coef = 0.25
    assert model.hparams.ent_coef == 0.25
    fit(model, max_epochs=1)
    assert model.ent_coef == 0.25


@pytest.mark.filterwarnings("ignore:Be aware that when using")
def test_validation_of_a_checkpoint_leaves_hyperparameters_alone(tmp_path):
    callbacks = [Change(change_much), RunCheckpoint(last_every_n_iterations=1)]
    _, trainer = train(tmp_path, 3, callbacks=callbacks)
    path = trainer.checkpoint_callback.last_model_path
    model = small_ppo(eval_freq=8)
    before = dict(model.hparams)
    quiet_trainer().validate(model, ckpt_path=path, verbose=False)
    assert model.ent_coef == 10.0 and dict(model.hparams) == before
    assert PPO.load_from_checkpoint(path).ent_coef == 10.0
    assert PPO.load_from_checkpoint(path, ent_coef=0.5).ent_coef == 0.5


def test_a_parameter_is_no_setting():
    with pytest.raises(UsageError, match="ent_coef cannot be learnt"):
        small_ppo(ent_coef=torch.nn.Parameter(torch.tensor(0.3)))
    model = small_ppo()
    with pytest.raises(UsageError, match="ent_coef cannot be learnt"):
        model.ent_coef = torch.nn.Parameter(torch.tensor(0.3))
    assert model.ent_coef == 0.0


class OwnRates(PPO):
    def configure_optimizers(self):
        groups = zip((self.network.actor, self.network.critic), (0.1, 0.2), strict=True)
        return torch.optim.SGD([{"params": part.parameters(), "lr": rate} for part, rate in groups])


class TensorRate(PPO):
    def configure_optimizers(self):
        return torch.optim.Adam(self.network.parameters(), lr=torch.tensor(1e-3))


def test_another_rate_on_a_resume_scales_an_optimizers_own_rates(tmp_path, monkeypatch):
    monkeypatch.setattr(pl_rl, "PPO", OwnRates)
    callbacks = [Change(lambda model: setattr(model, "learning_rate", 5e-4)), RunCheckpoint(last_every_n_iterations=1)]
    _, trainer = train(tmp_path, 3, callbacks=callbacks)
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == pytest.approx([0.2, 0.4])
    model, trainer = train(tmp_path, 4, "last", learning_rate=1e-3)
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == pytest.approx([0.4, 0.8])
    assert model.learning_rate == 1e-3


@pytest.mark.slow
def test_a_rate_that_is_a_tensor_stays_one(tmp_path, monkeypatch):
    monkeypatch.setattr(pl_rl, "PPO", TensorRate)
    settings = {"anneal_lr": True, "total_env_steps": 64 * 8}
    _, trainer = train(tmp_path / "whole", 6, **settings)
    rate = trainer.optimizers[0].param_groups[0]["lr"]
    assert isinstance(rate, torch.Tensor) and rate.item() == pytest.approx(1e-3 * 3 / 8)
    train(tmp_path / "parts", 4, **settings)
    model, _ = train(tmp_path / "parts", 6, "last", **settings)
    assert model._callbacks[0].losses == []
    assert differences(tmp_path / "whole", tmp_path / "parts") == {}


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [True, None], ids=["asked for", "automatic"])
def test_a_run_that_a_setting_made_eager_is_resumed_so(tmp_path, compiled):
    def callbacks():
        change = Change(lambda model: setattr(model, "clip_vloss", True), iteration=3)
        return [change, RunCheckpoint(last_every_n_iterations=1)]

    settings = {"compile_update": compiled, "total_env_steps": 64 * 300}
    train(tmp_path / "whole", 6, callbacks=callbacks(), **settings)
    for until in (3, 4):
        root = tmp_path / f"parts {until}"
        train(root, until, callbacks=callbacks(), **settings)
        model, _ = train(root, 6, "last", callbacks=callbacks(), **settings)
        assert model.numerics() == {"updates": "eager"} and model._callbacks[0].losses == []
        assert differences(tmp_path / "whole", root) == {}


@pytest.mark.parametrize("env", [3, None, ["CartPole-v1"], gym.make("CartPole-v1"), lambda: gym.make("CartPole-v1")])
def test_what_is_no_environment_is_named_with_its_type(env):
    with pytest.raises(UsageError, match=r"^env=.* must be the name of an environment or an EnvConfig"):
        PPO(env)


@pytest.mark.parametrize("network", [3, "MLP", torch.nn.Linear(4, 2), None])
def test_what_makes_no_network_is_named_with_its_type(network):
    with pytest.raises(UsageError, match=r"^network is a \w+ and must be a class, or a function that makes a network"):
        PPO("CartPole-v1", network=network)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("id", 3, "env.id='3' must be a text"),
        ("vectorization", "fast", "env.vectorization='fast' must be one of auto, sync, async, native"),
        ("kwargs", [1], r"env.kwargs='\[1\]' must be a dictionary"),
        ("imports", "ale_py", "env.imports='ale_py' must be a list of texts"),
        ("wrappers", "TimeLimit", "env.wrappers='TimeLimit' must be a list"),
        ("info_keys", [1], "env.info_keys=.* must be a list of texts"),
        ("timeout", "long", "env.timeout='long' must be a number of seconds"),
    ],
)
def test_settings_of_an_environment_are_of_their_kind(name, value, words):
    with pytest.raises(UsageError, match=words):
        PPO(EnvConfig(**{"id": "CartPole-v1", name: value}))
