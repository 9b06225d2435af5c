"""Vector environments: every way of stepping gives the same episodes, and ends them within the step."""

import gc
import multiprocessing
import os
import sys
import time

import gymnasium as gym
import numpy as np
import pytest

import tests.uncertain_environments  # noqa: F401  (registers environments)
from pl_rl import EnvConfig, UsageError
from pl_rl.envs import auto_vectorization, make_env, make_vector_env, vectorization_of
from pl_rl.envs.workers import AsyncEnvs
from tests.environments import Counter
from tests.support import fit, small_ppo

VECTORIZATIONS = ["sync", "async", "native"]


def cartpole(vectorization, num_envs=3, **kwargs):
    return make_vector_env(EnvConfig("CartPole-v1", vectorization, kwargs), num_envs)


def play(env, actions, seed):
    """Everything that the environments say to actions ``[T, N]``, copied."""
    obs, _ = env.reset(seed=seed)
    steps = [np.array(obs)]
    for action in actions:
        steps += [np.array(thing) for thing in env.step(action)[:4]]
    env.close()
    return steps


def random_actions(steps=60, num_envs=3):
    return np.random.default_rng(0).integers(0, 2, (steps, num_envs))


@pytest.mark.parametrize("env_id", ["CartPole-v1", "PlRlTest/ShortOrLong-v0"])
def test_sync_and_async_give_the_same_rollout(env_id):
    rollouts = [
        play(make_vector_env(EnvConfig(env_id, vectorization), 3), random_actions(), seed=5)
        for vectorization in ("sync", "async")
    ]
    assert all(np.array_equal(one, other) for one, other in zip(*rollouts, strict=True))


