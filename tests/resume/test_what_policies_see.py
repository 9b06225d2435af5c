"""Runs whose policies see more than one array are the same when they are stopped in mid-episode; at zero tolerance."""

from functools import partial

import numpy as np
import pytest
import torch

import pl_rl
from pl_rl.deploy.export import export
from tests.resume.test_resume import account, differences, last_of, train
from tests.support import read_checkpoint

NESTED = "tests.environments:PlRlTest/Nested-v0"
MASKED = "tests.environments:PlRlTest/Masked-v0"
DICTIONARY = partial(pl_rl.MultiInputActorCritic, encoder_sizes={"camera": [16]}, critic_keys=["robot/*"])


def masked(vectorization, source, **kwargs):
    return {
        "env": pl_rl.EnvConfig(MASKED, vectorization, kwargs, action_mask=source),
        "network": pl_rl.MultiInputActorCritic,
    }


LSTM = partial(pl_rl.RecurrentActorCritic, memory_size=8, sequence_length=8)
GRU = partial(LSTM, memory="gru", critic_keys=["robot/*"], encoder_sizes={"camera": [16]})
GSDE = partial(pl_rl.MLPActorCritic, distribution="gsde", sde_sample_freq=3, log_std_init=-1.0)

KINDS = {
    "dict": {"env": pl_rl.EnvConfig(NESTED, "sync"), "network": DICTIONARY},
    "dict, async": {"env": pl_rl.EnvConfig(NESTED, "async"), "network": DICTIONARY},
    "dict, normalized": {"env": pl_rl.EnvConfig(NESTED, "sync"), "network": DICTIONARY, "norm_obs": ["robot/*s"]},
    "mask in the info": masked("sync", "info.action_mask"),
    "mask of a method": masked("async", "method.masks", sizes=(2, 3)),
    "mask in the observation": masked("sync", "obs.allowed") | {"norm_obs": True},
    "memory, native": {"env": pl_rl.EnvConfig("CartPole-v1", "native"), "network": LSTM, "target_kl": 0.001},
    "memory, async": {"env": pl_rl.EnvConfig("Pendulum-v1", "async"), "network": LSTM, "norm_obs": True},
    "memory, dict": {"env": pl_rl.EnvConfig(NESTED, "sync"), "network": GRU},
    "memory, mask": masked("async", "info.action_mask") | {"network": LSTM},
    "dict, two shards": {"env": pl_rl.EnvConfig(NESTED, "sync"), "network": DICTIONARY, "norm_obs": True, "shards": 2},
    "gsde, two shards": {"env": pl_rl.EnvConfig("Pendulum-v1", "sync"), "network": GSDE, "shards": 2},
    "gsde, memory": {"env": pl_rl.EnvConfig("Pendulum-v1", "async"), "network": partial(LSTM, distribution="gsde")},
    "memory, two shards": masked("async", "info.action_mask") | {"network": LSTM, "shards": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_a_run_that_is_stopped_several_times_is_the_same_run(tmp_path, settings, compiled, capsys):
    settings = {**settings, "compile_update": compiled}
    train(tmp_path / "whole", 4, **settings)
    train(tmp_path / "parts", 1, **settings)
    for until in (2, 4):
        train(tmp_path / "parts", until, last_of(tmp_path / "parts"), **settings)
        assert account(capsys)[-1] == "fidelity: exact"
    assert differences(tmp_path / "whole", tmp_path / "parts") == {}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dict", "memory, native"])
def test_a_run_that_was_saved_with_eager_updates_goes_on_with_eager_ones(tmp_path, kind, capsys):
    """Though, as the run got longer, a new one would be compiled."""
    settings = {**KINDS[kind], "compile_update": None}
    train(tmp_path, 1, **settings)
    assert "eager" in read_checkpoint(last_of(tmp_path))["pl_rl"]["platform"]["updates"]
    train(tmp_path, 2, last_of(tmp_path), total_env_steps=10**7, **settings)
    assert account(capsys)[-1] == "fidelity: exact"
    assert "eager" in read_checkpoint(last_of(tmp_path))["pl_rl"]["platform"]["updates"]
    train(tmp_path / "new", 1, total_env_steps=10**7, **settings)
    assert "compiled" in read_checkpoint(last_of(tmp_path / "new"))["pl_rl"]["platform"]["updates"]


def test_a_checkpoint_has_the_entries_of_the_open_step(tmp_path):
    train(tmp_path, 1, **masked("sync", "info.action_mask"))
    collector = read_checkpoint(last_of(tmp_path))["pl_rl"]["collector"]
    assert set(collector["obs"]) == {"action_mask", "allowed", "noise"}
    assert torch.equal(collector["obs"]["action_mask"], collector["obs"]["allowed"])


def test_a_checkpoint_has_the_memory_of_open_episodes(tmp_path):
    train(tmp_path, 1, **KINDS["memory, native"])
    memory = read_checkpoint(last_of(tmp_path))["pl_rl"]["collector"]["memory"]
    assert memory["state"].shape == (4, 32) and memory["state"].any() and memory["begins"].shape == (4,)


@pytest.mark.parametrize("kind", ["dict, normalized", "mask of a method", "memory, dict"])
def test_a_policy_by_itself_acts_on_what_its_environment_gives(tmp_path, kind):
    train(tmp_path, 1, **KINDS[kind])
    policy = pl_rl.load_policy(last_of(tmp_path))
    env = policy.make_env(trust=["tests"])
    obs, _ = env.reset(seed=0)
    for _ in range(5):
        one = policy.act(obs)
        assert policy.value(obs).shape == ()
        policy.reset()
        both = policy.act({name: [entry, entry] for name, entry in obs.items()})
        policy.reset()
        assert (both == policy.act(obs)).all()
        obs, *_ = env.step(one)


def test_a_policy_that_acts_needs_no_entries_of_the_critic(tmp_path):
    train(tmp_path, 1, **KINDS["dict, normalized"])
    policy = pl_rl.load_policy(last_of(tmp_path))
    nested, _ = policy.make_env(trust=["tests"]).unwrapped.reset(seed=0)
    whole = policy.act(nested)
    del nested["robot"]
    assert policy.act(nested) == whole
    del nested["camera"]
    with pytest.raises(pl_rl.UsageError, match="the observation lacks camera, which the policy sees"):
        policy.act(nested)
    with pytest.raises(
        pl_rl.UsageError, match=r"of type int64 is given, and the policy sees a dictionary of camera, flags/0"
    ):
        policy.act(whole)


@pytest.mark.slow
def test_a_policy_with_a_dictionary_is_exported(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    settings = {"env": pl_rl.EnvConfig(MASKED, kwargs={"sizes": (2, 3)}, action_mask="info.action_mask")}
    train(tmp_path, 1, **settings, network=pl_rl.MultiInputActorCritic, norm_obs=True)
    export(last_of(tmp_path), "onnx", tmp_path / "policy.onnx")
    session, policy = onnxruntime.InferenceSession(tmp_path / "policy.onnx"), pl_rl.load_policy(last_of(tmp_path))
    env = policy.make_env(trust=["tests"])
    obs, _ = env.reset(seed=0)
    for _ in range(4):
        action, value, _ = session.run(None, {name: entry[None] for name, entry in obs.items()})
        assert (action[0] == policy.act(obs)).all()
        assert value[0] == pytest.approx(policy.value(obs), abs=1e-5)
        obs, *_ = env.step(action[0])


@pytest.mark.slow
def test_a_policy_with_a_memory_is_exported(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    train(tmp_path, 1, **KINDS["memory, native"])
    export(last_of(tmp_path), "onnx", tmp_path / "policy.onnx")
    session, policy = onnxruntime.InferenceSession(tmp_path / "policy.onnx"), pl_rl.load_policy(last_of(tmp_path))
    env = policy.make_env()
    obs, _ = env.reset(seed=0)
    state = np.zeros((1, 32), np.float32)
    for _ in range(8):
        action, value, _, state = session.run(None, {"obs": obs[None], "state": state})
        assert value[0] == pytest.approx(policy.value(obs), abs=1e-5)
        assert action[0] == policy.act(obs)
        obs, *_ = env.step(action[0])
