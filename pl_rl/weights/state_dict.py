"""A bare ``state_dict`` under our own names, with or without the ``network.`` of a LightningModule."""

from collections.abc import Collection

from torch import Tensor

from pl_rl.weights.conversion import convert_mlp, plain_tensor, tensor_dict
from pl_rl.weights.files import WeightsFile
from pl_rl.weights.layers import LOG_STD, numbered, our_names
from pl_rl.weights.policy_weights import PolicyWeights

_PREFIX = "network."


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
    notes = ["The activation is not in the file: MLPActorCritic's default is tanh."]
    return convert_mlp(file, "state_dict of MLPActorCritic", tensors, names, activation=None, notes=notes)


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


def _without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if all(name.startswith(_PREFIX) for name in tensors):
        return {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
    return tensors
