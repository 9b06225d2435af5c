"""Networks: sizes, initial weights, and that a forward pass is policy and value."""

import copy
import pickle
from typing import get_args

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import nn
from torch.nn.utils import parametrizations, prune

from pl_rl import ActorCritic, CNNActorCritic, MLPActorCritic, UsageError
from pl_rl.networks.layers import ACTIVATIONS, Activation

OBSERVATIONS = Box(-1.0, 1.0, (4,))
ACTIONS = Discrete(2)


def layers_of(module):
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


def assert_orthogonal(weight, gain):
    """Its rows or its columns, whichever are fewer, are orthogonal and of length ``gain``."""
    gram = weight @ weight.T if len(weight) <= weight.shape[1] else weight.T @ weight
    torch.testing.assert_close(gram, gain**2 * torch.eye(len(gram)), atol=1e-5, rtol=1e-5)


def test_the_seed_network_has_46211_parameters():
    network = MLPActorCritic(
        OBSERVATIONS, ACTIONS, encoder_sizes=[64, 64, 128], actor_sizes=[128], critic_sizes=[128], activation="relu"
    )
    encoder = (4 * 64 + 64) + (64 * 64 + 64) + (64 * 128 + 128)
    actor = (128 * 128 + 128) + (128 * 2 + 2)
    critic = (128 * 128 + 128) + (128 + 1)
    assert sum(parameter.numel() for parameter in network.parameters()) == encoder + actor + critic == 46_211


@pytest.mark.parametrize("distribution", ["gaussian", "gsde"])
def test_layers_begin_with_the_gains_that_are_given(distribution):
    network = MLPActorCritic(
        *(OBSERVATIONS, Box(-1.0, 1.0, (3,)), [8], [8], [8]),
        distribution=distribution, hidden_gain=0.5, policy_gain=2.0, value_gain=3.0,
    )  # fmt: skip
    of_policy, of_value = (layers_of(part)[-1] for part in (network.actor, network.critic))
    hidden = [layer for layer in layers_of(network) if layer not in (of_policy, of_value)]
    assert len(hidden) == 3
    for layer, gain in [*((layer, 0.5) for layer in hidden), (of_policy, 2.0), (of_value, 3.0)]:
        assert_orthogonal(layer.weight.detach(), gain)


def test_continuous_actions_add_one_deviation_for_each_dimension():
    network = MLPActorCritic(OBSERVATIONS, Box(-1.0, 1.0, (3,)), actor_sizes=[], critic_sizes=[], log_std_init=-0.5)
    assert sum(parameter.numel() for parameter in network.parameters()) == (4 * 3 + 3) + (4 + 1) + 3
    assert torch.equal(network.distribution.log_std, torch.full((3,), -0.5))


def test_weights_begin_orthogonal_and_biases_zero():
    network = MLPActorCritic(OBSERVATIONS, ACTIONS, encoder_sizes=[16], actor_sizes=[8], critic_sizes=[8])
    for layer in layers_of(network):
        assert torch.equal(layer.bias, torch.zeros_like(layer.bias))
    *hidden, policy_output = [*layers_of(network.encoder), *layers_of(network.actor)]
    *critic_hidden, value_output = layers_of(network.critic)
    assert_orthogonal(policy_output.weight, gain=0.01)
    assert_orthogonal(value_output.weight, gain=1.0)
    for layer in [*hidden, *critic_hidden]:
        assert_orthogonal(layer.weight, gain=2**0.5)


def test_an_untrained_policy_is_close_to_uniform():
    network = MLPActorCritic(OBSERVATIONS, ACTIONS)
    probabilities = network.policy(torch.randn(100, 4)).softmax(-1)
    torch.testing.assert_close(probabilities, torch.full((100, 2), 0.5), atol=0.02, rtol=0)


@pytest.mark.parametrize("encoder_sizes", [[], [16, 8]])
def test_forward_is_policy_and_value(encoder_sizes):
    network = MLPActorCritic(OBSERVATIONS, ACTIONS, encoder_sizes=encoder_sizes)
    obs = torch.randn(5, 4)
    outputs, values = network(obs)
    assert torch.equal(outputs, network.policy(obs))
    assert torch.equal(values, network.value(obs))
    assert (outputs.shape, values.shape) == ((5, 2), (5,))


