"""Policies of rsl_rl with a memory."""

import shlex

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml

import pl_rl
from pl_rl.errors import UsageError
from pl_rl.networks.records import Memory, Remembered
from pl_rl.pretrained import read_weights
from tests.pretrained.support import DATA, files, normalized, reference_of

FILES = files("rsl_rl_recurrent")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_network_answers_as_rsl_rl_does(path):
    weights, reference = read_weights(path), reference_of(path)
    words = shlex.split(weights.fitting)
    options = {
        name.rpartition(".")[2]: yaml.safe_load(value) for name, value in zip(words[::2], words[1::2], strict=True)
    }
    assert options.pop("class_path") == "pl_rl.networks.RecurrentActorCritic"
    assert options["memory"] == ("gru" if "3.3.0" in path.name else "lstm")
    spaces = gym.spaces.Box(-np.inf, np.inf, (5,)), gym.spaces.Box(-1, 1, (2,))
    network = pl_rl.RecurrentActorCritic(*spaces, activation="elu", **options).requires_grad_(False)
    network.load_state_dict(weights.tensors, strict=True)
    obs = normalized(weights, reference["obs"]).unsqueeze(0)
    begins = torch.zeros(obs.shape[:2], dtype=torch.bool)
    state = network.first_memory(1).state.unsqueeze(1).expand(-1, obs.shape[1], -1)
    mean, values = network(Remembered(obs, Memory(state, begins)))
    close = {"rtol": 0.0, "atol": 1e-5}
    torch.testing.assert_close(mean[0], reference["mean"], **close)
    torch.testing.assert_close(values[0], reference["value"], **close)
    torch.testing.assert_close(network.distribution.log_std.data, reference["log_std"], **close)
    assert weights.optimizer.keys() == weights.tensors.keys()


def test_a_memory_without_a_part_is_refused(tmp_path):
    content = torch.load(FILES[0], weights_only=True)
    del content["model_state_dict"]["memory_c.rnn.bias_hh_l0"]
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(UsageError, match=r"lacks tensors: 'memory_c.rnn.bias_hh_l0'"):
        read_weights(tmp_path / "model.pt")


def test_a_file_of_predicted_standard_deviations_is_refused(tmp_path):
    content = torch.load(DATA / "rsl_rl" / "rsl_rl_5.5.1_normalized.pt", weights_only=True)
    del content["actor_state_dict"]["distribution.std_param"]
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(UsageError, match="does not tell whether they are logarithms; use a policy with std"):
        read_weights(tmp_path / "model.pt")
