"""Our own checkpoints."""

from inspect import signature
from typing import Any

from pl_rl.checkpoints.format import STATE_KEY, check_content
from pl_rl.networks.actor_critic import MLPActorCritic
from pl_rl.pretrained.conversion import adam_states, convert_mlp, own_normalizer, plain_tensor
from pl_rl.pretrained.files import WeightsFile
from pl_rl.pretrained.layers import LOG_STD, numbered, our_names
from pl_rl.pretrained.policy_weights import PolicyWeights, Unreadable

_PREFIX = "network."


def recognize(file: WeightsFile) -> bool:
    """Whether the state that only we save is there."""
    return isinstance(file.content, dict) and STATE_KEY in file.content


def convert(file: WeightsFile) -> PolicyWeights:
    """The network of a checkpoint and its optimizer.

    Raises:
        UsageError: If the checkpoint is newer than this package.
        Unreadable: If its tensors are not those of its network.
    """
    try:
        return _convert(file, check_content(file.path, file.content))
    except (AttributeError, KeyError, TypeError) as error:
        raise Unreadable(f"is a checkpoint of pl_rl without a part of it ({error!r}); use another one") from error


# What the value function's numbers are, by the statistics that tell of it.
_OF_VALUES = {
    "reward_scaler.var": "Rewards were scaled in training, so the value function predicts scaled returns.",
    "value_normalizer.var": "Values were normalized in training, so the value function predicts normalized returns.",
}


def _convert(file: WeightsFile, checkpoint: dict[str, Any]) -> PolicyWeights:
    tensors = {
        name.removeprefix(_PREFIX): tensor
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith(_PREFIX)
    }
    adam = next(iter(checkpoint["optimizer_states"]), None)
    network = checkpoint["hyper_parameters"]["network"]
    normalizer, statistics = own_normalizer(checkpoint["state_dict"]), checkpoint["state_dict"].keys()
    notes = [note for name, note in _OF_VALUES.items() if name in statistics]
    source = f"pl_rl checkpoint, format {checkpoint[STATE_KEY]['format_version']}"
    if network["class_path"] != f"{MLPActorCritic.__module__}.{MLPActorCritic.__qualname__}":
        notes += [f"The network is a {network['class_path']}; the weights fit that class alone."]
        plain = {name: plain_tensor(name, tensor) for name, tensor in tensors.items()}
        return PolicyWeights(source, file.sha256, plain, None, notes, adam_states(adam, plain), normalizer)
    init_args = network["init_args"] or {}
    activation = init_args.get("activation", signature(MLPActorCritic).parameters["activation"].default)
    names = our_names(*(numbered(tensors, part) for part in ("encoder", "actor", "critic")))
    names |= {LOG_STD: LOG_STD} if LOG_STD in tensors else {}
    tanh_mean = bool(init_args.get("tanh_mean"))
    distribution = str(init_args.get("distribution", "gaussian"))
    return convert_mlp(file, source, tensors, names, activation, notes, adam, normalizer, tanh_mean, distribution)