@pytest.mark.parametrize("vectorization", VECTORIZATIONS)
def test_the_same_seed_gives_the_same_rollout_and_another_one_does_not(vectorization):
    one, same, other = (play(cartpole(vectorization), random_actions(), seed) for seed in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not np.array_equal(one[0], other[0])


@pytest.mark.parametrize("vectorization", VECTORIZATIONS)
def test_an_ended_episode_begins_again_within_the_step_that_ended_it(vectorization):
    env = cartpole(vectorization)
    obs, _ = env.reset(seed=0)
    ended_once = np.zeros(3, bool)
    # Always pushing to one side ends an episode within about ten steps.
    for _ in range(30):
        obs, rewards, terminated, truncated, infos = env.step(np.array([0, 0, 1]))
        assert rewards.tolist() == [1.0, 1.0, 1.0]
        for i in np.flatnonzero(terminated | truncated):
            assert infos["_final_obs"][i]
            final_obs = infos["final_obs"][i]
            assert abs(final_obs[2]) > 0.2095 or abs(final_obs[0]) > 2.4
            assert np.abs(obs[i]).max() <= 0.05, "a new episode begins close to upright"
        ended_once |= terminated
    assert ended_once.all()
    env.close()


def test_native_steps_that_end_nothing_leave_the_others_alone():
    """Final observations are those of the physics, while the other environments go on undisturbed."""
    env = cartpole("native", num_envs=2)
    env.reset(seed=1)
    single = make_env(EnvConfig("CartPole-v1"))
    single.reset(seed=0)
    ends = 0
    for t in range(200):
        # One cart is pushed to the side until it falls, the other is balanced for longer.
        actions = np.array([0, t % 2])
        before = env.state.T.copy()
        obs, rewards, terminated, truncated, infos = env.step(actions)
        for i in range(2):
            single.reset()
            single.unwrapped.state = tuple(before[i])
            expected_obs, expected_reward, expected_terminated, _, _ = single.step(int(actions[i]))
            actual = infos["final_obs"][i] if terminated[i] or truncated[i] else obs[i]
            np.testing.assert_allclose(actual, expected_obs, atol=1e-6)
            assert rewards[i] == expected_reward
            assert terminated[i] == expected_terminated
            ends += terminated[i]
    assert ends >= 10


@pytest.mark.parametrize("vectorization", VECTORIZATIONS)
def test_a_time_limit_truncates_at_its_step_and_counts_anew(vectorization):
    env = cartpole(vectorization, max_episode_steps=3)
    env.reset(seed=0)
    for step in range(1, 10):
        obs, _, terminated, truncated, infos = env.step(np.array([0, 1, 0]))
        assert not terminated.any()
        assert truncated.tolist() == [step % 3 == 0] * 3
        if step % 3 == 0:
            assert all(not np.array_equal(infos["final_obs"][i], obs[i]) for i in range(3))
    env.close()


@pytest.mark.parametrize("vectorization", ["sync", "native"])
def test_cartpole_is_truncated_after_500_steps(vectorization):
    env = cartpole(vectorization, num_envs=1)
    obs, _ = env.reset(seed=0)
    for step in range(1, 501):
        # Steering against the sum of everything balances the pole for good.
        action = (obs @ np.array([0.1, 0.5, 1.0, 1.0]) > 0).astype(np.int64)
        obs, _, terminated, truncated, _ = env.step(action)
        assert not terminated.any()
        assert truncated[0] == (step == 500)
    env.close()


def test_automatic_vectorization_is_native_where_there_is_one():
    def observations(config):
        return play(make_vector_env(config, 3), random_actions(), seed=2)

    automatic, native = observations(EnvConfig("CartPole-v1")), observations(EnvConfig("CartPole-v1", "native"))
    assert all(np.array_equal(one, other) for one, other in zip(automatic, native, strict=True))
    automatic, sync = (
        observations(EnvConfig("PlRlTest/Counter-v0")),
        play(make_vector_env(EnvConfig("PlRlTest/Counter-v0", "sync"), 3), random_actions(), seed=2),
    )
    assert all(np.array_equal(one, other) for one, other in zip(automatic, sync, strict=True))


class Slow(Counter):
    """A millisecond a step."""

    def step(self, action):
        time.sleep(1e-3)
        return super().step(action)


gym.register("PlRlTest/Slow-v0", Slow)


@pytest.mark.parametrize(
    ("env_id", "num_envs", "cores", "training", "expected"),
    [
        ("PlRlTest/Slow-v0", 4, 2, True, "async"),
        ("PlRlTest/Slow-v0", 4, 2, False, "sync"),
        ("PlRlTest/Slow-v0", 4, 1, True, "sync"),
        ("PlRlTest/Slow-v0", 1, 2, True, "sync"),
        ("PlRlTest/Counter-v0", 4, 2, True, "sync"),
        ("CartPole-v1", 4, 2, True, "native"),
    ],
)
def test_automatic_vectorization_takes_workers_where_they_pay(env_id, num_envs, cores, training, expected, monkeypatch):
    monkeypatch.setattr(auto_vectorization, "cores", lambda: cores)
    env = make_vector_env(EnvConfig(env_id), num_envs, training)
    assert vectorization_of(env) == expected
    env.close()


def test_a_process_that_may_start_no_others_has_no_workers(monkeypatch):
    monkeypatch.setattr(auto_vectorization, "cores", lambda: 2)
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # as in multiprocessing.Pool
    env = make_vector_env(EnvConfig("PlRlTest/Slow-v0"), 4, training=True)
    assert vectorization_of(env) == "sync"
    env.close()
    with pytest.raises(UsageError, match=r"async starts processes.*take sync or auto"):
        make_vector_env(EnvConfig("PlRlTest/Slow-v0", "async"), 4)


def test_looking_whether_workers_pay_draws_no_random_numbers(monkeypatch):
    monkeypatch.setattr(auto_vectorization, "cores", lambda: 2)
    np.random.seed(0)
    expected = np.random.random()
    np.random.seed(0)
    make_vector_env(EnvConfig("PlRlTest/GloballyRandom-v0"), 2, training=True).close()
    assert np.random.random() == expected


def test_an_automatic_choice_is_said(caplog):
    with caplog.at_level("INFO"):
        fit(small_ppo(env="PlRlTest/Counter-v0", total_env_steps=64))
    assert "Environments: 4 of PlRlTest/Counter-v0, sync." in caplog.text


def test_more_environments_than_cores_share_workers():
    env = make_vector_env(EnvConfig("PlRlTest/Counter-v0", "async"), 5)
    assert len(multiprocessing.active_children()) == min(5, auto_vectorization.cores())
    env.close()


class WithThreads:
    """Ends threads when it is collected, as simulators do, which a fork has not: there it ends the process."""

    def __init__(self):
        self.itself, self.made_in = self, os.getpid()

    def __del__(self):
        if os.getpid() != self.made_in:
            os._exit(3)


def test_workers_do_not_collect_what_this_process_left_behind():
    here = os.getpid()

    def collect_and_make():
        if os.getpid() != here:
            gc.collect()
        return gym.make("CartPole-v1")

    gc.disable()
    try:
        WithThreads()
        env = AsyncEnvs([collect_and_make] * 2, 60)
        env.reset(seed=1)
        env.close()
        assert gc.get_freeze_count() == 0
    finally:
        gc.enable()


def test_spaces_are_those_of_the_single_environment():
    single = make_env(EnvConfig("CartPole-v1"))
    for vectorization in VECTORIZATIONS:
        env = cartpole(vectorization)
        assert env.single_observation_space == single.observation_space
        assert env.single_action_space == single.action_space
        env.close()


def test_keyword_arguments_reach_the_environment():
    env = make_vector_env(EnvConfig("PlRlTest/Counter-v0", kwargs={"truncate_at": 2}), 1)
    env.reset(seed=0)
    assert [bool(env.step(np.array([0]))[3][0]) for _ in range(4)] == [False, True, False, True]


def test_an_unknown_environment_is_answered_with_the_nearest_names():
    with pytest.raises(UsageError, match=r"there is no environment 'CartPol-v1'; the nearest names are .*CartPole-v1"):
        make_env(EnvConfig("CartPol-v1"))


@pytest.mark.parametrize("env_id", ["CartPole-v9", "CartPole-v-1", "no_such_module:CartPole-v1", "qqqqq"])
def test_an_environment_that_does_not_exist_is_refused(env_id):
    with pytest.raises(UsageError, match="there is no environment"):
        make_env(EnvConfig(env_id))


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1"])
def test_a_keyword_argument_that_an_environment_does_not_take_is_named(env_id):
    config = EnvConfig(env_id, kwargs={"colour": "red"})
    with pytest.raises(UsageError, match=rf"{env_id}.*cannot be made: .*colour"):
        make_env(config)
    with pytest.raises(UsageError, match=rf"{env_id}.*cannot be made: .*colour"):
        make_vector_env(config, 2)


def test_native_vectorization_is_refused_where_there_is_none():
    with pytest.raises(UsageError, match="'Acrobot-v1' has no native vectorization; use auto, sync or async"):
        make_vector_env(EnvConfig("Acrobot-v1", "native"), 2)


def test_an_environment_is_registered_by_the_module_in_front_of_its_name(monkeypatch):
    gym.registry.pop("PlRlTest/Late-v0", None)
    monkeypatch.delitem(sys.modules, "tests.late_environment", raising=False)
    env = make_vector_env(EnvConfig("tests.late_environment:PlRlTest/Late-v0"), 2)
    env.reset(seed=0)
    assert env.step(np.array([0, 0]))[1].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("given", "whole"),
    [
        ("CartPole", "CartPole-v1"),
        ("PlRlTest/Counter", "PlRlTest/Counter-v0"),
        ("tests.environments:PlRlTest/Counter", "tests.environments:PlRlTest/Counter-v0"),
    ],
)
def test_a_name_without_a_version_is_that_of_the_newest_once_and_for_all(given, whole, caplog):
    with caplog.at_level("INFO"):
        model = small_ppo(env=EnvConfig(given, kwargs={} if given == "CartPole" else {"truncate_at": 5}))
    assert model.env_config.id == model.hparams["env"]["id"] == whole
    assert caplog.text.count(f"Environment {given} is {whole}, the newest version") == 1


@pytest.mark.parametrize("given", ["NoSuch", "CartPole-v9", "-", "a:b:c"])
def test_a_name_that_nobody_registered_is_refused_as_before(given):
    with pytest.raises(UsageError, match=f"there is no environment '{given}'|cannot be imported"):
        small_ppo(env=given)
