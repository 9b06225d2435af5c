"""Gradient updates, one operation at a time."""

import torch

from pl_rl.algorithm.updates import EagerUpdater
from tests.example_updates import adam, make_minibatch, make_network, make_updates, run


def test_parameters_that_are_not_trained_keep_no_gradient_from_before():
    network = make_network()
    minibatch = make_minibatch(network)
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 1e6)
    updates = make_updates(EagerUpdater, network, minibatch, adam(network.actor.parameters()))
    norm = run(updates, minibatch)[:, -1]
    assert norm.max() < 100
    assert all(parameter.grad is None for parameter in [*network.encoder.parameters(), *network.critic.parameters()])
    assert torch.equal(network.encoder[0].weight, make_network().encoder[0].weight)
