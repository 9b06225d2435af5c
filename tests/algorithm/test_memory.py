"""Rollouts, evaluations and policies with a memory carry it through episodes and drop it at their ends."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import tests.environments  # noqa: F401  (registers environments)
from pl_rl import RecurrentActorCritic, UsageError
from pl_rl.algorithm.evaluation import evaluate
from pl_rl.envs import EnvConfig
from tests.algorithm.test_rollout import collector_of
from tests.networks.test_recurrent import Sum
from tests.support import quiet_trainer, small_ppo

RECURRENT = partial(RecurrentActorCritic, memory_size=8, sequence_length=8)


def summing(*spaces):
    """V = what the memory has added up: m_t = x_t + 0.5 m_(t-1), x_t the step within the episode."""
    network = RecurrentActorCritic(*spaces, memory_size=1, sequence_length=5, actor_sizes=(), critic_sizes=())
    network.actor_memory, network.critic_memory = Sum(), Sum()
    nn.init.ones_(network.critic[0].weight)
    return network


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_a_time_limit_is_bootstrapped_with_the_memory_of_that_moment(vectorization):
    collector = collector_of("PlRlTest/Counter-v0", network=summing, vectorization=vectorization, truncate_at=3)
    rollout = collector.collect()
    # Observations 0, 1, 2, then 3 at the limit; 0, 1 of the next episode, 2 after the rollout.
    assert rollout.obs.memory.begins.flatten().tolist() == [True, False, False, True, False]
    assert rollout.obs.memory.state[:3].tolist() == [[[0, 0]], [[0, 0]], [[1, 1]]]
    assert rollout.values.flatten().tolist() == [0, 1, 2.5, 0, 1]
    assert rollout.next_values.flatten().tolist() == [1, 2.5, 4.25, 1, 2.5]
    following = collector.collect()
    assert following.obs.memory.begins.flatten().tolist() == [False, True, False, False, True]
    assert following.values.flatten().tolist() == [2.5, 0, 1, 2.5, 0]


def test_the_policy_is_its_own_in_the_first_update():
    """Probabilities of the sequences are those of the steps, so that the ratio is 1."""
    collector = collector_of("CartPole-v1", 3, 40, partial(RECURRENT, sequence_length=40), "sync")
    rollout = collector.collect()
    seen = torch.utils._pytree.tree_map(lambda steps: steps.transpose(0, 1), rollout.obs)
    outputs, values = collector.network(seen)
    log_probs = collector.network.distribution.log_prob(outputs, rollout.actions.T)
    assert rollout.obs.memory.begins.sum() > 3
    torch.testing.assert_close(log_probs, rollout.log_probs.T)
    torch.testing.assert_close(values, rollout.values.T)


def test_evaluations_forget_at_the_end_of_an_episode():
    collector = collector_of("CartPole-v1", 2, 8, RECURRENT, "sync")
    network, seen = collector.network, []
    network.policy_step = lambda record, step=network.policy_step: (seen.append(record.memory), step(record))[1]
    episodes = evaluate(network, EnvConfig("CartPole-v1", "sync"), 1, 3, 0)
    ends = np.cumsum(episodes.lengths)
    assert [i for i, memory in enumerate(seen) if memory.begins[0]] == [0, *ends[:-1]]


def test_a_policy_by_itself_remembers_until_it_is_told_to_forget(tmp_path):
    model, trainer = small_ppo(network=RECURRENT), quiet_trainer(max_epochs=1)
    trainer.fit(model)
    trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=False)
    import pl_rl

    policy = pl_rl.load_policy(tmp_path / "last.ckpt")
    obs = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    first, again = policy.value(obs[0]), policy.value(obs[0])
    policy.act(obs[0])
    assert first == again != policy.value(obs[0])
    with pytest.raises(UsageError, match=r"3 observations .* the policy remembers 1 episodes; call reset\(\)"):
        policy.act(obs)
    policy.reset()
    assert policy.value(obs[0]) == first
    policy.act(obs)
    policy.reset([True, False, False])
    before = policy.value(obs)
    policy.reset()
    assert np.array_equal(before == policy.value(obs), [True, False, False])


@pytest.mark.parametrize(("name", "value"), [("num_steps", 12), ("minibatch_size", 4)])
def test_sequences_have_to_fit(name, value):
    with pytest.raises(UsageError, match=f"{name}={value} is not divisible by sequence_length=8; use --model.{name} 8"):
        small_ppo(network=RECURRENT, **{name: value})