def test_without_an_encoder_policy_and_value_share_nothing():
    network = MLPActorCritic(OBSERVATIONS, ACTIONS)
    network.value(torch.randn(5, 4)).sum().backward()
    assert all(parameter.grad is None for parameter in network.actor.parameters())


@pytest.mark.parametrize("activation", get_args(Activation))
def test_each_activation_can_be_named(activation):
    assert ACTIVATIONS.keys() == set(get_args(Activation))
    assert MLPActorCritic(OBSERVATIONS, ACTIONS, activation=activation).value(torch.randn(3, 4)).shape == (3,)


def test_a_network_of_the_users_own_needs_a_policy_and_a_value():
    class Bias(ActorCritic):
        def __init__(self, observation_space, action_space):
            super().__init__(observation_space, action_space)
            self.bias = nn.Parameter(torch.arange(2.0))

        def policy(self, obs):
            return self.bias.expand(len(obs), 2)

        def value(self, obs):
            return obs.sum(-1)

    outputs, values = Bias(OBSERVATIONS, ACTIONS)(torch.ones(3, 4))
    assert outputs.tolist() == [[0.0, 1.0]] * 3
    assert values.tolist() == [4.0] * 3


@pytest.mark.parametrize(
    "space",
    [Box(0, 255, (84, 84, 3), np.uint8), Box(0, 5, (2, 2))],
    ids=["image", "matrix"],
)
def test_observations_that_are_no_vectors_are_refused_with_two_ways_out(space):
    with pytest.raises(UsageError, match=r"needs vector observations.*FlattenObservation.*--model.network.class_path"):
        MLPActorCritic(space, ACTIONS)


@pytest.mark.parametrize("name", ["encoder_sizes", "actor_sizes", "critic_sizes"])
def test_a_layer_without_units_is_refused(name):
    with pytest.raises(UsageError, match=rf"{name}=\[64, 0\] has a layer without units"):
        MLPActorCritic(OBSERVATIONS, ACTIONS, **{name: [64, 0]})


def test_a_copy_of_a_network_has_weights_of_its_own():
    network = MLPActorCritic(OBSERVATIONS, ACTIONS, encoder_sizes=[8])
    copied = copy.deepcopy(network)
    pickled = pickle.loads(pickle.dumps(network))
    obs = torch.ones(2, 4)
    before = network.policy(obs)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert torch.equal(copied.policy(obs), before) and torch.equal(pickled.policy(obs), before)
    assert not network.policy(obs).any()
    assert copied.double().policy(obs.double()).dtype == torch.float64


def test_dictionaries_are_refused_with_the_network_that_takes_them():
    with pytest.raises(UsageError, match=r"needs vector observations .* not Dict.*MultiInputActorCritic"):
        MLPActorCritic(gym.spaces.Dict({"a": Box(-1.0, 1.0, (2,))}), Discrete(2))


def test_observations_that_are_no_arrays_are_refused_with_the_wrappers_that_help():
    with pytest.raises(UsageError, match=r"must be arrays of one shape, not Text.*FlattenObservation"):
        MLPActorCritic(gym.spaces.Text(5), Discrete(2))


@pytest.mark.parametrize("shape", [(4, 84, 84), (84, 84, 4)], ids=["channels first", "channels last"])
def test_images_are_scaled_and_read_in_either_order(shape):
    network = CNNActorCritic(Box(0, 255, shape, np.uint8), Discrete(6))
    first = torch.randint(0, 256, (5, 4, 84, 84), dtype=torch.uint8)
    obs = first if shape[0] == 4 else first.permute(0, 2, 3, 1)
    # The published architecture, layer by layer.
    c1, c2, c3 = (layer for layer in network.convolutions if isinstance(layer, torch.nn.Conv2d))
    hidden = first.float() / 255
    for layer, stride in ((c1, 4), (c2, 2), (c3, 1)):
        hidden = torch.nn.functional.conv2d(hidden, layer.weight, layer.bias, stride=stride).relu()
    assert hidden.shape == (5, 64, 7, 7)
    features = network.hidden(hidden.flatten(1)).relu()
    outputs, values = network(obs)
    torch.testing.assert_close(outputs, network.actor(features))
    torch.testing.assert_close(values, network.critic(features).squeeze(-1))
    assert torch.equal(network.policy(obs), outputs) and torch.equal(network.value(obs), values)
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_687_719


