"""A ``state_dict`` under our own names: a network's alone, or an agent's with the statistics of its observations."""

import json
from collections.abc import Collection, Mapping
from inspect import signature
from typing import Any, get_args

from torch import Tensor

from pl_rl.networks.actor_critic import MLPActorCritic
from pl_rl.networks.distributions import Continuous
from pl_rl.networks.layers import ACTIVATIONS
from pl_rl.pretrained import safetensors
from pl_rl.pretrained.conversion import NORMALIZER, convert_mlp, new_name, own_normalizer, plain_tensor, tensor_dict
from pl_rl.pretrained.files import WeightsFile
from pl_rl.pretrained.layers import LOG_STD, numbered, our_names
from pl_rl.pretrained.policy_weights import PolicyWeights

_PREFIX = "network."
_STATISTICS = (NORMALIZER, "value_normalizer.")
_DEFAULT = signature(MLPActorCritic).parameters["activation"].default


def recognize(file: WeightsFile) -> bool:
    """Whether there is a policy under our names."""
    return "actor.0.weight" in _without_prefix(tensor_dict(file.content) or {})


def convert(file: WeightsFile) -> PolicyWeights:
    """The tensors as they are.

    Raises:
        Unreadable: If they are not all those of one ``MLPActorCritic``.
    """
    tensors = _without_prefix(file.content)
    names = our_names(*(numbered(tensors, part) for part in ("encoder", "actor", "critic")))
    names |= {LOG_STD: LOG_STD} if LOG_STD in tensors else {}
    described = _described_network(file)
    activation, tanh_mean = described.get("activation"), described.get("tanh_mean") is True
    notes = [] if activation else ["The activation is not in the file: MLPActorCritic's default is tanh."]
    return convert_mlp(
        file,
        "state_dict of MLPActorCritic",
        tensors,
        names,
        activation,
        notes,
        normalizer=own_normalizer(file.content),
        tanh_mean=tanh_mean,
        distribution=described.get("distribution"),
    )


def has_any(file: WeightsFile, names: Collection[str], rename: Mapping[str, str]) -> bool:
    """Whether it is a ``state_dict`` with any tensor of these names, once they are renamed."""
    return any(new_name(name, rename) in names for name in _without_prefix(tensor_dict(file.content) or {}))


def convert_any(file: WeightsFile) -> PolicyWeights:
    """The tensors as they are, of a network of any class.

    Raises:
        Unreadable: If one is not of finite numbers.
    """
    tensors = {name: plain_tensor(name, tensor) for name, tensor in _without_prefix(file.content).items()}
    return PolicyWeights("state_dict", file.sha256, tensors, None, normalizer=own_normalizer(file.content))


def _described_network(file: WeightsFile) -> dict[str, Any]:
    """The settings of the network that a safetensors file of ours describes; none in any other file."""
    try:
        network = json.loads(safetensors.read_metadata(file.data)["network"])
        settings = {"activation": _DEFAULT, "distribution": "gaussian", **network["init_args"]}
        known = settings["activation"] in ACTIVATIONS and settings["distribution"] in get_args(Continuous)
        return settings if known else {}
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}  # whoever wrote it


def _without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(_STATISTICS)}
    if all(name.startswith(_PREFIX) for name in weights):
        return {name.removeprefix(_PREFIX): tensor for name, tensor in weights.items()}
    return weights
