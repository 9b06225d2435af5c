import re
import struct
import sys

import gymnasium as gym
import pytest

from pl_rl.errors import UsageError, installation
from pl_rl.networks.actor_critic import MLPActorCritic
from pl_rl.pretrained import read_weights
from pl_rl.pretrained.safetensors import dump, load
from tests.pretrained.support import network_of

EMPTY = struct.pack("<Q", 2) + b"{}"


def test_a_networks_state_dict_is_read(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    network = MLPActorCritic(gym.spaces.Box(-1, 1, (3,)), gym.spaces.Box(-1, 1, (2,)), encoder_sizes=[5])
    save_file(network.state_dict(), tmp_path / "weights")
    weights = read_weights(tmp_path / "weights")
    assert weights.source == "state_dict of MLPActorCritic" and weights.network["encoder_sizes"] == [5]
    assert list(weights.tensors) == sorted(network.state_dict())
    for name, tensor in network_of(weights, "tanh").state_dict().items():
        assert tensor.equal(network.state_dict()[name])


def test_without_the_library_its_installation_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    (tmp_path / "weights.safetensors").write_bytes(EMPTY)
    with pytest.raises(UsageError, match=re.escape(installation("safetensors"))):
        read_weights(tmp_path / "weights.safetensors")


def test_a_damaged_file_is_refused(tmp_path):
    pytest.importorskip("safetensors")
    (tmp_path / "weights.safetensors").write_bytes(struct.pack("<Q", 8) + b"{broken}")
    with pytest.raises(UsageError, match="damaged safetensors file"):
        read_weights(tmp_path / "weights.safetensors")


def test_a_file_without_tensors_is_refused(tmp_path):
    pytest.importorskip("safetensors")
    (tmp_path / "weights.safetensors").write_bytes(EMPTY)
    with pytest.raises(UsageError, match="entries that belong to no known policy"):
        read_weights(tmp_path / "weights.safetensors")


@pytest.mark.parametrize(
    ("network", "activation"),
    [
        ('{"init_args": {"activation": "relu"}}', "relu"),
        ('{"init_args": {}}', "tanh"),
        ('{"init_args": null}', None),
        ('{"init_args": {"activation": "mish"}}', None),
        ('{"init_args": {"activation": []}}', None),
        ("[]", None),
        ("{", None),
        ("[" * 100_000, None),
    ],
)
def test_the_activation_is_read_where_the_file_says_it(network, activation, tmp_path):
    pytest.importorskip("safetensors")
    policy = MLPActorCritic(gym.spaces.Box(-1, 1, (3,)), gym.spaces.Discrete(2), activation="relu")
    (tmp_path / "weights").write_bytes(dump(policy.state_dict(), {"network": network}))
    weights = read_weights(tmp_path / "weights")
    assert weights.network["activation"] == activation
    assert weights.tensors["actor.0.bias"].equal(policy.actor[0].bias) and len(weights.notes) == (activation is None)


def test_a_file_is_the_same_each_time():
    pytest.importorskip("safetensors")
    tensors = MLPActorCritic(gym.spaces.Box(-1, 1, (3,)), gym.spaces.Discrete(2)).state_dict()
    files = {dump(tensors, dict.fromkeys("abcdefgh", "é\n")) for _ in range(10)}
    assert len(files) == 1 and list(load(files.pop())) == sorted(tensors)
