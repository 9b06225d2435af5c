"""The work of a gradient, and the chunks that it is computed in."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pl_rl import RecurrentActorCritic
from pl_rl.algorithm.loss import PPOLoss
from pl_rl.compiled.backend import make_example
from pl_rl.compiled.flops import count_flops, number_of_chunks
from tests.example_updates import BOX, COEFFICIENTS, SPACES, make_minibatch, make_network, make_pixel_network


@pytest.mark.parametrize(
    ("size", "flops_of_a_sample", "chunks"),
    [(256, 60e3, 1), (1023, 60e3, 1), (1024, 60e3, 2), (2048, 0, 4), (256, 50e6, 4), (96, 50e6, 1), (250, 50e6, 2)],
)
def test_chunks_follow_from_the_minibatch_and_the_work_of_a_sample(size, flops_of_a_sample, chunks):
    assert number_of_chunks(size, int(size * flops_of_a_sample)) == chunks


def test_operations_are_counted_without_a_trace():
    network = make_network()
    network.encoder = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout())
    obs = make_minibatch(make_network()).obs
    before, random_state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    # Forward, for the weights and, but in the first layer, for what goes in; actor and critic alike.
    products = 2 * (3 * 8) + 3 * (2 * 8 * 8 + 8 * 2 + 8 * 1)
    assert count_flops(network, obs) == 2 * 64 * products
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None for parameter in network.parameters())
    network.encoder.forward = lambda obs: obs if obs.sum() > 0 else -obs
    assert count_flops(network, obs) == 0


KINDS = {
    "discrete": make_network(),
    "pixels": make_pixel_network(),
    "memory": RecurrentActorCritic(BOX, SPACES["discrete"], memory_size=8, sequence_length=1),
    **{kind: make_network("continuous", distribution=kind) for kind in ("beta", "gsde", "state_dependent_gaussian")},
}


@pytest.mark.parametrize("network", KINDS.values(), ids=KINDS)
def test_the_loss_has_no_operations_that_count(network):
    dtype = torch.float32 if network is not KINDS["pixels"] else torch.uint8
    loss, minibatch = PPOLoss(network, clip_vloss=True), make_example(network, dtype, 64)
    with FlopCounterMode(display=False) as counter:
        value, _ = loss(minibatch, COEFFICIENTS)
        torch.autograd.grad(value, [*network.parameters()], allow_unused=True)
    assert count_flops(network, minibatch.obs) == counter.get_total_flops() > 0
