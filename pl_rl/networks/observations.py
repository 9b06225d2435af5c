"""Observations that are choices or switches, as vectors.

Shapes: ``B`` observations of any batch, ``D`` choices of one observation, ``O`` numbers of its one-hot code.
"""

import math
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn


class OneHot(nn.Module):
    """The one-hot codes of an observation's choices, concatenated.

    Args:
        space: Of a single environment.

    Attributes:
        num_outputs: ``O``.
    """

    _values: Tensor

    def __init__(self, space: gym.spaces.Discrete | gym.spaces.MultiDiscrete) -> None:
        super().__init__()
        sizes = np.atleast_1d(space.n if isinstance(space, gym.spaces.Discrete) else space.nvec).flatten()
        starts = np.atleast_1d(space.start).flatten()
        self._sizes = sizes.tolist()
        self.num_outputs = sum(self._sizes)
        values = [torch.arange(int(start), int(start + size)) for start, size in zip(starts, sizes, strict=True)]
        self.register_buffer("_values", torch.cat(values), persistent=False)

    def forward(self, obs: Tensor) -> Tensor:
        """Codes ``[B, O]``, bool, for observations ``[B]`` or ``[B, ...]`` of ``D`` choices."""
        choices = obs.unsqueeze(-1).flatten(1).split(1, -1)
        codes = [choice == value for choice, value in zip(choices, self._values.split(self._sizes), strict=True)]
        return torch.cat(codes, -1)


def input_layer(space: gym.Space[Any]) -> tuple[nn.Module | None, int] | None:
    """What makes vectors of a space's observations, and their size; no layer for vectors, ``None`` for other spaces."""
    match space:
        case gym.spaces.Box() if len(space.shape) == 1:
            return None, space.shape[0]
        case gym.spaces.Discrete() | gym.spaces.MultiDiscrete():
            one_hot = OneHot(space)
            return one_hot, one_hot.num_outputs
        case gym.spaces.MultiBinary():
            return nn.Flatten(), math.prod(space.shape)
    return None
