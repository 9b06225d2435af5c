"""Environment states that are saved and restored, observation for observation."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

import tests.uncertain_environments  # noqa: F401  (registers environments)
from pl_rl.envs import SNAPSHOTS, EnvConfig, Restored, Snapshot, make_vector_env, restore_envs, save_envs
from pl_rl.envs.replay import ReplayEnv
from pl_rl.tools.verification import first_difference

ENVIRONMENTS = [
    EnvConfig("CartPole-v1", "native"),
    EnvConfig("CartPole-v1", "native", {"max_episode_steps": 15}),
    EnvConfig("CartPole-v1", "sync"),
    EnvConfig("CartPole-v1", "async"),
    EnvConfig("Acrobot-v1"),
    EnvConfig("Pendulum-v1"),
    EnvConfig("MountainCarContinuous-v0"),
    EnvConfig("PlRlTest/NoisyWalk-v0"),
    EnvConfig("PlRlTest/NoisyWalk-v0", "async"),
    EnvConfig("PlRlTest/Imprecise-v0"),
    EnvConfig("PlRlTest/Imprecise-v0", "async"),
    EnvConfig("PlRlTest/Sequences-v0"),
]


CARTPOLE = "SameStepCartPoleVectorEnv"


def walk(env, obs, steps, rng):
    """Random actions; every observation and reward on the way."""
    seen = []
    for _ in range(steps):
        obs, rewards, terminated, truncated, _ = env.step(_actions(env, rng))
        seen.append((obs.copy(), rewards.copy(), terminated.copy(), truncated.copy()))
    return seen


def _actions(env, rng):
    space = env.single_action_space
    if isinstance(space, gym.spaces.Discrete):
        return rng.integers(space.n, size=env.num_envs)
    return rng.uniform(space.low, space.high, size=(env.num_envs, *space.shape)).astype(space.dtype)


def open_returns_of(seen, num_envs=3):
    """The rewards in each episode that is still open, as rollouts add them up."""
    returns = np.zeros(num_envs)
    for _, rewards, terminated, truncated in seen:
        returns += rewards.astype(np.float32)
        returns[terminated | truncated] = 0
    return returns


def same(one, other):
    return all(np.array_equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


def assert_restored_after(steps, config):
    """Saved after some steps, environments go on in new ones as they would have gone on themselves."""
    env = make_vector_env(config, 3)
    obs, _ = env.reset(seed=5)
    seen = walk(env, obs, steps, np.random.default_rng(0))
    obs = seen[-1][0] if seen else obs.copy()
    saved = save_envs(env)
    expected = walk(env, obs, 300, np.random.default_rng(1))
    env.close()
    other = make_vector_env(config, 3)
    other.reset(seed=99)
    assert restore_envs(other, saved, obs, open_returns_of(seen)) is None
    assert same(walk(other, obs, 300, np.random.default_rng(1)), expected)
    other.close()


@pytest.mark.slow
@pytest.mark.parametrize("config", ENVIRONMENTS, ids=str)
def test_restored_environments_go_on_observation_for_observation(config):
    # 1,250 steps pass several anchors and, everywhere, several ends of episodes.
    for steps in (0, 1, 57, 1250):
        assert_restored_after(steps, config)


def test_a_replay_may_change_between_this_process_and_workers():
    env = make_vector_env(EnvConfig("PlRlTest/NoisyWalk-v0", "sync"), 2)
    obs, _ = env.reset(seed=5)
    seen = walk(env, obs, 100, np.random.default_rng(0))
    other = make_vector_env(EnvConfig("PlRlTest/NoisyWalk-v0", "async"), 2)
    other.reset(seed=1)
    assert restore_envs(other, save_envs(env), seen[-1][0], open_returns_of(seen, 2)) is None
    other.close()


def test_what_is_saved_is_plain_data(tmp_path):
    for config in ENVIRONMENTS:
        env = make_vector_env(config, 2)
        obs, _ = env.reset(seed=5)
        walk(env, obs, 30, np.random.default_rng(0))
        torch.save(save_envs(env), tmp_path / "saved")
        assert torch.load(tmp_path / "saved", weights_only=True)["class"] in ("SyncEnvs", CARTPOLE)
        env.close()


@pytest.mark.slow
def test_anchors_keep_a_replay_short():
    env = ReplayEnv(lambda: gym.make("PlRlTest/NoisyWalk-v0"))
    env.reset(seed=3)
    lengths = []
    for _ in range(20_000):
        *_, terminated, truncated, _ = env.step(1)
        if terminated or truncated:
            env.reset()
        lengths.append(len(env.replay["window"]["actions"]))
    # An episode lasts 40 steps at most, and begins before the 1,000 are over.
    assert 900 < max(lengths) < 1000 + 40


def test_a_failing_replay_is_said_and_does_not_raise():
    env = make_vector_env(EnvConfig("PlRlTest/Hoarder-v0"), 2)
    obs, _ = env.reset(seed=5)
    seen = walk(env, obs, 200, np.random.default_rng(0))  # past an anchor, which does not bring the hoard back
    other = make_vector_env(EnvConfig("PlRlTest/Hoarder-v0"), 2)
    other.reset(seed=5)
    failure = restore_envs(other, save_envs(env), seen[-1][0], open_returns_of(seen, 2))
    assert "environment 0's seed and actions led elsewhere, by the observation" in failure


def test_the_environment_that_differs_is_named():
    env = make_vector_env(EnvConfig("PlRlTest/NoisyWalk-v0"), 3)
    obs, _ = env.reset(seed=5)
    seen = walk(env, obs, 30, np.random.default_rng(0))
    returns = open_returns_of(seen)
    returns[1] += 1
    failure = restore_envs(env, save_envs(env), seen[-1][0], returns)
    assert "environment 1's seed and actions led elsewhere, by the rewards" in failure


COUNTING = ["tests.uncertain_environments.CountsAllSteps"]
HIDDEN = {
    "curriculum": (EnvConfig("PlRlTest/Curriculum-v0", "sync"), "rewards or the end of the episode that began 0 steps"),
    "unseeded end": (EnvConfig("PlRlTest/UnseededEnd-v0", "sync"), "rewards or the end of the episode that began 0 "),
    "counting wrapper": (EnvConfig("CartPole-v1", "sync", wrappers=COUNTING), "rewards or the end of the episode that"),
}


def restored_elsewhere(config, steps):
    """What is said of a state that is saved after some steps and restored in new environments."""
    env = make_vector_env(config, 2)
    obs, _ = env.reset(seed=5)
    seen = walk(env, obs, steps, np.random.default_rng(0))
    other = make_vector_env(config, 2)
    other.reset(seed=99)
    failure = restore_envs(other, save_envs(env), seen[-1][0], open_returns_of(seen, 2))
    for each in (env, other):
        each.close()
    return failure


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("kind", HIDDEN)
def test_state_that_outlives_a_seeded_reset_is_found(kind, vectorization):
    """Though the last observation and the rewards of the open episode, to float32, are the same again."""
    config, where = HIDDEN[kind]
    # 101 steps are followed by an anchor soon; afterwards episodes end before 450 are over.
    failure = restored_elsewhere(replace(config, vectorization=vectorization), 450)
    assert f"environment 0's seed and actions led elsewhere, by the {where}" in failure


@pytest.mark.parametrize("steps", [1250, 1300, 1500])
def test_hidden_state_is_found_where_the_last_anchor_is_younger_than_any_end_of_an_episode(steps):
    """Episodes of 600 steps and more all begin with an anchor."""
    config = EnvConfig("PlRlTest/Curriculum-v0", "sync", {"first": 600})
    assert "environment 0's seed and actions led elsewhere, by the rewards or the end" in restored_elsewhere(
        config, steps
    )


def test_the_environment_and_the_episode_that_differ_are_named():
    env = make_vector_env(EnvConfig("PlRlTest/NoisyWalk-v0", "sync"), 3)
    obs, _ = env.reset(seed=5)
    seen = walk(env, obs, 60, np.random.default_rng(0))
    for number, what in [(0, "observations"), (1, "rewards or the end")]:
        saved = save_envs(env)
        replay = saved["state"][2]
        assert replay["resets"]
        replay["digest"]["sums"][1][number] ^= 1
        failure = restore_envs(env, saved, seen[-1][0], open_returns_of(seen))
        place = f"the {what} of the episode that began {replay['resets'][0]} steps after an anchor"
        assert failure.startswith(f"a replay of environment 2's seed and actions led elsewhere, by {place}, so it")


def test_checksums_go_on_after_a_restore_and_do_not_depend_on_when_states_are_saved():
    config = EnvConfig("PlRlTest/NoisyWalk-v0", "sync")
    env, other = (make_vector_env(config, 2) for _ in range(2))
    obs, _ = env.reset(seed=5)
    other.reset(seed=6)
    seen = walk(env, obs, 333, np.random.default_rng(0))
    assert restore_envs(other, save_envs(env), seen[-1][0], open_returns_of(seen, 2)) is None
    rng, same_rng = np.random.default_rng(1), np.random.default_rng(1)
    for _ in range(70):
        walk(env, obs, 5, rng)
        save_envs(env)
    walk(other, obs, 350, same_rng)
    assert first_difference(save_envs(env), save_envs(other)) is None


def test_an_unknown_vector_environment_is_said_not_to_be_saved_until_it_is_registered(monkeypatch):
    class Own(gym.vector.SyncVectorEnv):
        pass

    env = Own([lambda: gym.make("CartPole-v1")])
    obs, _ = env.reset(seed=0)
    assert save_envs(env) is None
    assert restore_envs(env, None, obs, np.zeros(1)) == "the state of a Own cannot be saved"
    monkeypatch.setitem(SNAPSHOTS, Own, Snapshot(lambda env: [1, 2], lambda env, state: Restored(obs)))
    assert save_envs(env) == {"class": "Own", "state": [1, 2]}
    assert restore_envs(env, save_envs(env), obs, np.zeros(1)) is None
