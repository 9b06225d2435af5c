"""Policies of Stable-Baselines3 and sb3-contrib with encoders, masks, memories and gSDE, in our networks for these."""

import io
import json
import shlex
import zipfile

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml

import pl_rl
from pl_rl.errors import UsageError
from pl_rl.networks.records import Memory, Remembered, as_input
from pl_rl.pretrained import read_weights
from pl_rl.pretrained.matching import Rules, match
from tests.pretrained.support import DATA, reference_of, rewritten

FOLDER = DATA / "sb3_networks"
IMAGE = gym.spaces.Box(0, 255, (36, 36, 1), np.uint8)
VECTOR = gym.spaces.Box(-np.inf, np.inf, (4,))
SPACES = {
    "cnn": (IMAGE, 3),
    "multi_input": (
        gym.spaces.Dict({"camera": IMAGE, "arm": gym.spaces.Box(-1, 1, (2,)), "mode": gym.spaces.Discrete(3)}),
        3,
    ),
    "recurrent": (VECTOR, 2),
    "gsde_recurrent": (gym.spaces.Box(-np.inf, np.inf, (3,)), gym.spaces.Box(-2, 2, (1,))),
}


def network_of(name, weights):
    """The network that the file's options name, with its weights."""
    words = shlex.split(weights.fitting)
    options = dict(zip(words[::2], map(yaml.safe_load, words[1::2]), strict=True))
    network_class = getattr(pl_rl, options.pop("--model.network.class_path").rpartition(".")[2])
    space, actions = SPACES[name]
    settings = {option.rpartition(".")[2]: value for option, value in options.items()}
    if isinstance(actions, int):
        actions = gym.spaces.Discrete(actions)
    network = network_class(space, actions, **settings)
    network.load_state_dict(weights.tensors, strict=True)
    return network.requires_grad_(False)


def assert_answers(reference, network, outputs, values):
    for name, answer in network.distribution.parts(outputs).items():
        ours = answer.log_softmax(-1) if name == "logits" else answer
        torch.testing.assert_close(ours, reference[name], rtol=0.0, atol=1e-5)
    torch.testing.assert_close(values, reference["value"], rtol=0.0, atol=1e-5)


@pytest.mark.parametrize(("name", "algorithm"), [("cnn", "PPO"), ("multi_input", "PPO")])
def test_encoders_answer_as_stable_baselines3_does(name, algorithm):
    weights, reference = read_weights(FOLDER / f"{name}.zip"), reference_of(FOLDER / f"{name}.zip")
    obs = reference["obs"]
    if isinstance(obs, dict):
        obs = {entry: torch.tensor(value) for entry, value in obs.items()}
    network = network_of(name, weights)
    assert weights.source == f"Stable-Baselines3 2.9.2 {algorithm}"
    assert_answers(reference, network, *network(as_input(obs, next(network.parameters()))))


@pytest.mark.parametrize("name", ["recurrent", "gsde_recurrent"])
def test_a_memory_answers_as_sb3_contrib_does(name):
    path = FOLDER / f"{name}.zip"
    weights, reference = read_weights(path), reference_of(path)
    network = network_of(name, weights)
    memory = network.first_memory(1)
    begins = torch.zeros(1, len(reference["obs"]), dtype=torch.bool)
    sequence = Remembered(reference["obs"].unsqueeze(0), Memory(memory.state.expand(1, len(begins[0]), -1), begins))
    outputs, values = network(sequence)
    assert weights.source == "sb3-contrib 2.9.2 RecurrentPPO"
    assert_answers(reference, network, outputs[0], values[0])
    states = [(weights.tensors[name].flatten()[0], state["exp_avg"]) for name, state in weights.optimizer.items()]
    ours = torch.tensor([[number, moment.flatten()[0]] for number, moment in states])
    torch.testing.assert_close(ours, reference["adam"], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "source", "space", "actions"),
    [
        ("frozen_lake", "Stable-Baselines3 2.9.2 PPO", gym.spaces.Discrete(16), 4),
        ("maskable", "sb3-contrib 2.9.2 MaskablePPO", VECTOR, 3),
    ],
)
def test_fully_connected_layers_answer_as_the_library_does(name, source, space, actions):
    weights, reference = read_weights(FOLDER / f"{name}.zip"), reference_of(FOLDER / f"{name}.zip")
    assert weights.source == source and weights.fitting is None and weights.optimizer is not None
    # With action masks a network of several inputs has the same names.
    for network_class in (pl_rl.MLPActorCritic, pl_rl.MultiInputActorCritic):
        network = network_class(space, gym.spaces.Discrete(actions), actor_sizes=[16], critic_sizes=[16])
        network.load_state_dict(weights.tensors, strict=True)
        assert_answers(reference, network, *network(reference["obs"]))


def test_state_dependent_noise_is_that_of_stable_baselines3():
    path = FOLDER / "gsde.zip"
    weights, reference = read_weights(path), reference_of(path)
    assert weights.network["distribution"] == "gsde" and weights.optimizer is not None
    space, actions = SPACES["gsde_recurrent"]
    network = pl_rl.MLPActorCritic(space, actions, **weights.network).requires_grad_(False)
    network.load_state_dict(weights.tensors, strict=True)
    assert_answers(reference, network, *network(reference["obs"]))


def test_another_network_is_told_which_one_fits():
    weights = read_weights(FOLDER / "recurrent.zip")
    network = pl_rl.MLPActorCritic(VECTOR, gym.spaces.Discrete(2))
    with pytest.raises(
        UsageError, match=r"; use --model.network.class_path pl_rl.networks.RecurrentActorCritic .*_size 8"
    ):
        match("recurrent.zip", weights, network, Rules())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: tensors.update({"vf_features_extractor.cnn.0.bias": torch.ones(32)}),
            "share_features_extractor=True",
        ),
        (lambda tensors: tensors.pop("features_extractor.cnn.2.bias"), "layers, and our networks share them"),
        (lambda tensors: tensors.update(other=torch.zeros(1)), "CNNActorCritic has no place for: 'other'"),
    ],
)
def test_layers_that_do_not_fit_are_named(tmp_path, change, message):
    with zipfile.ZipFile(FOLDER / "cnn.zip") as archive:
        tensors = torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=True)
    change(tensors)
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    with pytest.raises(UsageError, match=message):
        read_weights(rewritten(FOLDER / "cnn.zip", tmp_path / "model.zip", **{"policy.pth": buffer.getvalue()}))


def test_images_that_are_not_divided_are_refused(tmp_path):
    with zipfile.ZipFile(FOLDER / "cnn.zip") as archive:
        settings = json.loads(archive.read("data"))
    changed = json.dumps({**settings, "policy_kwargs": {"normalize_images": False}})
    with pytest.raises(UsageError, match="normalize_images=False"):
        read_weights(rewritten(FOLDER / "cnn.zip", tmp_path / "model.zip", data=changed))
