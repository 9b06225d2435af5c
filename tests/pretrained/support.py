"""Weights of real libraries, and networks made of what was read from them."""

import json
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

from pl_rl.networks.actor_critic import MLPActorCritic
from pl_rl.pretrained import read_weights

DATA = Path(__file__).parents[1] / "data" / "pretrained"


def files(library, suffix=""):
    """The files of a library that have reference answers."""
    references = [(path, json.loads(path.read_text())) for path in sorted((DATA / library).glob("*.ref.json"))]
    return [path.with_name(reference["file"]) for path, reference in references if reference["file"].endswith(suffix)]


def reference_of(path):
    """A library's answers ``[64, ...]`` to fixed observations, as tensors where they are lists."""
    name = path.name.removesuffix(".pth.tar") if path.name.endswith(".pth.tar") else path.stem
    reference = json.loads(path.with_name(f"{name}.ref.json").read_text())
    return {key: torch.tensor(value) if isinstance(value, list) else value for key, value in reference.items()}


def network_of(weights, activation=None, network_class=MLPActorCritic):
    """An ``MLPActorCritic``, or a subclass, with the weights, in the spaces that they fit."""
    settings = dict(weights.network)
    settings["activation"] = settings["activation"] or activation
    inputs = weights.tensors["encoder.0.weight" if settings["encoder_sizes"] else "actor.0.weight"].shape[1]
    outputs = weights.tensors[f"actor.{2 * len(settings['actor_sizes'])}.weight"].shape[0]
    continuous = "distribution.log_std" in weights.tensors
    actions = gym.spaces.Box(-1, 1, (outputs,)) if continuous else gym.spaces.Discrete(outputs)
    network = network_class(gym.spaces.Box(-np.inf, np.inf, (inputs,)), actions, **settings)
    network.load_state_dict(weights.tensors, strict=True)
    return network.requires_grad_(False)


def normalized(weights, obs):
    """Observations as the policy sees them."""
    if weights.normalizer is None:
        return obs
    clip = weights.normalizer["clip"] or np.inf
    return ((obs - weights.normalizer["mean"]) / weights.normalizer["scale"]).clip(-clip, clip).float()


def assert_answers_as(path, weights, activation=None):
    """The network gives the library's own logits or means, standard deviations and values."""
    reference = reference_of(path)
    network = network_of(weights, activation)
    outputs, values = network(normalized(weights, reference["obs"]))
    close = {"rtol": 0.0, "atol": 1e-5}
    torch.testing.assert_close(outputs, reference["mean" if "mean" in reference else "logits"], **close)
    torch.testing.assert_close(values, reference["value"], **close)
    if "log_std" in reference:
        torch.testing.assert_close(network.distribution.log_std.data, reference["log_std"], **close)


def assert_adam_as(path, weights):
    """Each parameter has the moments that the library's own optimizer has for it."""
    reference = reference_of(path)
    assert weights.optimizer.keys() == weights.tensors.keys()
    assert {state["step"] for state in weights.optimizer.values()} == {reference["optimizer_step"]}
    states = [(weights.tensors[name].flatten()[0], state["exp_avg"]) for name, state in weights.optimizer.items()]
    ours = torch.tensor([[number, moment.flatten()[0]] for number, moment in states])
    torch.testing.assert_close(ours, reference["adam"], rtol=0, atol=0)


def rewritten(path, target, **replaced):
    """A copy of a zip archive with other members; those that are ``None`` are left out."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as copy:
        members = {name: source.read(name) for name in source.namelist()} | replaced
        for name, data in members.items():
            if data is not None:
                copy.writestr(name, data)
    return target


def read_renamed(path, folder):
    """What is read from a copy whose name tells nothing."""
    copy = folder / "weights"
    copy.write_bytes(path.read_bytes())
    return read_weights(copy)


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))
