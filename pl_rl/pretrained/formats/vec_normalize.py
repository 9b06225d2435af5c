"""The statistics that Stable-Baselines3's ``VecNormalize`` saves: a pickle, read without unpickling its objects.

https://stable-baselines3.readthedocs.io/en/master/guide/vec_envs.html#vecnormalize
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pl_rl.pretrained.files import WeightsFile
from pl_rl.pretrained.inert_pickle import Record, load_inert
from pl_rl.pretrained.policy_weights import Normalizer, PolicyWeights, Unreadable

_ORIGIN = "stable_baselines3.common.vec_env.vec_normalize.VecNormalize"


def recognize(file: WeightsFile) -> bool:
    """Whether it is a pickle in which the class is named."""
    return file.data.startswith(b"\x80") and b"stable_baselines3.common.vec_env.vec_normalize" in file.data


def convert(file: WeightsFile) -> PolicyWeights:
    """The statistics of the observations; there are no weights.

    Raises:
        Unreadable: If it is damaged or does not normalize vector observations.
    """
    saved = load_inert(file.data)
    if not (isinstance(saved, Record) and saved.origin == _ORIGIN and isinstance(saved.state, dict)):
        raise Unreadable("names Stable-Baselines3's VecNormalize, but is another pickle; it was left unopened")
    state = saved.state
    if state.get("norm_obs") is not True or not isinstance(state.get("obs_rms"), Record):
        raise Unreadable("normalizes no vector observations; leave it out")
    try:
        statistics = state["obs_rms"].state
        mean, var = _array(statistics["mean"]), _array(statistics["var"])
        epsilon, clip, count = (float(v) for v in (state["epsilon"], state["clip_obs"], statistics["count"]))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise Unreadable("has statistics in a layout other than Stable-Baselines3's; use another copy") from error
    scale = (var + epsilon).sqrt()
    if mean.shape != var.shape or not (mean.isfinite().all() and scale.isfinite().all() and math.isfinite(count)):
        raise Unreadable("has statistics that are not finite or do not fit together; use another copy")
    normalizer = Normalizer(mean=mean, var=var, scale=scale, count=count, epsilon=epsilon, clip=clip)
    notes = [
        "The file holds the statistics of observations, and no policy: that is in the model's .zip.",
        "Stable-Baselines3 may have normalized rewards too; the value function then predicts normalized returns.",
    ]
    return PolicyWeights("Stable-Baselines3 VecNormalize", file.sha256, {}, None, notes, normalizer=normalizer)


def _array(record: Record) -> Tensor:
    """A NumPy array of a pickle, flat, in float64: what it was to be made from, made here."""
    if record.origin.endswith("._reconstruct"):
        _, shape, dtype, fortran_order, data = record.state
        order = "F" if fortran_order else "C"
    elif record.origin.endswith("._frombuffer"):
        data, dtype, shape, order = record.args
    else:
        raise ValueError(record.origin)
    if not isinstance(data, bytes | bytearray):
        raise TypeError(type(data))
    array = np.frombuffer(bytes(data), _dtype(dtype)).reshape(shape, order="F" if order == "F" else "C")
    return torch.tensor(array.astype(np.float64)).flatten()


def _dtype(record: Record) -> np.dtype[Any]:
    """Floats of 4 or 8 bytes, in the byte order that they were saved in."""
    kind, byte_order = record.args[0], record.state[1]
    if kind not in ("f4", "f8") or byte_order not in ("<", ">"):
        raise ValueError(kind, byte_order)
    dtype: np.dtype[Any] = np.dtype(byte_order + kind)
    return dtype
