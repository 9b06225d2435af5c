"""A bare ``state_dict`` under our own names, with or without the ``network.`` of a LightningModule."""

import json
from collections.abc import Collection
from inspect import signature

from torch import Tensor

from pl_rl.networks import ACTIVATIONS, MLPActorCritic
from pl_rl.weights import safetensors
from pl_rl.weights.conversion import convert_mlp, plain_tensor, tensor_dict
from pl_rl.weights.files import WeightsFile
from pl_rl.weights.layers import LOG_STD, numbered, our_names
from pl_rl.weights.policy_weights import PolicyWeights

_PREFIX = "network."
_DEFAULT = signature(MLPActorCritic).parameters["activation"].default


def recognise(file: WeightsFile) -> bool:
    """Whether there is a policy and a value function under our names."""
    tensors = _without_prefix(tensor_dict(file.content) or {})
    return {"actor.0.weight", "critic.0.weight"} <= tensors.keys()


def convert(file: WeightsFile) -> PolicyWeights:
    """The tensors as they are.

    Raises:
        Unreadable: If they are not all those of one ``MLPActorCritic``.
    """
    tensors = _without_prefix(file.content)
    names = our_names(*(numbered(tensors, part) for part in ("encoder", "actor", "critic")))
    names |= {LOG_STD: LOG_STD} if LOG_STD in tensors else {}
    activation = _described_activation(file)
    notes = [] if activation else ["The activation is not in the file: MLPActorCritic's default is tanh."]
    return convert_mlp(file, "state_dict of MLPActorCritic", tensors, names, activation, notes)


def has_any(file: WeightsFile, names: Collection[str]) -> bool:
    """Whether it is a ``state_dict`` with any tensor of these names."""
    return not _without_prefix(tensor_dict(file.content) or {}).keys().isdisjoint(names)


def convert_any(file: WeightsFile) -> PolicyWeights:
    """The tensors as they are, of a network of any class.

    Raises:
        Unreadable: If one is not of finite numbers.
    """
    tensors = {name: plain_tensor(name, tensor) for name, tensor in _without_prefix(file.content).items()}
    return PolicyWeights("state_dict", file.sha256, tensors, None)


def _described_activation(file: WeightsFile) -> str | None:
    """Between the layers of the network that a safetensors file of ours describes; ``None`` in any other file."""
    try:
        network = json.loads(safetensors.metadata(file.data)["network"])
        activation = {"activation": _DEFAULT, **network["init_args"]}["activation"]
        return activation if activation in ACTIVATIONS else None
    except (KeyError, TypeError, ValueError, RecursionError):
        return None  # whoever wrote it


def _without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if all(name.startswith(_PREFIX) for name in tensors):
        return {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
    return tensors
