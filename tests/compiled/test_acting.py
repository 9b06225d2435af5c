"""CompiledActionSelector: one compiled function decides what the modules of the network do."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from pl_rl import MLPActorCritic, MultiInputActorCritic, RecurrentActorCritic
from pl_rl.algorithm.acting import EagerActionSelector
from pl_rl.compiled import acting as compiled_acting
from pl_rl.compiled.acting import CompiledActionSelector, number_of_parts
from pl_rl.compiled.flops import count_flops
from pl_rl.errors import CompilationError
from pl_rl.networks.actor_critic import CNNActorCritic
from pl_rl.networks.records import Remembered, rows
from tests.support import fit, small_ppo

OBS = gym.spaces.Box(-1, 1, (3,))
SPACES = [gym.spaces.Discrete(4, start=2), gym.spaces.MultiDiscrete([2, 5]), gym.spaces.Box(-1, 1, (2,))]


def make_acting(space, num_envs=5):
    torch.manual_seed(0)
    network = MLPActorCritic(OBS, space, encoder_sizes=(8,), log_std_init=-1.0)
    compiled = CompiledActionSelector(network, torch.zeros(num_envs, 3))
    compiled.load()
    return network, EagerActionSelector(network), compiled


def rollout(acting, obs, noise):
    """What is decided on observations that come one after another."""
    given = torch.full_like(obs, torch.nan)
    acting.begin(given, noise)
    actions = []
    for t in range(len(obs)):
        given[t] = obs[t]
        actions.append(acting.act(t).copy())
    decided = acting.decisions()
    assert np.array_equal(np.stack(actions), decided[2].detach().numpy())
    return decided


@pytest.mark.parametrize("space", SPACES, ids=["discrete", "multi-discrete", "continuous"])
def test_a_compiled_function_decides_what_the_network_does(space):
    network, eager, compiled = make_acting(space)
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        obs, noise = torch.randn(4, 5, 3, generator=generator), network.distribution.noise((4, 5), generator)
        for ours, expected in zip(rollout(compiled, obs, noise), rollout(eager, obs, noise), strict=True):
            torch.testing.assert_close(ours, expected)
        with torch.no_grad():  # takes effect in the next rollout
            for parameter in network.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize(("num_envs", "size"), [(5, 8), (8, 40), (20, 100)])
def test_reading_weights_by_columns_changes_no_bit(num_envs, size, monkeypatch):
    torch.manual_seed(0)
    network = MLPActorCritic(OBS, SPACES[0], encoder_sizes=(size, size), actor_sizes=(size,))
    generator = torch.Generator().manual_seed(1)
    obs, noise = torch.randn(4, num_envs, 3, generator=generator), network.distribution.noise((4, num_envs), generator)
    decided = []
    for layers in (compiled_acting.LAYERS, ()):
        monkeypatch.setattr(compiled_acting, "LAYERS", layers)
        compiled = CompiledActionSelector(network, obs[0])
        compiled.load()
        assert bool(compiled._weights) == bool(layers)
        decided.append([tensor.clone() for tensor in rollout(compiled, obs, noise)])
    assert all(map(torch.equal, *decided))


class ViewsWeight(MLPActorCritic):
    """Adds a number that only a contiguous weight can be viewed for."""

    def forward(self, obs):
        outputs, values = super().forward(obs)
        return outputs, values + self.encoder[0].weight.view(-1).sum()


def test_a_weight_that_is_viewed_is_read_as_it_lies():
    torch.manual_seed(0)
    network = ViewsWeight(OBS, SPACES[0], encoder_sizes=(8,))
    obs, noise = torch.randn(4, 5, 3), network.distribution.noise((4, 5), torch.Generator())
    compiled = CompiledActionSelector(network, obs[0])
    compiled.load()
    assert not compiled._weights
    for ours, expected in zip(
        rollout(compiled, obs, noise), rollout(EagerActionSelector(network), obs, noise), strict=True
    ):
        torch.testing.assert_close(ours, expected)


class ModeDependent(MLPActorCritic):
    """Says twice as much where it is in training mode, and has dropout there."""

    def forward(self, obs):
        outputs, values = super().forward(obs)
        return nn.functional.dropout(outputs, training=self.training) * (2 if self.training else 1), values


def test_a_compiled_function_decides_what_the_network_does_in_evaluation_mode():
    network = ModeDependent(OBS, SPACES[0], encoder_sizes=(8,))
    compiled = CompiledActionSelector(network, torch.zeros(5, 3))
    compiled.load()
    assert network.training
    obs, noise = torch.randn(4, 5, 3), network.distribution.noise((4, 5), torch.Generator())
    network.eval()
    for ours, expected in zip(
        rollout(compiled, obs, noise), rollout(EagerActionSelector(network), obs, noise), strict=True
    ):
        torch.testing.assert_close(ours, expected)


def test_a_rollout_is_not_overwritten_by_the_next():
    network, _, compiled = make_acting(SPACES[0])
    obs, noise = torch.randn(4, 5, 3), network.distribution.noise((4, 5), torch.Generator())
    first = rollout(compiled, obs, noise)
    before = [tensor.clone() for tensor in first]
    rollout(compiled, -obs, noise)
    assert all(torch.equal(tensor, kept) for tensor, kept in zip(first, before, strict=True))


def test_parameters_that_were_moved_are_found():
    network, eager, compiled = make_acting(SPACES[2])
    for parameter in network.parameters():
        parameter.data = parameter.data + 0.5
    obs, noise = torch.randn(2, 5, 3), network.distribution.noise((2, 5), torch.Generator())
    for ours, expected in zip(rollout(compiled, obs, noise), rollout(eager, obs, noise), strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(
    ("env", "distribution"), [("CartPole-v1", "gaussian"), ("Pendulum-v1", "gaussian"), ("Pendulum-v1", "gsde")]
)
def test_a_compiled_run_acts_by_a_compiled_function(env, distribution):
    model = small_ppo(env=env, network=partial(MLPActorCritic, distribution=distribution), compile_update=True)
    acting = []
    model.on_train_epoch_end = lambda: acting.append(type(model.collector.acting))
    fit(model, max_epochs=2)
    assert acting == [CompiledActionSelector] * 2


@pytest.mark.parametrize("num_envs", [1, 8])
@pytest.mark.parametrize("shape", [(4, 84, 84), (40, 36, 3)], ids=["channels first", "channels last"])
def test_images_are_decided_on_alike(num_envs, shape):
    network = CNNActorCritic(gym.spaces.Box(0, 255, shape, "uint8"), gym.spaces.Discrete(6))
    generator = torch.Generator().manual_seed(1)
    obs = torch.randint(0, 256, (3, num_envs, *shape), generator=generator, dtype=torch.uint8)
    noise = network.distribution.noise((3, num_envs), generator)
    compiled = CompiledActionSelector(network, obs[0])
    compiled.load()
    for acting in (decided := [compiled, EagerActionSelector(network)]):
        acting.begin(obs, noise)
        for t in range(3):
            acting.act(t)
    for ours, expected in zip(*(acting.decisions() for acting in decided), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


class Pooled(CNNActorCritic):
    """Uses an operation that there is no source for."""

    def _features(self, obs):
        pooled = nn.functional.max_pool2d(obs.float(), 2)
        return super()._features(pooled.repeat_interleave(2, -1).repeat_interleave(2, -2))


def test_what_cannot_be_compiled_is_left_to_single_operations():
    images = gym.spaces.Box(0, 255, (2, 36, 36), "uint8")
    with pytest.raises(CompilationError, match="max_pool2d"):
        CompiledActionSelector(Pooled(images, gym.spaces.Discrete(4)), torch.zeros(2, 2, 36, 36, dtype=torch.uint8))


def act_in_parts(network, obs, noise, threads, monkeypatch):
    """Decisions with so many threads, and the number of parts."""
    monkeypatch.setattr(compiled_acting, "cores", lambda: threads)
    compiled = CompiledActionSelector(network, rows(obs, 0), flops=2**40)
    compiled.load()
    compiled.begin(obs, noise)
    actions = np.stack([compiled.act(t).copy() for t in range(len(noise))])
    decided = compiled.decisions()
    assert np.array_equal(actions, decided[2].numpy())
    compiled.close()
    return decided, compiled._parts


@pytest.mark.parametrize(
    ("num_envs", "size", "threads", "parts"),
    [
        (6, 600, 2, 2),
        (8, 600, 3, 2),
        (8, 40, 8, 4),
        (2, 40, 2, 1),
        (12, 40, 5, 1),
        (16, 600, 4, 1),
        (24, 600, 2, 2),
        (7, 40, 4, 1),
    ],
)
def test_several_threads_act_for_parts_of_the_environments(num_envs, size, threads, parts, monkeypatch):
    """With the bits of one; a part has few rows, whose products are computed otherwise, only if the whole has."""
    torch.manual_seed(0)
    network = MLPActorCritic(OBS, SPACES[2], encoder_sizes=(size, size), log_std_init=-1.0)
    obs, noise = torch.randn(3, num_envs, 3), network.distribution.noise((3, num_envs), torch.Generator())
    alone, one = act_in_parts(network, obs, noise, 1, monkeypatch)
    together, several = act_in_parts(network, obs, noise, threads, monkeypatch)
    assert (one, several) == (1, parts)
    assert all(map(torch.equal, alone, together))


def test_several_threads_act_on_dictionaries_of_images(monkeypatch):
    torch.manual_seed(0)
    spaces = {"image": gym.spaces.Box(0, 255, (36, 36, 3), "uint8"), "speed": gym.spaces.Box(-1, 1, (2,))}
    network = MultiInputActorCritic(gym.spaces.Dict(spaces), gym.spaces.Discrete(3))
    obs = {"speed": torch.randn(3, 4, 2), "image": torch.randint(0, 256, (3, 4, 36, 36, 3), dtype=torch.uint8)}
    noise = network.distribution.noise((3, 4), torch.Generator())
    alone, _ = act_in_parts(network, obs, noise, 1, monkeypatch)
    together, parts = act_in_parts(network, obs, noise, 4, monkeypatch)
    assert parts == 2
    assert all(map(torch.equal, alone, together))


def test_one_thread_acts_where_that_is_little_work():
    images, few = gym.spaces.Box(0, 255, (4, 84, 84), "uint8"), gym.spaces.Discrete(6)
    of_atari = count_flops(CNNActorCritic(images, few), torch.zeros(1, 4, 84, 84, dtype=torch.uint8))
    of_few = count_flops(MLPActorCritic(OBS, few), torch.zeros(1, 3))
    assert number_of_parts(8, 8 * of_atari, 2) == 2
    assert number_of_parts(1, of_atari, 2) == 1
    assert number_of_parts(64, 64 * of_few, 2) == 1


def test_one_thread_acts_for_a_memory(monkeypatch):
    monkeypatch.setattr(compiled_acting, "cores", lambda: 2)
    network = RecurrentActorCritic(OBS, gym.spaces.Discrete(6), memory_size=8)
    seen = Remembered(torch.zeros(8, 3), network.first_memory(8))
    compiled = CompiledActionSelector(network, seen, flops=2**40)
    compiled.load()
    assert compiled._parts == 1


def test_a_run_acts_on_several_threads_by_its_networks_work(monkeypatch):
    monkeypatch.setattr(compiled_acting, "cores", lambda: 2)
    seen = []
    for flops_of_a_part in (1, 2**60):
        monkeypatch.setattr(compiled_acting, "PART_FLOPS", flops_of_a_part)
        model = small_ppo(compile_update=True)
        model.on_train_epoch_end = lambda model=model: seen.append(model.collector.acting._parts)
        fit(model, max_epochs=1)
    assert seen == [2, 1]
