"""From the tensors of any library to :class:`PolicyWeights`."""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pl_rl.networks.normalization import EPSILON
from pl_rl.pretrained.files import MAX_BYTES, WeightsFile
from pl_rl.pretrained.layers import LOG_STD, network_settings
from pl_rl.pretrained.policy_weights import AdamState, Normalizer, PolicyWeights, Unreadable

NORMALIZER = "normalizer."
_SHOWN = 6


def convert_mlp(
    file: WeightsFile,
    source: str,
    tensors: Mapping[str, Tensor],
    names: Mapping[str, str],
    activation: str | None,
    notes: list[str],
    adam: Any = None,
    normalizer: Normalizer | None = None,
    tanh_mean: bool = False,
    distribution: str | None = "gaussian",
) -> PolicyWeights:
    """Weights of fully connected networks, renamed and checked.

    Args:
        file: Where they come from.
        source: What wrote it.
        tensors: Parameters by their names in the file, in the order in which the library's optimizer has them.
        names: Our name of each.
        activation: Between the layers, if the file tells.
        notes: For the user.
        adam: The ``state_dict`` of the library's optimizer.
        normalizer: Statistics of the observations.
        tanh_mean: Whether the file tells that the mean of the actions goes through tanh.
        distribution: Of continuous actions; ``None`` if the file does not tell.

    Raises:
        Unreadable: If tensors are missing, or there are others, or they do not fit together.
    """
    ours = _by_our_names(source, tensors, names, "MLPActorCritic", "use a policy of fully connected layers")
    network = network_settings(ours, activation)
    if tanh_mean:
        network["tanh_mean"] = True
    if LOG_STD in ours and ours[LOG_STD].ndim == 2:
        network["distribution"] = "gsde"  # no other has a matrix
    elif distribution is not None and (LOG_STD in ours or distribution != "gaussian"):
        network["distribution"] = distribution
    inputs = ours["encoder.0.weight" if network["encoder_sizes"] else "actor.0.weight"].shape[1]
    if normalizer is not None and {normalizer["mean"].shape, normalizer["scale"].shape} != {(inputs,)}:
        raise Unreadable(f"has statistics of observations that are not {inputs} numbers each; use another copy")
    optimizer, notes = _optimizer(adam, ours, notes)
    return PolicyWeights(source, file.sha256, ours, network, notes, optimizer, normalizer)


def convert_other(
    file: WeightsFile,
    source: str,
    tensors: Mapping[str, Tensor],
    names: Mapping[str, str],
    network: str,
    settings: Mapping[str, Any],
    notes: list[str],
    adam: Any = None,
    normalizer: Normalizer | None = None,
) -> PolicyWeights:
    """Weights of another network of ours than ``MLPActorCritic``, renamed and checked.

    Args:
        file: As :func:`convert_mlp`; so are the others.
        source: The same.
        tensors: The same.
        names: The same.
        network: Name of the class.
        settings: Its arguments that fit.
        notes: The same.
        adam: The same.
        normalizer: The same.

    Raises:
        Unreadable: If tensors are missing, or there are others.
    """
    ours = _by_our_names(source, tensors, names, network, "use another policy, or a network of your own class for it")
    optimizer, notes = _optimizer(adam, ours, notes)
    options = [f"--model.network.init_args.{name} {shlex.quote(str(value))}" for name, value in settings.items()]
    fitting = " ".join([f"--model.network.class_path pl_rl.networks.{network}", *options])
    return PolicyWeights(source, file.sha256, ours, None, notes, optimizer, normalizer, fitting)


def _by_our_names(
    source: str, tensors: Mapping[str, Tensor], names: Mapping[str, str], network: str, way_out: str
) -> dict[str, Tensor]:
    unknown, missing = [n for n in tensors if n not in names], [n for n in names if n not in tensors]
    if unknown or missing:
        problem = f"has tensors that {network} has no place for: {listed(unknown)}"
        if not unknown:
            problem = f"lacks tensors: {listed(missing)}"
        raise Unreadable(f"is a file of {source}, but {problem}; {way_out}")
    ours = {names[name]: plain_tensor(name, tensor) for name, tensor in tensors.items()}
    if LOG_STD in ours and ours[LOG_STD].shape[:-1].numel() == 1:
        ours[LOG_STD] = ours[LOG_STD].reshape(-1)
    return ours


def _optimizer(
    adam: Any, ours: Mapping[str, Tensor], notes: list[str]
) -> tuple[dict[str, AdamState] | None, list[str]]:
    """The state of each weight, and the notes with one more where there is a state that cannot be used."""
    optimizer = adam_states(adam, ours)
    if adam is not None and optimizer is None:
        notes = [*notes, "The state of its optimizer is not Adam's, or not one of these weights: Adam starts afresh."]
    return optimizer, notes


