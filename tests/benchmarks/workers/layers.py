"""Layers of workers that use torch alone."""

import itertools

from torch import nn

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


def mlp(inputs, sizes, outputs=None, *, activation):
    """Hidden layers of some sizes, each followed by the activation of a name, and an output layer if it has outputs."""
    layers = []
    for pair in itertools.pairwise([inputs, *sizes]):
        layers += [nn.Linear(*pair), ACTIVATIONS[activation]()]
    if outputs is not None:
        layers.append(nn.Linear([inputs, *sizes][-1], outputs))
    return nn.Sequential(*layers)
