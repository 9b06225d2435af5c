"""A function is traced once, to the graph that torch's own way of doing without changes in place would give."""

from functools import partial

import gymnasium as gym
import pytest
import torch

from pl_rl import MLPActorCritic, MultiInputActorCritic
from pl_rl.compiled import generator, tracing
from pl_rl.compiled.updates import CompiledUpdater
from pl_rl.errors import CompilationError
from tests.example_updates import BOX, SPACES, make_minibatch, make_network, make_pixel_network, make_updates

CONTINUOUS = ("gaussian", "state_dependent_gaussian", "squashed_gaussian", "beta", "gsde")
NETWORKS = {
    "discrete": make_network,
    "multi_discrete": lambda: MLPActorCritic(BOX, gym.spaces.MultiDiscrete([2, 3])),
    "multi_binary": lambda: MLPActorCritic(BOX, gym.spaces.MultiBinary(3)),
    "pixels": make_pixel_network,
    "entries": lambda: MultiInputActorCritic(BOX, SPACES["discrete"]),
    "gelu": lambda: make_network(activation="gelu"),
    **{name: partial(make_network, "continuous", distribution=name) for name in CONTINUOUS},
}


@pytest.mark.parametrize("clip_vloss", [False, True], ids=["", "clipped"])
@pytest.mark.parametrize("name", NETWORKS)
def test_an_update_is_traced_once_to_the_graph_that_torch_makes_in_two_traces(name, clip_vloss, monkeypatch):
    own, recorded, trace = tracing._recorded, [], tracing.trace
    monkeypatch.setattr(tracing, "_recorded", lambda *args: recorded.append(args) or own(*args))

    def twice(function, example):
        ours = trace(function, example)
        assert len(recorded) == 1
        with monkeypatch.context() as patch:
            patch.setattr(tracing, "_replace_copies", lambda graph: False)
            theirs = trace(function, example)
        raise Traced(*(generator.generate(graph).text for graph in (ours, theirs)))

    monkeypatch.setattr(tracing, "trace", twice)
    network = NETWORKS[name]()
    minibatch = make_minibatch(network, size=8)
    with pytest.raises(Traced) as traced:
        make_updates(CompiledUpdater, network, minibatch, clip_vloss=clip_vloss)
    ours, theirs = traced.value.args
    assert ours == theirs


class Traced(Exception):
    """Of a gradient; there is no need to compile it."""


def keeps_the_old(x, y):
    result = x + 1
    before = result * 2
    result.copy_(y * 3)
    return before, result - 1


def through_a_view_before(x, y):
    result = x + 1
    view = result.view(-1)
    result.copy_(y * 3)
    return view * 2, result


def through_a_view_after(x, y):
    result = x + 1
    result.copy_(y * 3)
    return result.view(-1) * 2, result


def into_a_view(x, y):
    result = x + 1
    result[0].copy_(y[0] * 3)
    return result * 2, result.sum()


def source_that_changes(x, y):
    source, result = y * 3, x + 1
    result.copy_(source)
    source.copy_(x * 5)
    return result * 2, source


def from_an_argument(x, y):
    result = x + 1
    result.copy_(y)
    return result, y + 1


def broadcast(x, y):
    result = x + 1
    result.copy_(y.sum())
    return result * 2, y + 1


def of_another_type(x, y):
    result = x + 1
    result.copy_((y * 3).to(torch.int64))
    return result * 2, y + 1


def other_strides(x, y):
    result = x + 1
    result.copy_((y * 3).t())
    return result * 2, y + 1


def twice_over(x, y):
    result = x + 1
    result.copy_(y * 3)
    first = result * 2
    result.copy_(x * 7)
    return first, result


def by_itself(x, y):
    result = x + 1
    result.mul_(y)
    result.add_(1)
    return result * 2, y + 1


CHANGES = [
    *(keeps_the_old, through_a_view_before, through_a_view_after, into_a_view, source_that_changes),
    *(from_an_argument, broadcast, of_another_type, other_strides, twice_over, by_itself),
]


@pytest.mark.parametrize("function", CHANGES, ids=lambda function: function.__name__)
def test_what_is_changed_in_place_on_the_way_is_computed_as_torch_does(function):
    x, y = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0))
    graph = tracing.trace(function, [x, y])
    graph.recompile()
    for one, other in zip(graph(x, y), function(x.clone(), y.clone()), strict=True):
        assert one.equal(other) and one.data_ptr() not in (x.data_ptr(), y.data_ptr())
    assert not any(node.op == "call_function" and node.target._schema.is_mutable for node in graph.graph.nodes)


@pytest.mark.parametrize("change", [lambda x: x.copy_(x * 2), lambda x: x.mul_(2), lambda x: x[0].copy_(x[1] * 2)])
def test_an_argument_that_changes_is_refused(change):
    with pytest.raises(CompilationError, match="changes its own state"):
        tracing.trace(lambda x: (change(x), x + 1), [torch.ones(2, 3)])


@pytest.mark.parametrize(
    "draw",
    [torch.nn.functional.dropout, torch.bernoulli, torch.rand_like, lambda x: torch.rrelu(x, training=True)],
    ids=["dropout", "bernoulli", "rand_like", "rrelu"],
)
def test_random_numbers_are_refused_whatever_they_are_made_of(draw):
    with pytest.raises(CompilationError, match="draws random numbers"):
        tracing.trace(lambda x: (draw(x.sigmoid()),), [torch.ones(2, 3)])


@pytest.mark.parametrize("training", [False, True])
def test_running_statistics_are_refused(training):
    norm = partial(torch.nn.functional.batch_norm, training=training)
    with pytest.raises(CompilationError, match="changes its own state"):
        tracing.trace(lambda *inputs: (norm(*inputs),), [torch.ones(2, 3), torch.zeros(3), torch.ones(3)])
