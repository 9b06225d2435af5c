"""A run whose numbers are lost ends with one sentence, and its last good checkpoint stays."""

import math

import pytest

import pl_rl
from tests.resume.test_resume import RUN, differences, last_of, run_of, train
from tests.support import counters_in, event_scalars, fit, small_ppo


@pytest.fixture(autouse=True, params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"])
def _updates(request, monkeypatch):
    monkeypatch.setitem(RUN, "compile_update", request.param)


def spoil(monkeypatch, iteration, number):
    """Bring a number that is none into the given iteration."""

    def gae(rewards, *args):
        advantages = original(rewards, *args)
        gae.calls += 1
        if gae.calls == iteration:
            advantages[3, 2] = number
        return advantages

    gae.calls = 0
    original = pl_rl.algorithm.functional.gae
    monkeypatch.setattr("pl_rl.algorithm.functional.gae", gae)


@pytest.mark.parametrize(("value", "words"), [(math.nan, "nan"), (math.inf, "nan|-?inf")])
def test_a_loss_that_is_no_number_ends_the_run(tmp_path, monkeypatch, value, words):
    with monkeypatch.context() as fault:
        spoil(fault, 5, value)
        sentence = (
            rf"the loss became ({words}) in iteration 5 \(train_iter 16, env_steps 320\); the last good checkpoint is "
            r"parts/lightning_logs/version_0/checkpoints/last\.ckpt; lower learning_rate"
        )
        with pytest.raises(pl_rl.RunFailure, match=sentence):
            train(tmp_path / "parts", 8, norm_adv=False)
    assert counters_in(last_of(tmp_path / "parts"))["iteration"] == 4
    logged = event_scalars(run_of(tmp_path / "parts"))
    assert max(step for step, _ in logged["losses/policy_loss"]) == 256
    assert all(math.isfinite(value) for points in logged.values() for _, value in points)


def test_a_parameter_that_is_no_number_ends_the_run():
    class Spoilt(pl_rl.PPO):
        def _learn(self, *args):
            learnt = super()._learn(*args)
            if self.iteration == 2:
                self.network.critic[0].bias.data[1] = math.nan
            return learnt

    with pytest.raises(pl_rl.RunFailure, match=r"a parameter became nan in iteration 3 .*no checkpoint was saved"):
        fit(small_ppo(model_class=Spoilt, compile_update=RUN["compile_update"]))


def test_a_gradient_that_is_no_number_ends_the_run():
    class Spoilt(pl_rl.PPO):
        def _learn(self, *args):
            metrics, norms = super()._learn(*args)
            return metrics, norms * math.inf

    with pytest.raises(pl_rl.RunFailure, match="the gradient became inf in iteration 1 "):
        fit(small_ppo(model_class=Spoilt))


def test_a_large_loss_is_no_lost_one():
    class Large(pl_rl.PPO):
        def _learn(self, *args):
            metrics, norms = super()._learn(*args)
            return metrics * 1e30, norms

    fit(small_ppo(model_class=Large))


@pytest.mark.filterwarnings("ignore:You have turned on `Trainer.detect_anomaly:UserWarning", "ignore:Error detected in")
def test_anomalies_are_found_where_they_arise(monkeypatch):
    if RUN["compile_update"]:
        with pytest.raises(pl_rl.UsageError, match="detect_anomaly=true watches single operations; use null or false"):
            fit(small_ppo(compile_update=True), detect_anomaly=True)
        return
    spoil(monkeypatch, 3, math.nan)
    with pytest.raises(RuntimeError, match="returned nan values in its 0th output"):
        fit(small_ppo(norm_adv=False, compile_update=None, total_env_steps=10**6), detect_anomaly=True)


@pytest.mark.slow
def test_the_check_changes_nothing(tmp_path, monkeypatch):
    train(tmp_path / "with", 6)
    monkeypatch.setattr(pl_rl.PPO, "_check_finite", lambda *args: None)
    train(tmp_path / "without", 6)
    assert differences(tmp_path / "with", tmp_path / "without") == {}
