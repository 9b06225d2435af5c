"""What environments say of an episode when it ends, beyond its return and its length.

Vector environments pass it on as ``infos["episode_info"]``: by the index of an environment, numbers by name.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

SUCCESS, SUCCESS_RATE = "success", "success_rate"
# As Gymnasium-Robotics and Stable-Baselines3, and as Meta-World and ManiSkill have it.
SUCCESS_KEYS = ("is_success", "success")

EpisodeInfo = dict[str, float]


def episode_info(info: Any, keys: Sequence[str] = ()) -> EpisodeInfo:
    """The numbers in the ``info`` of an episode's last step: ``success``, and those that are named.

    What is no finite number is left out.

    Args:
        info: What the environment returned.
        keys: Names of further entries.
    """
    if not isinstance(info, Mapping):
        return {}
    found = {}
    for key in (*keys, *reversed(SUCCESS_KEYS)):
        number = _number(info[key]) if key in info else None
        if number is not None:
            found[SUCCESS if key in SUCCESS_KEYS else key] = number
    return found


def info_statistics(episodes: Iterable[EpisodeInfo]) -> dict[str, float]:
    """``success_rate``, and ``NAME_mean`` of all else, each over the episodes that have it."""
    numbers: dict[str, list[float]] = {}
    for info in episodes:
        for name, number in info.items():
            numbers.setdefault(name, []).append(number)
    return {
        SUCCESS_RATE if name == SUCCESS else f"{name}_mean": float(np.mean(values)) for name, values in numbers.items()
    }


def _number(value: Any) -> float | None:
    try:
        numbers = np.asarray(value)
    except ValueError:  # of a ragged list
        return None
    if numbers.size != 1 or numbers.dtype.kind not in "biuf" or not math.isfinite(numbers.item()):
        return None
    return float(numbers.item())
