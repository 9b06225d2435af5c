"""Compiled acting and updates of networks that see dictionaries, choices and masks, and of those with a memory."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete

from pl_rl import MultiInputActorCritic, RecurrentActorCritic
from pl_rl.algorithm.acting import EagerActionSelector
from pl_rl.algorithm.updates import EagerUpdater
from pl_rl.compiled import flops
from pl_rl.compiled.acting import CompiledActionSelector
from pl_rl.compiled.backend import make_example
from pl_rl.compiled.updates import CompiledUpdater
from pl_rl.errors import CompilationError
from pl_rl.networks.records import MASK, ActionMask, next_memory, rows, tree_map
from tests.example_updates import adam, make_updates, run

VECTOR = Box(-1.0, 1.0, (3,), np.float32)
ENTRIES = {
    "camera": Box(0, 255, (9, 10, 3), np.uint8),
    "gear": Discrete(4, start=2),
    "joints": VECTOR,
    "knobs": MultiDiscrete([2, 3]),
    "switches": MultiBinary(2),
}
MASKED = Dict({"obs": Discrete(20), MASK: ActionMask(5)})
RECURRENT = {"memory_size": 8, "sequence_length": 4}
KINDS = {
    "dictionary": (MultiInputActorCritic, Dict(ENTRIES), Box(-1, 1, (2,)), {"critic_keys": ["joints"]}),
    "choice": (MultiInputActorCritic, Discrete(7), Discrete(3), {"encoder_sizes": {"obs": [8]}}),
    "mask": (MultiInputActorCritic, MASKED, Discrete(5), {}),
    "mask of two": (MultiInputActorCritic, MASKED, MultiDiscrete([2, 3]), {}),
    "LSTM": (RecurrentActorCritic, VECTOR, Discrete(3), RECURRENT),
    "GRU": (RecurrentActorCritic, VECTOR, Box(-1, 1, (2,)), {**RECURRENT, "memory": "gru"}),
    "memory, dictionary, mask": (
        RecurrentActorCritic,
        Dict({"joints": VECTOR, **MASKED.spaces}),
        Discrete(5),
        {**RECURRENT, "critic_keys": ["joints"]},
    ),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def make(kind, size=32):
    """A network, and a minibatch that it could have collected."""
    network_class, space, actions, settings = KINDS[kind]
    torch.manual_seed(0)
    network = network_class(space, actions, **settings)
    return network, make_example(network, tree_map(dtype_of, dict(space) if isinstance(space, Dict) else space), size)


def dtype_of(space):
    """As :class:`~pl_rl.algorithm.rollout.RolloutCollector` has them."""
    return torch.bool if isinstance(space, MultiBinary) else torch.from_numpy(np.empty(0, space.dtype)).dtype


def turned(obs):
    """The entries in another order."""
    if isinstance(obs, dict):
        return dict(reversed(obs.items()))
    return obs._replace(obs=turned(obs.obs)) if hasattr(obs, "_fields") else obs


def decide(acting, seen, noise, order=lambda obs: obs):
    """What is decided on observations that come one after another, where some episodes end."""
    given = order(tree_map(torch.zeros_like, seen))
    acting.begin(given, noise)
    memory = acting.network.first_memory(noise.shape[1])
    for t in range(len(noise)):
        now = rows(seen, t)
        tree_map(torch.Tensor.copy_, rows(given, t), now if memory is None else now._replace(memory=memory))
        acting.act(t)
        memory = next_memory(acting.state, np.arange(noise.shape[1]) % 3 == t)
    return acting.decisions()


@pytest.mark.slow
@each_kind
@torch.no_grad()
def test_a_compiled_function_decides_what_the_network_does(kind):
    network, example = make(kind, 96)
    seen = example.obs if network.sequence_length is None else rows(example.obs, (slice(None), 0))
    seen = tree_map(lambda field: field[:24].unflatten(0, (4, 6)).contiguous(), seen)
    noise = network.distribution.noise((4, 6), torch.Generator().manual_seed(1))
    compiled = CompiledActionSelector(network, rows(seen, 0))
    compiled.load()
    expected = decide(EagerActionSelector(network), seen, noise)
    for order in (lambda obs: obs, turned):
        for ours, theirs in zip(decide(compiled, seen, noise, order), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@each_kind
def test_compiled_updates_do_what_eager_ones_do(kind):
    results = []
    for updates_class in (EagerUpdater, CompiledUpdater):
        network, minibatch = make(kind)
        # Adam makes a step of a gradient that is all rounding, too: at most its rate in each of six.
        updates = make_updates(updates_class, network, minibatch, adam(network.parameters(), lr=1e-4))
        minibatch = minibatch._replace(obs=turned(minibatch.obs))
        results.append((run(updates, minibatch), network.state_dict()))
        assert not all(map(torch.equal, network.parameters(), make(kind)[0].parameters()))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_sequences_are_learnt_from_in_chunks(monkeypatch):
    """A chunk is of whole sequences, and the number of threads changes no bit."""
    monkeypatch.setattr(flops, "CHUNK_SIZE", 2)
    monkeypatch.setattr(flops, "LEAST_CHUNK_SIZE", 2)
    results = []
    for threads in (1, 2):
        monkeypatch.setattr("pl_rl.compiled.updates.cores", lambda threads=threads: threads)
        network, minibatch = make("LSTM")
        updates = make_updates(CompiledUpdater, network, minibatch)
        results.append((run(updates, minibatch), network.state_dict()))
    assert len(updates._calls) == 4
    torch.testing.assert_close(*results, rtol=0, atol=0)
    network, minibatch = make("LSTM")
    eager = run(make_updates(EagerUpdater, network, minibatch), minibatch), network.state_dict()
    torch.testing.assert_close(results[0], eager, rtol=1e-3, atol=1e-4)


def test_choices_that_are_ruled_out_stay_out():
    """Where a row of the mask allows one choice, its log-probability is zero, and nothing else is sampled."""
    network, _ = make("mask")
    obs = {"obs": torch.arange(5), MASK: torch.eye(5, dtype=torch.bool)}
    noise = network.distribution.noise((3, 5), torch.Generator().manual_seed(0))
    acting = CompiledActionSelector(network, obs)
    acting.load()
    acting.begin(tree_map(lambda now: now.expand(3, *now.shape).contiguous(), obs), noise)
    for t in range(3):
        assert acting.act(t).tolist() == [0, 1, 2, 3, 4]
    assert network.distribution.log_prob(*acting.decisions()[::2]).eq(0).all()


@pytest.mark.slow
def test_a_minibatch_whose_entries_are_others_is_refused():
    network, minibatch = make("dictionary")
    updates = make_updates(CompiledUpdater, network, minibatch)
    other = {**minibatch.obs, "joints": minibatch.obs["joints"].double()}
    with pytest.raises(CompilationError, match="another shape or type"):
        run(updates, minibatch._replace(obs=other))
