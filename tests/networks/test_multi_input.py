"""Networks over dictionaries: encoders, masks, what only the critic sees."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from torch.distributions import Categorical

from pl_rl import MLPActorCritic, MultiInputActorCritic, UsageError
from pl_rl.networks.records import MASK, ActionMask, example

SPACE = Dict(
    {
        "camera": Box(0, 255, (3, 40, 40), np.uint8),
        "grid": Box(0, 255, (7, 7, 3), np.uint8),
        "robot/joints": Box(-1.0, 1.0, (2, 2), np.float32),
        "robot/mode": Discrete(3, start=1),
        "flags": MultiBinary(2),
        "choices": MultiDiscrete([2, 3]),
    }
)
ACTIONS = Discrete(4)


def batch(space, size=5, seed=0):
    """Random observations ``[size, ...]``."""
    space.seed(seed)
    samples = [space.sample() for _ in range(size)]
    return {name: torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in space.spaces}


def test_each_entry_is_seen():
    network, obs = MultiInputActorCritic(SPACE, ACTIONS), batch(SPACE)
    outputs, values = network(obs)
    assert (outputs.shape, values.shape) == ((5, 4), (5,))
    assert torch.equal(outputs, network.policy(obs)) and torch.equal(values, network.value(obs))
    for name, entry in batch(SPACE, seed=1).items():
        other_outputs, other_values = network({**obs, name: entry})
        assert not torch.equal(other_outputs, outputs) and not torch.equal(other_values, values), name


def test_choices_are_one_hot():
    network = MultiInputActorCritic(Dict({"a": Discrete(3, start=1), "b": MultiDiscrete([2, 3])}), ACTIONS)
    obs = {"a": torch.tensor([1, 3]), "b": torch.tensor([[1, 0], [0, 2]])}
    expected = torch.tensor([[1.0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 0, 0, 0, 1]])
    assert torch.equal(network._encode(obs), expected)


def test_a_vector_alone_is_seen_as_by_an_mlp():
    space = Box(-1.0, 1.0, (3,), np.float32)
    torch.manual_seed(0)
    mlp = MLPActorCritic(space, ACTIONS)
    torch.manual_seed(0)
    network, obs = MultiInputActorCritic(space, ACTIONS), torch.randn(5, 3)
    assert all(map(torch.equal, network(obs), mlp(obs)))
    assert torch.equal(network({"obs": obs})[0], mlp(obs)[0])


def test_sizes_go_by_the_first_pattern_that_matches():
    sizes = {"robot/*": [5, 4], "*": [6]}
    network = MultiInputActorCritic(SPACE, ACTIONS, encoder_sizes=sizes)
    widths = {name: network.encoders[number].features for name, number in network._numbers.items()}
    assert widths == {name: 4 if name.startswith("robot/") else 6 for name in SPACE.spaces}


def test_pictures_are_vectors_unless_they_are_named():
    network = MultiInputActorCritic(Dict({"grid": SPACE["grid"]}), ACTIONS, cnn_keys=[])
    assert network.encoders[0].features == 147 and not list(network.encoders[0].parameters())


def test_what_only_the_critic_sees_does_not_reach_the_policy():
    network = MultiInputActorCritic(SPACE, ACTIONS, critic_keys=["robot/*", "flags"])
    obs = batch(SPACE)
    assert sorted(network.policy_entries) == ["camera", "choices", "grid"]
    other = {**obs, **{name: batch(SPACE, seed=1)[name] for name in ("robot/joints", "robot/mode", "flags")}}
    assert torch.equal(network(other)[0], network(obs)[0]) and not torch.equal(network(other)[1], network(obs)[1])
    assert torch.equal(network.policy({name: obs[name] for name in network.policy_entries}), network(obs)[0])


@pytest.mark.parametrize(("actions", "parts"), [(Discrete(4), [4]), (MultiDiscrete([2, 3]), [2, 3])])
def test_a_masked_choice_is_never_made_and_has_no_share(actions, parts):
    space = Dict({"x": Box(-1.0, 1.0, (3,), np.float32), MASK: ActionMask(sum(parts))})
    network = MultiInputActorCritic(space, actions)
    mask = torch.tensor([[0, 1, 1, 0, 1][: sum(parts)]], dtype=torch.int8).expand(1000, -1)
    obs = {"x": torch.randn(1000, 3), MASK: mask}
    outputs, distribution = network(obs)[0], network.distribution
    sampled = distribution.sample(outputs, distribution.noise((1000,), torch.Generator().manual_seed(0)))
    plain = network({**obs, MASK: torch.ones_like(mask)})[0]
    entropy = log_prob = 0.0
    for part, logits, chosen in zip(
        mask.split(parts, -1), plain.split(parts, -1), sampled.view(1000, -1).unbind(-1), strict=True
    ):
        assert part.gather(-1, chosen.unsqueeze(-1)).all()
        reference = Categorical(logits=logits[:, part[0].bool()])
        among = part[0].bool().cumsum(0)[chosen] - 1
        entropy, log_prob = entropy + reference.entropy(), log_prob + reference.log_prob(among)
    torch.testing.assert_close(distribution.entropy(outputs), entropy)
    torch.testing.assert_close(distribution.log_prob(outputs, sampled), log_prob)
    (distribution.entropy(outputs).sum() + distribution.log_prob(outputs, sampled).sum()).backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"critic_keys": ["*"]}, "leaves nothing that the policy sees"),
        ({"critic_keys": ["robots"]}, "critic_keys: 'robots' matches no entry of the observations; they are camera"),
        ({"encoder_sizes": {"x": [3]}}, "encoder_sizes: 'x' matches no entry"),
        ({"encoder_sizes": {"flags": [3, 0]}}, "encoder_sizes of 'flags' has a layer without units"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(UsageError, match=words):
        MultiInputActorCritic(SPACE, ACTIONS, **settings)


def test_pictures_too_small_for_convolutions_are_refused():
    with pytest.raises(UsageError, match="too small for convolutions; leave it out of cnn_keys"):
        MultiInputActorCritic(Dict({"a": Box(0, 255, (3, 3, 3), np.uint8)}), ACTIONS)


def test_other_networks_name_this_one():
    with pytest.raises(UsageError, match=r"pl_rl\.networks\.MultiInputActorCritic"):
        MLPActorCritic(SPACE, ACTIONS)


def test_an_example_is_in_its_space():
    assert all(SPACE.contains({name: entry[i].numpy() for name, entry in example(SPACE, 2).items()}) for i in range(2))
