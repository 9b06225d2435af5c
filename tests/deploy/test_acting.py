"""A policy that acts: what a new user does first with a trained run."""

import re
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

import pl_rl
from pl_rl import PPO, EnvConfig, UsageError
from pl_rl.algorithm.evaluation import evaluate
from pl_rl.callbacks import RunCheckpoint
from pl_rl.deploy.export import export
from pl_rl.networks.distributions import to_numpy
from tests.support import fit, small_ppo
from tests.trained import NORMALIZED, POLICIES, checkpoint, observations

EVERY = {**POLICIES, **NORMALIZED}


def played(policy, env, seed, deterministic):
    """Return and length of an episode that a user's own loop plays."""
    generator = torch.Generator().manual_seed(seed)
    obs, _ = env.reset(seed=seed)
    total, steps, over = 0.0, 0, False
    while not over:
        obs, reward, terminated, truncated, _ = env.step(policy.act(obs, deterministic, generator))
        total, steps, over = total + float(reward), steps + 1, terminated or truncated
    return total, steps


@pytest.mark.slow
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("settings", EVERY.values(), ids=EVERY)
def test_an_episode_is_the_one_that_an_evaluation_plays(settings, deterministic):
    path = checkpoint(**settings)
    policy, model = pl_rl.load_policy(path), PPO.load_from_checkpoint(path)
    for seed in (3, 4):
        expected = evaluate(
            model.network, model.env_config, 1, 1, seed, deterministic=deterministic, normalizer=model.normalizer
        )
        own = played(policy, policy.make_env(), seed, deterministic)
        assert own == (expected.returns[0], expected.lengths[0])
        assert own == played(policy, gym.make(model.env_config.id, **model.env_config.kwargs), seed, deterministic)


@pytest.mark.parametrize("settings", EVERY.values(), ids=EVERY)
def test_one_observation_has_one_action_and_a_batch_has_as_many(settings):
    path = checkpoint(**settings)
    policy, network = pl_rl.load_policy(path), PPO.load_from_checkpoint(path).network
    obs = observations(policy, 20)
    actions, values = policy.act(obs.numpy()), policy.value(obs.numpy())
    with torch.no_grad():
        expected = policy(obs)
    assert (actions == expected[0].numpy()).all() and (values == expected[1].numpy()).all()
    assert actions.shape == (20, *network.action_space.shape) and values.shape == (20,)
    for given in (obs[0].numpy(), obs[0], obs[0].tolist()):
        assert network.action_space.contains(policy.act(given))
        assert np.shape(policy.value(given)) == ()
        assert (policy.act(given) == policy.act(obs[:1])[0]).all()


def test_sampled_actions_follow_their_generator_and_the_distribution():
    policy = pl_rl.load_policy(checkpoint(env="CartPole-v1"))
    obs = np.zeros((2000, 4), np.float32) + observations(policy, 1).numpy()
    one, same, other = (policy.act(obs, False, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert (one == same).all() and (one != other).any()
    torch.manual_seed(1)
    assert (policy.act(obs, deterministic=False) == one).all(), "torch's own generator by default"
    probability = policy(torch.from_numpy(obs))[2].detach().softmax(-1)[0, 1].item()
    assert 0.02 < probability < 0.98
    assert one.mean() == pytest.approx(probability, abs=4 * (probability * (1 - probability) / 2000) ** 0.5)
    assert to_numpy(torch.from_numpy(policy.act(obs))).std() == 0


@pytest.mark.parametrize("obs", [[1.0, 2.0], 0.5, [[[0.0] * 4]], ["a"] * 4, [True, False, None, 1.0], [1j] * 4])
def test_what_is_no_observation_is_refused_with_both_shapes(obs):
    policy = pl_rl.load_policy(checkpoint(env="CartPole-v1"))
    for ask in (policy.act, policy.value):
        with pytest.raises(UsageError, match=r"of shape .* type .* one has the shape \(4,\) and the type float32"):
            ask(obs)


def test_ragged_observations_are_refused():
    with pytest.raises(UsageError, match="cannot be made an array"):
        pl_rl.load_policy(checkpoint(env="CartPole-v1")).act([[1.0], [1.0, 2.0]])


@pytest.mark.slow
def test_images_of_floats_are_not_taken_for_pixels():
    policy = pl_rl.load_policy(checkpoint(env="PlRlTest/Pictures-v0", network=pl_rl.CNNActorCritic))
    assert policy.act(np.zeros((2, 36, 36), np.uint8)).shape == ()
    with pytest.raises(UsageError, match=r"type float64 are given, .* the type uint8"):
        policy.act(np.zeros((2, 36, 36)))


def test_the_newest_run_is_found_by_the_name_of_its_checkpoint():
    fit(small_ppo(total_env_steps=64), logger=True, enable_checkpointing=True, callbacks=[RunCheckpoint()])
    obs = np.zeros(4, np.float32)
    by_path = pl_rl.load_policy("lightning_logs/version_0/checkpoints/last.ckpt")
    assert pl_rl.load_policy().value(obs) == pl_rl.load_policy("last").value(obs) == by_path.value(obs)


@pytest.mark.parametrize("name", ["last", "nosuch.ckpt", "folder/nosuch.ckpt"])
def test_a_checkpoint_that_is_not_there_is_named(name):
    with pytest.raises(UsageError, match=re.escape(name)):
        pl_rl.load_policy(name)


@pytest.mark.slow
def test_a_folder_for_the_hub_acts_as_its_checkpoint():
    pytest.importorskip("huggingface_hub")
    path = checkpoint(env="Pendulum-v1", norm_obs=True)
    export(path, "hub", Path("folder"))
    ours, theirs = pl_rl.load_policy(path), pl_rl.load_policy("folder")
    obs = observations(ours, 9)
    assert (ours.act(obs) == theirs.act(obs)).all() and (ours.value(obs) == theirs.value(obs)).all()


def test_a_name_that_the_hub_does_not_give_is_said_in_a_sentence(monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("socket.socket.connect", lambda *_: (_ for _ in ()).throw(OSError("no network")))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # or it tries again for many seconds
    with pytest.raises(
        UsageError, match="'owner/name' is no file or folder here, and not to be had from the model hub"
    ):
        pl_rl.load_policy("owner/name")


def test_without_the_hub_s_package_the_extra_is_named_and_a_checkpoint_acts(monkeypatch):
    path = checkpoint()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "pl_rl.deploy.hub", raising=False)
    assert pl_rl.load_policy(path).act(np.zeros(4, np.float32)) in (0, 1)
    Path("folder").mkdir()
    with pytest.raises(UsageError, match=r"huggingface_hub: .*\[hub\]"):
        pl_rl.load_policy("folder")


def test_a_file_from_elsewhere_asks_for_trust_in_its_environment(monkeypatch):
    env = EnvConfig("PlRlTest/Counter-v0", kwargs={"truncate_at": 3}, imports=["json.tool"])
    policy = pl_rl.load_policy(checkpoint(env=env))
    monkeypatch.delitem(sys.modules, "json.tool")
    assert policy.act([0.0]) in (0, 1), "which needs no environment"
    with pytest.raises(UsageError, match=r"names the module 'json.tool'.* pass trust=\['json.tool'\]"):
        policy.make_env()
    policy.make_env(trust=["json.tool"]).close()


def test_a_model_that_is_called_says_what_acts():
    model = PPO.load_from_checkpoint(checkpoint())
    with pytest.raises(UsageError, match=r"use pl_rl.load_policy\(checkpoint\).act\(obs\)"):
        model(torch.zeros(4))
