"""A value function that predicts normalized returns: its statistics, what is learnt, and where they are kept."""

import pytest
import torch

import pl_rl
from pl_rl.algorithm.rollout import Rollout
from pl_rl.algorithm.samples import samples_of
from pl_rl.networks.normalization import ValueNormalizer
from pl_rl.pretrained import read_weights
from pl_rl.tools.inspection import describe_checkpoint
from tests.resume.test_resume import account, differences, last_of, train
from tests.support import MemoryLogger, fit, read_checkpoint, same_bits, small_ppo

NORMALIZED = {"env": "Pendulum-v1", "norm_value": True}


def normalizer_of(*iterations):
    normalizer = ValueNormalizer()
    for returns in iterations:
        normalizer.update(returns)
    return normalizer


def test_the_statistics_are_those_of_all_returns_together():
    iterations = [100 + 3 * torch.randn(size, generator=torch.Generator().manual_seed(0)) for size in ((4, 8), (2, 8))]
    normalizer, together = normalizer_of(*iterations), torch.cat(iterations).double()
    torch.testing.assert_close(normalizer.mean, together.mean(), rtol=1e-13, atol=0)
    torch.testing.assert_close(normalizer.var, together.var(correction=0), rtol=1e-10, atol=0)
    assert normalizer.count == 48
    torch.testing.assert_close(normalizer.inverse(normalizer(iterations[0])), iterations[0])


def test_returns_that_are_not_finite_teach_nothing():
    normalizer = normalizer_of(torch.tensor([1.0, 2.0]))
    before = {name: tensor.clone() for name, tensor in normalizer.state_dict().items()}
    normalizer.update(torch.tensor([1.0, torch.inf]))
    assert same_bits(normalizer.state_dict(), before)


def test_advantages_are_those_of_values_in_units_of_the_rewards():
    generator = torch.Generator().manual_seed(0)
    values, next_values, rewards = torch.randn(3, 5, 2, generator=generator)
    never = torch.zeros(5, 2, dtype=torch.bool)
    normalizer = normalizer_of(torch.tensor([10.0, 50.0]))
    rollout = Rollout(values, values, values, normalizer(values), normalizer(next_values), rewards, never, never)
    expected = rollout._replace(values=values, next_values=next_values)
    ours = samples_of(rollout, 1, 0.9, 0.8, None, normalizer)
    theirs = samples_of(expected, 1, 0.9, 0.8, None, None)
    torch.testing.assert_close(ours.advantages, theirs.advantages, atol=1e-4, rtol=0)
    torch.testing.assert_close(ours.returns, theirs.returns, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_the_value_function_learns_returns_of_any_size():
    """Pendulum's returns are some hundreds below zero."""
    explained = {}
    for norm_value in (False, True):
        logger = MemoryLogger()
        settings = {"env": "Pendulum-v1", "norm_value": norm_value, "learning_rate": 1e-3, "total_env_steps": 64 * 40}
        fit(small_ppo(**settings), logger=logger)
        explained[norm_value] = logger.values("losses/explained_variance")[-1]
    assert explained[True] > 0.3 > explained[False]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"norm_obs": True, "norm_reward": True, "clip_vloss": True},
        {"shards": 2},
        pytest.param({"compile_update": True}, marks=pytest.mark.slow),
    ],
    ids=["alone", "with all", "shards", "compiled"],
)
def test_a_run_that_is_stopped_is_the_same_run(tmp_path, settings, capsys):
    train(tmp_path / "whole", 6, **NORMALIZED, **settings)
    train(tmp_path / "parts", 3, **NORMALIZED, **settings)
    model, _ = train(tmp_path / "parts", 6, last_of(tmp_path / "parts"), **NORMALIZED, **settings)
    assert account(capsys)[-1] == "fidelity: exact"
    assert differences(tmp_path / "whole", tmp_path / "parts") == {}
    assert model.value_normalizer.count == 6 * 64


def test_a_policy_gives_values_in_units_of_the_rewards(tmp_path):
    model, _ = train(tmp_path, 4, **NORMALIZED)
    policy = pl_rl.load_policy(last_of(tmp_path))
    obs = torch.randn(3, 3)
    expected = model.value_normalizer.inverse(model.network.value(obs))
    torch.testing.assert_close(torch.from_numpy(policy.value(obs.numpy())), expected.detach())
    torch.testing.assert_close(policy(obs)[1], expected)
    assert dict(describe_checkpoint(last_of(tmp_path)))["values"] == "normalized by statistics of 256 returns"
    assert "predicts normalized returns" in read_weights(last_of(tmp_path)).notes[0]
    tensors = dict(read_checkpoint(last_of(tmp_path))["state_dict"])
    torch.save(tensors, tmp_path / "weights.pt")
    assert read_weights(tmp_path / "weights.pt").tensors.keys() == dict(model.network.named_parameters()).keys()
