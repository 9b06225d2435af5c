"""What shards compute and exchange is the same for any number of processes, to the bit."""

import gymnasium as gym
import numpy as np
import pytest
import torch

import tests.uncertain_environments  # noqa: F401  (registers environments)
from pl_rl import EnvConfig, MLPActorCritic
from pl_rl.algorithm.loss import Minibatch
from pl_rl.distributed.collector import make_collector
from pl_rl.distributed.experience import Experience, pooling_pays
from pl_rl.distributed.shards import Shards, checksum
from pl_rl.networks.normalization import ObservationNormalizer, RewardScaler, RunningStatistics, merged_moments
from tests.distributed.support import in_processes

ROWS = torch.randn(8, 1000, generator=torch.Generator().manual_seed(0))


def tree(rows):
    """The sum as a tree, written as one."""
    return rows[0] if len(rows) == 1 else tree(rows[: len(rows) // 2]) + tree(rows[len(rows) // 2 :])


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4, 8])
def test_a_sum_has_the_same_bits_for_any_number_of_processes(world):
    def total(rank):
        shards = Shards(8, rank, world)
        own = ROWS[shards.local.start : shards.local.stop]
        return [shards.sum(own.clone()).tolist(), shards.sum(ROWS.clone()).tolist()]

    expected = tree(ROWS).tolist()
    assert Shards(8).sum(ROWS.clone()).tolist() == expected != ROWS.sum(0).tolist()
    assert in_processes(world, total) == [[expected, expected]] * world


def test_what_shards_have_is_gathered_by_their_numbers():
    fields = [torch.arange(4), torch.randn(4, 3), torch.rand(4, 2, 2) > 0.5, torch.randn(4, 1).double()]

    def gather(rank):
        shards = Shards(4, rank, 2)
        own = [field[shards.local.start : shards.local.stop] for field in fields]
        gathered = shards.gather(own, lambda: torch.tensor(7))
        assert all(one.dtype == other.dtype and one.equal(other) for one, other in zip(gathered, fields, strict=True))
        return shards.gather_plain({"rank": rank, "text": "x" * rank * 1000})

    for told in in_processes(2, gather):
        assert told == [{"rank": 0, "text": ""}, {"rank": 1, "text": "x" * 1000}]


def test_processes_whose_weights_differ_are_stopped():
    def gather(rank):
        weights = torch.zeros(5)
        weights[3] = 1e-30 * rank
        return Shards(2, rank, 2).gather([torch.zeros(1)], lambda: checksum([weights]))

    for said in in_processes(2, gather):
        assert said.startswith("RunFailure: weights differ between processes: [0, ")
    weights = torch.tensor([1.0, 2.0, 3.0])
    assert checksum([weights]) != checksum([weights.flip(0)])


def test_statistics_that_went_on_in_several_places_are_those_of_all_samples():
    generator = np.random.default_rng(0)
    space = gym.spaces.Box(-np.inf, np.inf, (3,))
    whole, common = ObservationNormalizer(space), ObservationNormalizer(space)
    for _ in range(3):
        parts = [ObservationNormalizer(space) for _ in range(4)]
        for part in parts:
            part.load_state_dict(common.state_dict())
            for _ in range(5):
                obs = generator.normal(100, 2, (2, 3))
                part.update(obs)
                whole.update(obs)
        after = torch.stack([part.moments() for part in parts])
        common.load_moments(merged_moments(common.moments(), after))
        torch.testing.assert_close(common.moments(), whole.moments(), rtol=1e-11, atol=0)
    assert merged_moments(common.moments(), common.moments().expand(4, -1)).equal(common.moments())


def test_moments_go_there_and_back():
    one, other = RunningStatistics((2, 3)), RunningStatistics((2, 3))
    one.mean.uniform_(), one.var.uniform_(), one.count.fill_(5)
    other.load_moments(one.moments())
    assert all(tensor.equal(other.state_dict()[name]) for name, tensor in one.state_dict().items())


ENVS = [EnvConfig("CartPole-v1"), EnvConfig("Pendulum-v1"), EnvConfig("PlRlTest/NoisyWalk-v0")]


@pytest.mark.slow
@pytest.mark.parametrize("env", ENVS, ids=lambda env: env.id)
def test_what_a_shard_collects_depends_on_no_other(env):
    single = gym.make(env.id)
    torch.manual_seed(0)
    network = MLPActorCritic(single.observation_space, single.action_space)

    def rollouts(shards):
        statistics = ObservationNormalizer(single.observation_space), RewardScaler(0.9)
        collector = make_collector(shards, env, 8, network, 40, *statistics)
        collector.reseed(5)
        collector.reset(7)
        return [collector.collect() for _ in range(3)], collector.shared()

    whole, shared = rollouts(Shards(4))
    for world in (2, 4):
        parts = [rollouts(Shards(4, rank, world)) for rank in range(world)]
        for number, rollout in enumerate(whole):
            joined = type(rollout).join([of_rank[number] for of_rank, _ in parts])
            assert all(one.equal(other) for one, other in zip(joined, rollout, strict=True))
        for number, field in enumerate(shared):
            assert torch.cat([of_rank[number] for _, of_rank in parts]).equal(field)


@pytest.mark.slow
def test_environments_have_the_seeds_that_they_have_without_shards():
    env = EnvConfig("Pendulum-v1")
    single = gym.make(env.id)
    network = MLPActorCritic(single.observation_space, single.action_space)
    collectors = [make_collector(Shards(count), env, 4, network, 1, None, None) for count in (1, 4)]
    for collector in collectors:
        collector.reseed(0)
        collector.reset(3)
    one, sharded = (collector.collect().obs for collector in collectors)
    assert one.equal(sharded)


def test_a_minibatch_is_the_same_samples_whoever_has_them():
    samples = torch.arange(4 * 6).view(4, 6).float()

    def minibatches(rows):
        fields = [samples[rows.start : rows.stop].flatten() for _ in Minibatch._fields]
        generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
        return list(Experience(Minibatch(*fields), rows, samples, samples, generators).minibatches(8, True))

    whole, halves = minibatches(range(4)), [minibatches(range(2)), minibatches(range(2, 4))]
    assert len(whole) == 3 and torch.cat([each.obs for each in whole]).sort().values.equal(samples.flatten())
    for number, minibatch in enumerate(whole):
        assert abs(minibatch.advantages.mean()) < 1e-6, "normalized over the whole minibatch"
        for field in Minibatch._fields:
            parts = [getattr(half[number], field) for half in halves]
            assert torch.cat(parts).equal(getattr(minibatch, field)), field


def test_small_networks_exchange_rollouts_and_large_ones_gradients():
    def pays(gigaflops, parameters, world=2):
        return pooling_pays(int(gigaflops * 1e9), [torch.empty(parameters, device="meta")], world)

    assert pays(0.02, 46_000) and pays(0.06, 46_000, 4), "MLPs on 64 to 256 samples"
    assert not pays(7.5, 1_690_000) and not pays(7.5, 1_690_000, 4), "the network of Atari on 256"
