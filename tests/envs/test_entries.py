"""Dictionary and tuple observations."""

import gymnasium as gym
import numpy as np
import pytest

import tests.environments  # noqa: F401  (registers environments)
from pl_rl import UsageError
from pl_rl.envs import EnvConfig, make_env, make_vector_env, restore_envs, save_envs
from pl_rl.envs.entries import EntriesByPath
from pl_rl.errors import EnvironmentFailure
from pl_rl.networks.records import leaves, rows, tree_map

NESTED = EnvConfig("PlRlTest/Nested-v0")
PATHS = ["camera", "flags/0", "flags/1", "robot/joints", "robot/mode"]


def copied(obs):
    return tree_map(np.array, obs)


def same(one, other):
    return one.keys() == other.keys() and all(map(np.array_equal, leaves(one), leaves(other)))


def walk(env, steps):
    """Observations, rewards and last observations, with fixed actions."""
    seen = []
    for step in range(steps):
        obs, rewards, _, _, infos = env.step(np.arange(env.num_envs) % 2 ^ step % 2)
        finals = [copied(final) for final in infos.get("final_obs", []) if final is not None]
        seen.append((copied(obs), rewards.copy(), finals))
    return seen


def same_walks(one, other):
    pairs = zip(one, other, strict=True)
    return all(
        same(a[0], b[0]) and np.array_equal(a[1], b[1]) and all(map(same, a[2], b[2])) and len(a[2]) == len(b[2])
        for a, b in pairs
    )


def test_entries_are_named_by_their_path():
    env = make_env(NESTED)
    assert sorted(env.observation_space.spaces) == PATHS
    obs, _ = env.reset(seed=0)
    nested, _ = gym.make(NESTED.id).reset(seed=0)
    assert env.observation_space.contains(obs)
    assert np.array_equal(obs["robot/joints"], nested["robot"]["joints"])
    assert np.array_equal(obs["flags/1"], nested["flags"][1]) and obs["robot/mode"] == nested["robot"]["mode"]


def test_observations_without_entries_stay_as_they_are():
    assert not isinstance(make_env(EnvConfig("CartPole-v1")), EntriesByPath)


def test_two_entries_of_one_path_are_refused():
    choice, env = gym.spaces.Discrete(2), gym.Env()
    env.observation_space = gym.spaces.Dict({"a/b": choice, "a": gym.spaces.Dict({"b": choice})})
    env.action_space = choice
    with pytest.raises(UsageError, match="two entries of the observations have the path 'a/b'"):
        EntriesByPath(env)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_a_replay_brings_every_entry_back(vectorization):
    env = make_vector_env(EnvConfig(NESTED.id, vectorization), 3)
    env.reset(seed=5)
    before = walk(env, 20)
    obs = before[-1][0]
    returns = np.sum([np.float32(rewards) for _, rewards, _ in before[14:]], 0, np.float64)  # episodes have 7 steps
    saved, expected = save_envs(env), walk(env, 20)
    env.close()
    other = make_vector_env(EnvConfig(NESTED.id, "sync"), 3)
    other.reset(seed=77)
    assert restore_envs(other, saved, obs, returns) is None
    assert same_walks(walk(other, 20), expected)
    other.close()


@pytest.mark.parametrize("entry", PATHS)
def test_a_replay_that_leads_elsewhere_in_any_entry_is_found(entry):
    env = make_vector_env(EnvConfig(NESTED.id, "sync"), 1)
    env.reset(seed=5)
    obs = copied(walk(env, 3)[-1][0])
    obs[entry] = obs[entry] + 1
    assert "by the observation in the end" in restore_envs(env, save_envs(env), obs, np.zeros(1))
    env.close()


def test_worker_processes_give_the_same():
    walks = []
    for vectorization in ("sync", "async"):
        env = make_vector_env(EnvConfig(NESTED.id, vectorization), 3)
        first = copied(env.reset(seed=5)[0])
        walks.append([(first, np.zeros(3), []), *walk(env, 20)])
        env.close()
    assert same_walks(*walks)
    assert sum(len(finals) for _, _, finals in walks[0]) == 6


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"without": "flags"}, "without the entry 'flags/0' that its space names"),
        (
            {"odd": np.zeros(3, np.float32)},
            r"'robot/joints' of shape \(3,\) and type float32, where its space has",
        ),
    ],
)
def test_a_wrong_entry_is_named(vectorization, kwargs, words):
    env = make_vector_env(EnvConfig(NESTED.id, vectorization, kwargs), 2)
    with pytest.raises(EnvironmentFailure, match=words):
        env.reset(seed=5)
        walk(env, 5)
    env.close()


def test_rows_of_a_batch_are_observations():
    env = make_vector_env(NESTED, 2)
    obs, _ = env.reset(seed=5)
    assert all(env.single_observation_space.contains(rows(obs, i)) for i in range(2))
    env.close()