def own_normalizer(tensors: Mapping[str, Tensor]) -> Normalizer | None:
    """The statistics of observations in a ``state_dict`` of a whole model of ours, where it normalized them.

    Raises:
        Unreadable: If a part of them is missing.
    """
    saved = {name.removeprefix(NORMALIZER): t for name, t in tensors.items() if name.startswith(NORMALIZER)}
    if not saved:
        return None
    try:
        mean, var = (saved[name].flatten().double() for name in ("mean", "var"))
        count, clip = (float(saved[name]) for name in ("count", "clip"))
    except (KeyError, RuntimeError, ValueError) as error:
        raise Unreadable("has statistics of observations without a part of them; use another copy") from error
    return Normalizer(mean=mean, var=var, scale=(var + EPSILON).sqrt(), count=count, epsilon=EPSILON, clip=clip)


def renamed(weights: PolicyWeights, rename: Mapping[str, str]) -> PolicyWeights:
    """The weights under other names.

    Args:
        weights: Under the names that they have.
        rename: Beginnings of names, and what takes their place; the first that fits counts.

    Raises:
        Unreadable: If one fits no name, or two weights get the same.
    """
    if not rename:
        return weights
    for beginning in rename:
        if not any(name.startswith(beginning) for name in weights.tensors):
            raise Unreadable(
                f"has no weight whose name begins with {beginning!r}, as --pretrained.rename has it; its names are "
                f"{listed(weights.tensors)}"
            )
    names = {name: new_name(name, rename) for name in weights.tensors}
    if len(set(names.values())) < len(names):
        twice = next(name for name in names.values() if list(names.values()).count(name) > 1)
        raise Unreadable(f"would have two weights named {twice!r} by --pretrained.rename; give each a name of its own")
    return replace(
        weights,
        tensors={names[name]: tensor for name, tensor in weights.tensors.items()},
        optimizer=weights.optimizer and {names[name]: state for name, state in weights.optimizer.items()},
        network=None,
    )


def new_name(name: str, rename: Mapping[str, str]) -> str:
    """A weight's name after renaming."""
    for beginning, replacement in rename.items():
        if name.startswith(beginning):
            return replacement + name.removeprefix(beginning)
    return name


def adam_states(saved: Any, tensors: Mapping[str, Tensor]) -> dict[str, AdamState] | None:
    """Adam's state of each parameter.

    Args:
        saved: The ``state_dict`` of an optimizer.
        tensors: The parameters in the optimizer's order.

    Returns:
        ``None`` if it is not the state of an Adam that has made steps with just these parameters.
    """
    try:
        order = [number for group in saved["param_groups"] for number in group["params"]]
        states: dict[str, AdamState] = {}
        for number, (name, tensor) in zip(order, tensors.items(), strict=True):
            state = saved["state"][number]
            states[name] = {
                "step": float(state["step"]),
                "exp_avg": plain_tensor(name, state["exp_avg"]).reshape(tensor.shape),
                "exp_avg_sq": plain_tensor(name, state["exp_avg_sq"]).reshape(tensor.shape),
            }
    except (AttributeError, KeyError, IndexError, RuntimeError, TypeError, ValueError):
        return None
    return states


def plain_tensor(name: str, tensor: Tensor) -> Tensor:
    """A copy in float32 on the CPU.

    Raises:
        Unreadable: If it is not a dense tensor of finite numbers.
    """
    if tensor.is_meta or tensor.is_nested or tensor.layout is not torch.strided or not tensor.is_floating_point():
        raise Unreadable(f"has a tensor {name!r} that is not one of plain numbers ({tensor.dtype}); use another policy")
    if tensor.numel() * 4 > MAX_BYTES:
        raise Unreadable(f"has {tensor.numel():,} numbers in {name!r}, more than any policy; it is no policy")
    plain = tensor.detach().to("cpu", torch.float32, copy=True, memory_format=torch.contiguous_format)
    if not plain.isfinite().all():
        raise Unreadable(f"has numbers that are infinite or not a number in {name!r}; use an earlier file of that run")
    return plain


def tensor_dict(value: Any) -> dict[str, Tensor] | None:
    """The value itself if it is a ``state_dict``: a non-empty mapping of names to tensors."""
    if (
        isinstance(value, dict)
        and value
        and all(isinstance(n, str) and isinstance(t, Tensor) for n, t in value.items())
    ):
        return value
    return None


def listed(names: Iterable[Any]) -> str:
    """The first few of many names."""
    shown = [repr(name)[:80] for name in names]
    more = len(shown) - _SHOWN
    return ", ".join(shown[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
