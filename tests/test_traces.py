"""Tests share a trace only where tracing again would give the same."""

import torch
from torch import nn

from tests.traces import Traces


class Scaled(nn.Module):
    def __init__(self, scale=2.0, power=1, seed=0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), float(seed)))
        self.scale, self.power = torch.tensor(scale), power

    def forward(self, x):
        return [self.weight * self.scale * x**self.power]


def traced(*functions):
    """How many of these are traced."""
    asked = []
    traces = Traces(lambda function, example: asked.append(function))
    for function in functions:
        traces(function, [torch.ones(3)])
    return len(asked)


def test_modules_that_differ_in_their_parameters_alone_share_one():
    assert traced(Scaled().forward, Scaled(seed=1).forward, Scaled().forward) == 1


def test_whatever_else_differs_is_traced_anew():
    other = Scaled()
    other.weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
    frozen = Scaled().requires_grad_(False)
    kinds = [Scaled(), Scaled(scale=3.0), Scaled(power=2), Scaled().eval(), other, frozen]
    assert traced(*(kind.forward for kind in kinds)) == len(kinds)
    traces = Traces(lambda function, example: object())
    one, two = (traces(Scaled().forward, [torch.ones(size)]) for size in (3, 1))
    assert one is not two


def test_what_has_something_unknown_is_always_traced():
    module = Scaled()
    module.clock = iter([])
    assert traced(module.forward, module.forward) == 2
