"""Advantages that are computed anew in each pass: by the present values, those of what the steps led to included."""

from functools import partial

import numpy as np
import pytest
import torch

import tests.environments  # noqa: F401  (registers environments)
from pl_rl import MLPActorCritic, MultiInputActorCritic, RecurrentActorCritic
from pl_rl.distributed.experience import Experience
from pl_rl.networks.normalization import ObservationNormalizer
from tests.algorithm.test_memory import summing
from tests.algorithm.test_rollout import collector_of
from tests.example_networks import LinearValue
from tests.support import fit, same_bits, small_ppo


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_values_are_those_of_the_present_network_also_at_a_time_limit(vectorization):
    collector = collector_of("PlRlTest/Counter-v0", network=LinearValue, vectorization=vectorization, truncate_at=3)
    before = collector.collect()
    with torch.no_grad():
        collector.network.slope.fill_(20)
        collector.network.offset.fill_(2)
    after = collector.revalue(before)
    assert after.values.flatten().tolist() == [2, 22, 42, 2, 22]
    # The third step led to observation 3, of value 62; the last one to 2, of value 42.
    assert after.next_values.flatten().tolist() == [22, 42, 62, 22, 42]
    unchanged = before._replace(values=after.values, next_values=after.next_values)
    assert all(one is other for one, other in zip(after, unchanged, strict=True))


def test_a_memory_remembers_by_the_present_weights_from_the_beginning_of_a_sequence():
    """m_t = x_t + 0.5 m_(t-1), V = 3 m."""
    collector = collector_of("PlRlTest/Counter-v0", network=summing, truncate_at=3)
    collector.collect()
    rollout = collector.collect()
    assert rollout.values.flatten().tolist() == [2.5, 0, 1, 2.5, 0]
    with torch.no_grad():
        collector.network.critic[0].weight.fill_(3)
    after = collector.revalue(rollout)
    assert after.values.flatten().tolist() == [7.5, 0, 3, 7.5, 0]
    assert after.next_values.flatten().tolist() == [12.75, 3, 7.5, 12.75, 3]


@pytest.mark.parametrize(
    "network",
    [MLPActorCritic, MultiInputActorCritic, partial(RecurrentActorCritic, memory_size=8, sequence_length=8)],
    ids=["mlp", "multi_input", "recurrent"],
)
@pytest.mark.parametrize("normalized", [False, True])
def test_a_network_that_has_not_changed_gives_the_values_that_it_gave(network, normalized):
    collector = collector_of("CartPole-v1", 3, 32, network, "sync", max_episode_steps=7)
    if normalized:
        collector.normalizer = ObservationNormalizer(collector.env.single_observation_space)
    for _ in range(2):
        rollout = collector.collect()
        again = collector.revalue(rollout)
        assert rollout.truncated.any()
        torch.testing.assert_close(again.values, rollout.values, atol=1e-6, rtol=0)
        torch.testing.assert_close(again.next_values, rollout.next_values, atol=1e-6, rtol=0)


def advantages_by_hand(model, rollout, obs):
    """By the recursion from the last step to the first, of an environment that ends by itself."""
    values, last = (model.network.value(seen).detach() for seen in (rollout.obs.flatten(0, 1), torch.as_tensor(obs)))
    values = values.view_as(rollout.values)
    if model.value_normalizer is not None:
        values, last = model.value_normalizer.inverse(values), model.value_normalizer.inverse(last)
    advantages, following = [], torch.zeros_like(last)
    for t in reversed(range(len(values))):
        going_on = ~rollout.terminated[t]
        delta = rollout.rewards[t] + model.gamma * last * going_on - values[t]
        following = delta + model.gamma * model.gae_lambda * following * going_on
        advantages.insert(0, following)
        last = values[t]
    return values, torch.stack(advantages)


@pytest.mark.parametrize("settings", [{}, {"norm_value": True}, {"shards": 2}], ids=["plain", "normalized", "shards"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_each_pass_learns_from_the_advantages_of_its_own_beginning(settings, compiled, monkeypatch):
    model = small_ppo(compile_update=compiled, recompute_adv=True, update_epochs=3, **settings)
    rollouts, passes, collect, minibatches = [], [], model._collect, Experience.minibatches
    monkeypatch.setattr(model, "_collect", lambda: rollouts.append(collect()) or rollouts[-1])

    def noted(experience, *args):
        parts = getattr(model.collector, "_parts", [model.collector])
        obs = np.concatenate([part._obs for part in parts])
        returns = experience.advantages + experience.values
        predicted = returns if model.value_normalizer is None else model.value_normalizer(returns)
        torch.testing.assert_close(experience.samples.returns, predicted.flatten(), atol=1e-5, rtol=1e-5)
        passes.append((experience, *advantages_by_hand(model, rollouts[-1], obs)))
        return minibatches(experience, *args)

    monkeypatch.setattr(Experience, "minibatches", noted)
    fit(model, max_epochs=2)
    assert len(passes) == 2 * 3 and not any(rollout.truncated.any() for rollout in rollouts)
    for number, (experience, values, advantages) in enumerate(passes):
        first = passes[number - number % 3][0]
        assert number % 3 == 0 or not experience.advantages.equal(first.advantages)
        if number % 3 or model.value_normalizer is None:  # which learns from the first pass's own returns
            for ours, by_hand in [(experience.values, values), (experience.advantages, advantages)]:
                shards = torch.stack([part.flatten() for part in by_hand.chunk(model.shards, 1)])
                torch.testing.assert_close(ours, shards, atol=1e-4, rtol=1e-4)
        for name in ("obs", "actions", "log_probs"):
            assert getattr(experience.samples, name) is getattr(first.samples, name)


def test_a_single_pass_has_nothing_to_compute_anew():
    weights = [small_ppo(update_epochs=1, recompute_adv=on) for on in (False, True)]
    for model in weights:
        fit(model, max_epochs=2)
    assert same_bits(*(model.state_dict() for model in weights))