def test_convolutions_are_orthogonal():
    network = CNNActorCritic(Box(0, 255, (4, 84, 84), np.uint8), Discrete(6))
    for layer in network.convolutions[:5:2]:
        weight = layer.weight.detach().flatten(1)
        torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(len(weight)), atol=1e-4, rtol=0)
        assert not layer.bias.any()


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        (Box(0, 255, (7, 7, 3), np.uint8), "needs images of 36x36 pixels or more, not 7x7; enlarge them with .*Resize"),
        (Box(0, 255, (84, 84), np.uint8), "needs images, a Box of uint8 with three dimensions, not Box.*FrameStack"),
        (Box(0, 1, (84, 84, 3)), "needs images, a Box of uint8"),
        (Box(-1, 1, (4,)), "needs images.*MLPActorCritic for vectors"),
    ],
    ids=["small", "two dimensions", "floats", "vector"],
)
def test_observations_that_are_no_images_are_refused(space, sentence):
    with pytest.raises(UsageError, match=sentence):
        CNNActorCritic(space, Discrete(2))


def test_the_smallest_images_have_one_pixel_left():
    network = CNNActorCritic(Box(0, 255, (1, 36, 50), np.uint8), Discrete(2))
    assert network.value(torch.zeros(2, 1, 36, 50, dtype=torch.uint8)).shape == (2,)


class LowRank(nn.Module):
    """A layer that stays, and what is learnt beside it."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Linear(layer.in_features, 2, bias=False)
        self.up = nn.Linear(2, layer.out_features, bias=False)

    def forward(self, inputs):
        return self.layer(inputs) + self.up(self.down(inputs))


def replace(layers):
    layers[2] = nn.Linear(64, 64)


def wrap(layers):
    layers[0] = LowRank(layers[0])


CHANGES = {
    "replaced": replace,
    "wrapped": wrap,
    "inserted": lambda layers: layers.insert(1, nn.LayerNorm(64)),
    "pruned": lambda layers: prune.l1_unstructured(layers[0], "weight", 0.5),
    "spectral norm": lambda layers: parametrizations.spectral_norm(layers[2]),
    "weight norm": lambda layers: parametrizations.weight_norm(layers[2]),
    "without bias": lambda layers: setattr(layers[2], "bias", None) or nn.init.ones_(layers[2].weight),
}


@pytest.mark.parametrize("part", ["actor", "critic", "encoder"])
@pytest.mark.parametrize("kind", CHANGES)
def test_layers_of_an_mlp_can_be_changed_like_those_of_any_sequence(part, kind):
    network = MLPActorCritic(OBSERVATIONS, ACTIONS, encoder_sizes=[64, 64])
    layers, obs = getattr(network, part), torch.randn(8, 4)
    before = torch.cat([tensor.flatten() for tensor in network(obs)])
    torch.manual_seed(0)
    CHANGES[kind](layers)
    outputs, values = network(obs)
    assert not torch.equal(torch.cat([outputs.flatten(), values]), before)
    features = network.encoder(obs)
    assert torch.equal(outputs, network.actor(features)) or kind == "spectral norm"  # which iterates at each call
    (outputs.sum() + values.sum()).backward()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None for parameter in trained)


@pytest.mark.parametrize(
    ("network", "layer"),
    [
        (MLPActorCritic(OBSERVATIONS, ACTIONS, encoder_sizes=[8]), "actor.0"),
        (CNNActorCritic(Box(0, 255, (1, 36, 36), np.uint8), ACTIONS), "hidden"),
    ],
    ids=["mlp", "cnn"],
)
def test_hooks_on_single_layers_run(network, layer):
    calls = []
    network.get_submodule(layer).register_forward_hook(lambda module, inputs, output: calls.append(output.shape))
    network(torch.zeros(2, *network.observation_space.shape))
    assert len(calls) == 1


def test_the_hidden_layer_of_a_cnn_can_be_replaced():
    network = CNNActorCritic(Box(0, 255, (1, 36, 36), np.uint8), ACTIONS)
    network.hidden = nn.Sequential(nn.LayerNorm(64), network.hidden)
    assert network.value(torch.zeros(2, 1, 36, 36, dtype=torch.uint8)).shape == (2,)
