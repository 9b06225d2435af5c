"""Layers that networks are built of, with orthogonal weights and zero biases."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import gymnasium as gym
import numpy as np
from torch import nn

Weighted = TypeVar("Weighted", nn.Linear, nn.Conv2d)

Activation = Literal["elu", "gelu", "leaky_relu", "relu", "silu", "tanh"]
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}

Convolution = tuple[int, int, int]
"""Filters, edge of the kernel, stride."""
# Of deep Q-learning, https://www.nature.com/articles/nature14236, methods, "model architecture".
NATURE: tuple[Convolution, ...] = ((32, 8, 4), (64, 4, 2), (64, 3, 1))


def is_image(space: gym.Space[Any]) -> bool:
    """Whether it is a ``Box`` of uint8 with three dimensions."""
    return isinstance(space, gym.spaces.Box) and len(space.shape) == 3 and space.dtype == np.uint8


def convolutions(channels: int, layers: Sequence[Convolution]) -> nn.Sequential:
    """Convolutions, each followed by ReLU, and their result ``[B, C, H, W]`` as vectors ``[B, D]``."""
    modules: list[nn.Module] = []
    for filters, kernel, stride in layers:
        modules += [orthogonal(nn.Conv2d(channels, filters, kernel, stride), math.sqrt(2)), nn.ReLU()]
        channels = filters
    return nn.Sequential(*modules, nn.Flatten())


def convolved(size: int, layers: Sequence[Convolution]) -> int:
    """Pixels along an edge of ``size`` after these convolutions."""
    for _, kernel, stride in layers:
        size = (size - kernel) // stride + 1
    return size


def mlp(
    sizes: Sequence[int],
    activation: str,
    output_layer: Callable[[int], nn.Module] | None = None,
    gain: float = math.sqrt(2),
) -> nn.Sequential:
    """Hidden layers of the widths ``sizes[1:]`` over ``sizes[0]`` inputs, and the layer over the last if wanted."""
    layers: list[nn.Module] = []
    for width, following in itertools.pairwise(sizes):
        layers += [linear(width, following, gain), ACTIVATIONS[activation]()]
    if output_layer is not None:
        layers.append(output_layer(sizes[-1]))
    return nn.Sequential(*layers)


def value_layer(inputs: int, gain: float = 1.0) -> nn.Linear:
    """The last layer of a value function."""
    return linear(inputs, 1, gain)


def linear(inputs: int, outputs: int, gain: float) -> nn.Linear:
    """A linear layer with this gain."""
    return orthogonal(nn.Linear(inputs, outputs), gain)


def orthogonal(layer: Weighted, gain: float) -> Weighted:
    """The layer, with orthogonal weights of this gain and zero biases."""
    nn.init.orthogonal_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
