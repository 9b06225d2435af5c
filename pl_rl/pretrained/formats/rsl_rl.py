"""Checkpoints of rsl_rl (``model_N.pt``), https://github.com/leggedrobotics/rsl_rl.

Three layouts are read into the names of the second:

- releases 1 and 2: ``model_state_dict``, and beside it the normalizer of the observations;
- release 3: ``model_state_dict`` with the normalizers in it;
- releases 4 and 5: ``actor_state_dict`` and ``critic_state_dict``.
"""

from typing import Any

import torch
from torch import Tensor

from pl_rl.pretrained.conversion import convert_mlp, convert_other, plain_tensor, tensor_dict
from pl_rl.pretrained.files import WeightsFile
from pl_rl.pretrained.layers import LOG_STD, memory_names, numbered, our_names, widths
from pl_rl.pretrained.policy_weights import Normalizer, PolicyWeights, Unreadable

_MIN_STD = 1e-6
# The constant of rsl_rl's EmpiricalNormalization, which adds it to the standard deviation.
_EPSILON = 1e-2
_SPLIT_STD = {
    "std": "std",
    "log_std": "log_std",
    "distribution.std_param": "std",
    "distribution.log_std_param": "log_std",
}
_NORMALIZERS = ("actor_obs_normalizer.", "critic_obs_normalizer.")


def recognize(file: WeightsFile) -> bool:
    """Whether the entries are those of rsl_rl's runner."""
    keys = file.content.keys() if isinstance(file.content, dict) else set()
    return {"model_state_dict", "iter"} <= keys or {"actor_state_dict", "critic_state_dict"} <= keys


def convert(file: WeightsFile) -> PolicyWeights:
    """An actor and a critic, fully connected or after memories, with one standard deviation for each action.

    Raises:
        Unreadable: If the policy is another, or normalizes the observations of actor and critic differently.
    """
    split = "actor_state_dict" in file.content
    everything = _split_layout(file.content) if split else _joint_layout(file.content)
    tensors = {name: tensor for name, tensor in everything.items() if not name.startswith(_NORMALIZERS)}
    if not {"std", "log_std"} & tensors.keys():
        raise Unreadable(
            "is a file of rsl_rl without a standard deviation for each action, and of those that a network gives it "
            "does not tell whether they are logarithms; use a policy with std or log_std parameters"
        )
    std = None
    if "std" in tensors:
        std = plain_tensor("std", tensors["std"]).reshape(-1).clamp(min=_MIN_STD)
        tensors = {("log_std" if n == "std" else n): (std.log() if n == "std" else t) for n, t in tensors.items()}
    actor, critic = numbered(tensors, "actor"), numbered(tensors, "critic")
    memories = memory_names(tensors, "memory_a.rnn", "memory_c.rnn")
    names = our_names([], actor, critic) | memories | {"log_std": LOG_STD}
    what = file, "rsl_rl 4 or later" if split else "rsl_rl 1 to 3", tensors, names
    notes = ["The activation is not in the file: rsl_rl's default is elu."]
    adam, normalizer = file.content.get("optimizer_state_dict"), _normalizer(everything)
    if memories:
        fitting = _recurrent_settings(tensors, actor, critic)
        weights = convert_other(*what, "RecurrentActorCritic", fitting, notes, adam, normalizer)
    else:
        weights = convert_mlp(*what, None, notes, adam, normalizer)
    if weights.optimizer is not None and std is not None:
        # The gradient by log_std is std times the gradient by std.
        weights.optimizer[LOG_STD]["exp_avg"] *= std
        weights.optimizer[LOG_STD]["exp_avg_sq"] *= std.square()
    return weights


def _recurrent_settings(tensors: dict[str, Tensor], actor: list[str], critic: list[str]) -> dict[str, Any]:
    gates, size = tensors.get("memory_a.rnn.weight_hh_l0", torch.empty(0, 0)).shape
    return {
        "memory": "gru" if gates == 3 * size else "lstm",
        "memory_size": size,
        "actor_sizes": widths(tensors, actor[:-1]),
        "critic_sizes": widths(tensors, critic[:-1]),
    }


def _joint_layout(content: dict[str, Any]) -> dict[str, Tensor]:
    normalizers = {
        _NORMALIZERS[0]: content.get("obs_norm_state_dict"),
        _NORMALIZERS[1]: content.get("privileged_obs_norm_state_dict", content.get("critic_obs_norm_state_dict")),
    }
    outside = {
        f"{prefix}{n}": t for prefix, saved in normalizers.items() for n, t in (tensor_dict(saved) or {}).items()
    }
    return (tensor_dict(content["model_state_dict"]) or {}) | outside


def _split_layout(content: dict[str, Any]) -> dict[str, Tensor]:
    joint = {}
    for part in ("actor", "critic"):
        for name, tensor in (tensor_dict(content[f"{part}_state_dict"]) or {}).items():
            if name.startswith("mlp."):
                joint[f"{part}.{name.removeprefix('mlp.')}"] = tensor
            elif name.startswith("rnn.rnn."):
                joint[f"memory_{part[0]}.{name.removeprefix('rnn.')}"] = tensor
            elif part == "actor" and name in _SPLIT_STD:
                joint[_SPLIT_STD[name]] = tensor
            else:
                joint[f"{part}_{name}"] = tensor
    return joint


def _normalizer(tensors: dict[str, Tensor]) -> Normalizer | None:
    """The statistics that actor and critic share."""
    actor, critic = (_normalizer_at(tensors, prefix) for prefix in _NORMALIZERS)
    # Release 2 saves a critic's normalizer that is never used when both see the same observations.
    if critic is not None and critic["count"] == 0:
        critic = actor
    if actor is None and critic is None:
        return None
    if actor is None or critic is None or not _equal(actor, critic):
        raise Unreadable("normalizes the observations of actor and critic differently; MLPActorCritic shares them")
    return actor


def _equal(first: Normalizer, second: Normalizer) -> bool:
    if (first["mean"].shape, first["var"].shape) != (second["mean"].shape, second["var"].shape):
        return False
    return torch.allclose(first["mean"], second["mean"]) and torch.allclose(first["var"], second["var"])


def _normalizer_at(tensors: dict[str, Tensor], prefix: str) -> Normalizer | None:
    saved = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if not saved:
        return None
    try:
        mean, var = (plain_tensor(prefix + name, saved[name]).reshape(-1) for name in ("_mean", "_var"))
        scale, count = var.sqrt() + _EPSILON, float(saved["count"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise Unreadable(
            f"has a normalizer {prefix[:-1]!r} without a finite mean, variance or count; use another copy"
        ) from error
    return Normalizer(mean=mean, var=var, scale=scale, count=count, epsilon=_EPSILON, clip=None)
