"""The learning rate that follows the KL divergence."""

import pytest

import pl_rl
from pl_rl.algorithm.schedule import adapted_rate
from pl_rl.callbacks import KLAdaptiveRate, RunCheckpoint
from pl_rl.tools.verification import compare_runs
from tests.support import MemoryLogger, fit, small_ppo


@pytest.mark.parametrize(
    ("kl", "rate"), [(0.021, 2e-3), (0.02, 3e-3), (0.005, 3e-3), (0.0049, 4.5e-3), (0.0, 3e-3), (-0.001, 3e-3)]
)
def test_the_rate_moves_by_half_where_the_divergence_is_far_from_the_desired(kl, rate):
    assert adapted_rate(3e-3, kl, desired_kl=0.01) == pytest.approx(rate)


def test_the_rate_stays_within_its_bounds():
    assert adapted_rate(9e-3, 0.001, 0.01) == 1e-2
    assert adapted_rate(1.1e-5, 1.0, 0.01) == 1e-5


def rates_of(desired_kl):
    logger = MemoryLogger()
    fit(small_ppo(), logger=logger, max_epochs=4, log_every_n_steps=1, callbacks=[KLAdaptiveRate(desired_kl)])
    return logger.values("schedule/learning_rate")


def test_iterations_that_move_the_policy_too_far_lower_the_rate_and_others_raise_it():
    assert rates_of(1e-9) == pytest.approx([2.5e-4 / 1.5**i for i in range(4)])
    assert rates_of(1e3) == pytest.approx([2.5e-4 * 1.5**i for i in range(4)])


def test_a_desired_divergence_is_positive():
    with pytest.raises(pl_rl.UsageError, match="desired_kl=0 must be positive"):
        KLAdaptiveRate(0)


def train(root, until, ckpt_path=None):
    model = small_ppo(learning_rate=1e-3, total_env_steps=64 * 100)
    callbacks = [RunCheckpoint(last_every_n_iterations=1), KLAdaptiveRate(1e-3)]
    trainer = pl_rl.Trainer(
        accelerator="cpu", default_root_dir=root, max_epochs=until, callbacks=callbacks, log_every_n_steps=1,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, ckpt_path=ckpt_path)
    return model


@pytest.mark.slow
def test_a_run_whose_rate_has_moved_is_continued_bit_for_bit(tmp_path, capsys):
    one, other = (tmp_path / name / "lightning_logs/version_0" for name in ("whole", "parts"))
    whole = train(tmp_path / "whole", 8)
    assert whole.learning_rate != 1e-3
    for until, ckpt_path in [(3, None), (5, other / "checkpoints/last.ckpt"), (8, other / "checkpoints/last.ckpt")]:
        parts = train(tmp_path / "parts", until, ckpt_path)
    assert capsys.readouterr().out.count("fidelity: exact") == 2
    assert parts.learning_rate == whole.learning_rate
    assert {name: text for name, text in compare_runs(one, other).items() if text is not None} == {}
