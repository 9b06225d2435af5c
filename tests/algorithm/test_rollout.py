"""Collecting: the value of the true successor, the policy's own probabilities, and no step lost between rollouts."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from pl_rl import EnvConfig, MLPActorCritic, RunFailure
from pl_rl.algorithm import functional as F
from pl_rl.algorithm.episodes import EpisodeStatistics
from pl_rl.algorithm.rollout import RolloutCollector
from pl_rl.envs import make_vector_env
from pl_rl.networks.normalization import ObservationNormalizer
from tests.example_networks import LinearValue


def collector_of(env_id, num_envs=1, num_steps=5, network=MLPActorCritic, vectorization="auto", seed=0, **kwargs):
    """A collector whose environments have begun their first episodes."""
    torch.manual_seed(0)
    env = make_vector_env(EnvConfig(env_id, vectorization, kwargs), num_envs)
    network = network(env.single_observation_space, env.single_action_space)
    collector = RolloutCollector(env, network, num_steps, torch.Generator().manual_seed(seed))
    collector.reset(seed)
    return collector


def counter_rollout(**kwargs):
    """Five steps of the counting environment, V(s) = 10 s + 1, as columns of numbers."""
    return collector_of("PlRlTest/Counter-v0", network=LinearValue, **kwargs).collect()


def advantages_of(rollout):
    """With gamma = lambda = 0.5."""
    fields = (rollout.rewards, rollout.values, rollout.next_values, rollout.terminated, rollout.truncated)
    return F.gae(*fields, 0.5, 0.5).flatten().tolist()


def test_a_running_episode_is_bootstrapped_with_the_next_observation():
    rollout = counter_rollout()
    assert rollout.obs.flatten().tolist() == [0, 1, 2, 3, 4]
    assert rollout.rewards.flatten().tolist() == [1, 2, 3, 4, 5]
    assert rollout.values.flatten().tolist() == [1, 11, 21, 31, 41]
    assert rollout.next_values.flatten().tolist() == [11, 21, 31, 41, 51]
    assert not (rollout.terminated | rollout.truncated).any()


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_a_time_limit_is_bootstrapped_with_the_final_observation(vectorization):
    rollout = counter_rollout(truncate_at=3, vectorization=vectorization)
    assert rollout.obs.flatten().tolist() == [0, 1, 2, 0, 1]
    assert rollout.truncated.flatten().tolist() == [False, False, True, False, False]
    # The third step leads to observation 3, of value 31; the next episode's first, 0, has value 1.
    assert rollout.next_values.flatten().tolist() == [11, 21, 31, 11, 21]
    # delta = 1 + 5.5 - 1, 2 + 10.5 - 11, 3 + 15.5 - 21, 1 + 5.5 - 1, 2 + 10.5 - 11 = 5.5, 1.5, -2.5, 5.5, 1.5
    # A_4 = 1.5, A_3 = 5.5 + 0.25 * 1.5, A_2 = -2.5, A_1 = 1.5 + 0.25 * -2.5, A_0 = 5.5 + 0.25 * 0.875
    assert advantages_of(rollout) == [5.71875, 0.875, -2.5, 5.875, 1.5]


def test_gymnasiums_own_time_limit_is_bootstrapped_too():
    by_wrapper = counter_rollout(max_episode_steps=3)
    assert by_wrapper.next_values.flatten().tolist() == [11, 21, 31, 11, 21]


def test_native_environments_bootstrap_a_time_limit_with_the_final_observation():
    """What a rollout says of truncated steps is what a hand-stepped copy of the environment saw."""
    collector = collector_of("CartPole-v1", num_envs=2, num_steps=8, vectorization="native", max_episode_steps=4)
    rollout = collector.collect()
    env = make_vector_env(EnvConfig("CartPole-v1", "native", {"max_episode_steps": 4}), 2)
    env.reset(seed=0)
    for t in range(8):
        _, _, _, truncated, infos = env.step(rollout.actions[t].numpy())
        assert truncated.all() == (t in (3, 7))
        if truncated.all():
            final_values = collector.network.value(torch.from_numpy(infos["final_obs"]))
            torch.testing.assert_close(rollout.next_values[t], final_values, atol=1e-6, rtol=0)


def test_a_terminated_episode_has_no_future():
    rollout = counter_rollout(terminate_at=3)
    assert rollout.terminated.flatten().tolist() == [False, False, True, False, False]
    assert not rollout.truncated.any()
    # delta_2 = 3 - 21 = -18, so A_2 = -18, A_1 = 1.5 + 0.25 * -18 = -3, A_0 = 5.5 + 0.25 * -3 = 4.75
    assert advantages_of(rollout) == [4.75, -3.0, -18.0, 5.875, 1.5]


def test_an_episode_both_terminated_and_truncated_has_no_future():
    rollout = counter_rollout(terminate_at=3, truncate_at=3)
    assert rollout.truncated.flatten().tolist() == rollout.terminated.flatten().tolist()
    assert advantages_of(rollout) == [4.75, -3.0, -18.0, 5.875, 1.5]


def test_an_episode_cut_by_the_end_of_the_rollout_at_its_time_limit_is_bootstrapped_with_its_final_observation():
    rollout = counter_rollout(truncate_at=5)
    assert rollout.next_values[-1].item() == 51


def test_an_infinite_final_observation_is_refused_where_the_normalizer_would_clip_it():
    collector = collector_of("PlRlTest/Counter-v0", network=LinearValue, truncate_at=3)
    collector.normalizer = ObservationNormalizer(collector.env.single_observation_space)
    step = collector.env.step

    def broken(actions):
        taken = step(actions)
        if "final_obs" in taken[4]:
            taken[4]["final_obs"][0][:] = np.inf
        return taken

    collector.env.step = broken
    with pytest.raises(RunFailure, match="environment 0 gave an observation whose number 0 of 1 is inf") as caught:
        collector.collect()
    assert caught.value.step == 3


@pytest.mark.parametrize(
    ("env_id", "kwargs", "obs_shape", "action_shape"),
    [
        ("CartPole-v1", {}, (4,), ()),
        ("PlRlTest/Identity-v0", {"kind": "multi_discrete"}, (5,), (2,)),
        ("PlRlTest/Identity-v0", {"kind": "box"}, (2,), (2,)),
    ],
)
def test_fields_have_the_documented_shapes(env_id, kwargs, obs_shape, action_shape):
    rollout = collector_of(env_id, num_envs=3, num_steps=6, **kwargs).collect()
    assert rollout.obs.shape == (6, 3, *obs_shape)
    assert rollout.actions.shape == (6, 3, *action_shape)
    for name in ("log_probs", "values", "next_values", "rewards", "terminated", "truncated"):
        assert getattr(rollout, name).shape == (6, 3)
    assert rollout.terminated.dtype == rollout.truncated.dtype == torch.bool


@pytest.mark.parametrize("kind", ["discrete", "multi_discrete", "box"])
def test_log_probabilities_are_those_of_the_policy_that_acted(kind):
    collector = collector_of("PlRlTest/Identity-v0", num_envs=3, num_steps=6, kind=kind)
    rollout = collector.collect()
    outputs, values = collector.network(rollout.obs.flatten(0, 1))
    log_probs = collector.network.distribution.log_prob(outputs, rollout.actions.flatten(0, 1))
    torch.testing.assert_close(rollout.log_probs.flatten(), log_probs, atol=1e-6, rtol=0)
    torch.testing.assert_close(rollout.values.flatten(), values, atol=1e-6, rtol=0)


def test_a_rollout_goes_on_where_the_last_one_ended():
    in_two = collector_of("CartPole-v1", num_envs=2, num_steps=10)
    first, second = in_two.collect(), in_two.collect()
    env = make_vector_env(EnvConfig("CartPole-v1"), 2)
    obs, _ = env.reset(seed=0)
    for t, actions in enumerate(torch.cat([first.actions, second.actions])):
        assert np.array_equal(torch.cat([first.obs, second.obs])[t].numpy(), obs), f"step {t}"
        obs, *_ = env.step(actions.numpy())


def test_the_first_rollout_is_not_overwritten_by_the_second():
    collector = collector_of("PlRlTest/Counter-v0", num_steps=3)
    first, second = collector.collect(), collector.collect()
    assert first.obs.flatten().tolist() == [0, 1, 2]
    assert second.obs.flatten().tolist() == [3, 4, 5]


def test_an_update_between_rollouts_takes_effect():
    collector = collector_of("PlRlTest/Counter-v0", network=LinearValue, num_steps=3)
    collector.collect()
    with torch.no_grad():
        collector.network.offset.add_(1)
    assert collector.collect().values.flatten().tolist() == [32, 42, 52]


def test_the_same_seed_collects_the_same_bits():
    one, same, other = (collector_of("CartPole-v1", num_envs=2, num_steps=20, seed=s).collect() for s in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one.actions, other.actions)


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Discrete(3, start=5),
        gym.spaces.MultiDiscrete([2, 3], start=[10, 20]),
        gym.spaces.Box(np.array([-0.5, 0.0], np.float32), np.array([1.5, 0.25], np.float32)),
    ],
    ids=["discrete", "multi_discrete", "box"],
)
def test_every_action_that_reaches_the_environment_lies_in_its_space(space):
    collector = collector_of("PlRlTest/Recorder-v0", num_envs=2, num_steps=40, action_space=space)
    rollout = collector.collect()
    received = np.array([env.unwrapped.received for env in collector.env.envs])  # [N, T, ...]
    assert len(received[0]) == 40
    if isinstance(space, gym.spaces.Box):
        actions = rollout.actions.transpose(0, 1).numpy()
        assert (actions != received).any(), "actions are sampled without bounds, and kept so for learning"
        assert np.array_equal(received, actions.clip(space.low, space.high))
    else:
        assert np.array_equal(received, rollout.actions.transpose(0, 1).numpy() + space.start)


def test_episode_statistics_are_of_ended_episodes():
    collector = collector_of("PlRlTest/Counter-v0", num_envs=2, num_steps=5, truncate_at=3)
    collector.collect()
    # Each environment has ended one episode, of return 1 + 2 + 3; two steps of the next are open.
    assert collector.episodes.total == 2
    assert (collector.episodes.mean_return(), collector.episodes.mean_length()) == (6.0, 3.0)
    collector.collect()
    assert collector.episodes.total == 6, "the open episodes ended in the second rollout"
    assert (collector.episodes.mean_return(), collector.episodes.mean_length()) == (6.0, 3.0)


def test_episode_statistics_cover_a_window_of_the_latest():
    statistics = EpisodeStatistics(num_envs=1, window=2)
    assert np.isnan(statistics.mean_return())
    assert np.isnan(statistics.mean_length())
    for episode_return in (1.0, 10.0, 20.0):
        statistics.add(np.array([0.0]), np.array([False]))
        statistics.add(np.array([episode_return]), np.array([True]))
    assert statistics.total == 3
    assert (statistics.mean_return(), statistics.mean_length()) == (15.0, 2.0)


def test_collecting_leaves_the_global_random_generators_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    collector = collector_of("CartPole-v1")
    torch.set_rng_state(before[0])
    collector.collect()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
