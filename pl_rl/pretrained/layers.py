"""Finding the layers of fully connected networks in a ``state_dict``."""

import re
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from pl_rl.pretrained.policy_weights import NetworkSettings, Unreadable

LOG_STD = "distribution.log_std"
# Linear layers and activations alternate, so that the linear ones have the even numbers.
_STEP = 2


def numbered(names: Iterable[str], prefix: str) -> list[str]:
    """The linear layers ``prefix.0``, ``prefix.2``, ... of an ``nn.Sequential``.

    Raises:
        Unreadable: If layers with weights have other numbers.
    """
    pattern = re.compile(re.escape(prefix) + r"\.([0-9]{1,4})\.weight")
    numbers = sorted(int(match[1]) for match in map(pattern.fullmatch, names) if match)
    if numbers != [_STEP * i for i in range(len(numbers))]:
        raise Unreadable(
            f"has layers {numbers} in {prefix!r}, where MLPActorCritic has linear layers 0, 2, 4, ... with only "
            "activations between them; use a network of your own class for it"
        )
    return [f"{prefix}.{number}" for number in numbers]


def our_names(encoder: Sequence[str], actor: Sequence[str], critic: Sequence[str]) -> dict[str, str]:
    """The name in ``MLPActorCritic`` of each tensor of these linear layers, each part's from input to output."""
    return {
        f"{layer}.{kind}": f"{part}.{_STEP * i}.{kind}"
        for part, layers in (("encoder", encoder), ("actor", actor), ("critic", critic))
        for i, layer in enumerate(layers)
        for kind in ("weight", "bias")
    }


def memory_names(names: Iterable[str], actor: str, critic: str) -> dict[str, str]:
    """The name in ``RecurrentActorCritic`` of each tensor of two memories of one layer; none if there is no memory.

    Args:
        names: All names of tensors.
        actor: How those of the policy's memory begin, such as ``lstm_actor``.
        critic: How those of the value function's memory begin.
    """
    if not any(name.startswith((f"{actor}.", f"{critic}.")) for name in names):
        return {}
    kinds = [f"{what}_{where}" for what in ("weight", "bias") for where in ("ih", "hh")]
    memories = {actor: "actor_memory", critic: "critic_memory"}
    return {f"{theirs}.{kind}_l0": f"{ours}.{kind}" for theirs, ours in memories.items() for kind in kinds}


def widths(tensors: Mapping[str, Tensor], layers: Iterable[str]) -> list[int]:
    """Outputs of each linear layer."""
    return [len(tensors[f"{layer}.bias"]) for layer in layers]


def network_settings(tensors: Mapping[str, Tensor], activation: str | None) -> NetworkSettings:
    """The settings of the ``MLPActorCritic`` whose ``state_dict`` this is.

    Args:
        tensors: Each linear layer's weight and bias, numbered from 0 in each part.
        activation: Between the layers, if known.

    Raises:
        Unreadable: If the tensors do not fit together.
    """
    encoder = _widths(tensors, "encoder", None)
    features = encoder[-1] if encoder else None
    actor, critic = _widths(tensors, "actor", features), _widths(tensors, "critic", features)
    if not actor:
        raise Unreadable("lacks the layers of the policy; use a file that has them")
    if critic:
        inputs = {name: tensors[f"{name}.0.weight"].shape[1] for name in ("actor", "critic")}
        if inputs["actor"] != inputs["critic"]:
            raise Unreadable(
                f"has a policy of {inputs['actor']} inputs and a value function of {inputs['critic']}; MLPActorCritic "
                "gives both the same observations, so use a network of your own class for it"
            )
    if critic and critic[-1] != 1:
        raise Unreadable(f"has {critic[-1]} values for one observation, where PPO has 1; use another policy's file")
    hidden = tensors[f"actor.{_STEP * (len(actor) - 1)}.weight"].shape[1]
    if LOG_STD in tensors and tensors[LOG_STD].shape not in ((actor[-1],), (hidden, actor[-1])):
        raise Unreadable(
            f"has {tensors[LOG_STD].numel()} standard deviations for {actor[-1]} actions; they must be one an action, "
            "whatever the observation, or with gSDE one an action and feature"
        )
    return {
        "encoder_sizes": encoder,
        "actor_sizes": actor[:-1],
        "critic_sizes": critic[:-1] if critic else None,
        "activation": activation,
    }


def _widths(tensors: Mapping[str, Tensor], part: str, inputs: int | None) -> list[int]:
    """Outputs of each linear layer, which takes the outputs of the one before."""
    widths = []
    for layer in numbered(tensors, part):
        weight, bias = tensors[f"{layer}.weight"], tensors[f"{layer}.bias"]
        if weight.ndim != 2 or bias.shape != weight.shape[:1]:
            shapes = f"{tuple(weight.shape)} and {tuple(bias.shape)}"
            raise Unreadable(f"has a weight and a bias of shapes {shapes} in {layer}, which is no linear layer")
        if inputs not in (None, weight.shape[1]):
            raise Unreadable(f"has {weight.shape[1]} inputs in {layer}, to which {inputs} lead; use another copy")
        inputs = weight.shape[0]
        widths.append(inputs)
    return widths
