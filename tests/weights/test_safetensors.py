import struct
import sys

import gymnasium as gym
import pytest

from pl_rl.errors import UsageError
from pl_rl.networks import MLPActorCritic
from pl_rl.weights import read_weights
from tests.weights.support import network_of

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
    with pytest.raises(UsageError, match="pip install safetensors"):
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
