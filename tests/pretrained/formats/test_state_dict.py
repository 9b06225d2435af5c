import gymnasium as gym
import pytest
import torch

from pl_rl.errors import UsageError
from pl_rl.networks.actor_critic import MLPActorCritic
from pl_rl.pretrained import read_weights
from tests.pretrained.support import network_of

OBS = gym.spaces.Box(-1, 1, (3,))
SPACES = [gym.spaces.Discrete(4), gym.spaces.Box(-1, 1, (2,))]


def saved(tensors, path):
    torch.save(tensors, path)
    return path


@pytest.mark.parametrize("action_space", SPACES)
@pytest.mark.parametrize("prefix", ["", "network."])
@pytest.mark.parametrize("encoder", [[], [9, 8]])
def test_a_networks_own_state_dict_is_read(action_space, prefix, encoder, tmp_path):
    network = MLPActorCritic(OBS, action_space, encoder_sizes=encoder, actor_sizes=[7], critic_sizes=[])
    tensors = {prefix + name: tensor for name, tensor in network.state_dict().items()}
    weights = read_weights(saved(tensors, tmp_path / "weights.pt"))
    assert weights.source == "state_dict of MLPActorCritic" and "activation" in weights.notes[0]
    assert weights.network == {
        "encoder_sizes": encoder,
        "actor_sizes": [7],
        "critic_sizes": [],
        "activation": None,
    }
    obs = torch.randn(5, 3)
    for mine, theirs in zip(network_of(weights, "tanh")(obs), network(obs), strict=True):
        assert mine.equal(theirs)


def test_torchs_older_format_is_read(tmp_path):
    tensors = MLPActorCritic(OBS, SPACES[0]).state_dict()
    torch.save(tensors, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert read_weights(tmp_path / "old.pt").tensors.keys() == tensors.keys()


def test_weights_of_another_precision_are_read_as_float32(tmp_path):
    tensors = MLPActorCritic(OBS, SPACES[1]).to(torch.bfloat16).state_dict()
    weights = read_weights(saved(tensors, tmp_path / "weights.pt"))
    assert {tensor.dtype for tensor in weights.tensors.values()} == {torch.float32}
    assert weights.tensors["actor.0.weight"].equal(tensors["actor.0.weight"].float())


def test_nothing_is_shared_with_what_torch_opened(tmp_path):
    tensors = MLPActorCritic(OBS, SPACES[0], actor_sizes=[3, 3]).state_dict()
    tensors["actor.2.weight"] = tensors["actor.0.weight"]
    weights = read_weights(saved(tensors, tmp_path / "weights.pt"))
    weights.tensors["actor.0.weight"].zero_()
    assert weights.tensors["actor.2.weight"].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra": torch.zeros(1)}, "no place for: 'extra'"),
        ({"actor.1.weight": torch.zeros(64)}, r"has layers \[0, 1, 2, 4\] in 'actor'"),
        ({"actor.0.bias": None}, r"lacks tensors: 'actor\.0\.bias'"),
        ({"actor.2.weight": torch.zeros(64, 63)}, r"63 inputs in actor\.2, to which 64 lead"),
        ({"actor.2.bias": torch.zeros(63)}, r"in actor\.2, which is no linear layer"),
        ({"actor.0.weight": torch.zeros(64, 3, 3, 3)}, r"in actor\.0, which is no linear layer"),
        ({"critic.0.weight": torch.zeros(64, 5)}, "a policy of 3 inputs and a value function of 5"),
        ({"critic.4.weight": torch.zeros(2, 64), "critic.4.bias": torch.zeros(2)}, "2 values for one observation"),
        ({"distribution.log_std": torch.zeros(32, 4)}, "128 standard deviations for 4 actions"),
        ({"actor.0.weight": torch.full((64, 3), torch.nan)}, "not a number in 'actor.0.weight'"),
        ({"actor.0.weight": torch.zeros(64, 3, dtype=torch.int64)}, "not one of plain numbers"),
        ({"actor.0.weight": torch.zeros(64, 3).to_sparse()}, "not one of plain numbers"),
        ({"actor.0.weight": torch.zeros(64, 3, device="meta")}, "a tensor without numbers"),
        ({"actor.0.weight": torch.zeros(1).expand(2**15, 2**15)}, "bytes claim to be more than"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(changes, message, tmp_path):
    tensors = MLPActorCritic(OBS, SPACES[0]).state_dict() | changes
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    with pytest.raises(UsageError, match=message):
        read_weights(saved(tensors, tmp_path / "weights.pt"))
