"""Agents of CleanRL's ``ppo.py`` and ``ppo_continuous_action.py``, https://docs.cleanrl.dev/rl-algorithms/ppo/.

The file is the bare ``state_dict`` of the script's ``Agent``. For discrete actions its names are those of an
``MLPActorCritic`` without encoder; the two differ in the order, as CleanRL defines the critic first.
"""

from pl_rl.pretrained.conversion import convert_mlp, tensor_dict
from pl_rl.pretrained.files import WeightsFile
from pl_rl.pretrained.layers import LOG_STD, numbered, our_names
from pl_rl.pretrained.policy_weights import PolicyWeights

_LOG_STD = "actor_logstd"


def recognize(file: WeightsFile) -> bool:
    """Whether the tensors are named, and ordered, as in CleanRL's agents."""
    tensors = tensor_dict(file.content) or {}
    if {"critic.0.weight", _LOG_STD} <= tensors.keys():
        return True
    parts = list(dict.fromkeys(name.split(".")[0] for name in tensors))
    return parts == ["critic", "actor"]


def convert(file: WeightsFile) -> PolicyWeights:
    """The agent of either script; both have tanh between their layers.

    Raises:
        Unreadable: If a changed script has other layers.
    """
    continuous = _LOG_STD in file.content
    script, actor = ("ppo_continuous_action.py", "actor_mean") if continuous else ("ppo.py", "actor")
    names = our_names([], numbered(file.content, actor), numbered(file.content, "critic"))
    notes = ["The activation is not in the file: tanh is that of CleanRL's script."]
    if continuous:
        names[_LOG_STD] = LOG_STD
        notes.append(
            "CleanRL's ppo_continuous_action.py normalizes observations and rewards by running statistics that are "
            "not in the file: the policy expects observations of mean 0 and variance 1, clipped to [-10, 10]."
        )
    return convert_mlp(file, f"CleanRL {script}", file.content, names, activation="tanh", notes=notes)
