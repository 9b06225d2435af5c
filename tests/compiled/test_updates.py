"""Gradient updates: compiled ones do what eager ones do."""

import copy
from typing import get_args

import pytest
import torch

from pl_rl.algorithm.loss import Minibatch
from pl_rl.algorithm.updates import EagerUpdater
from pl_rl.compiled.generator import operations
from pl_rl.compiled.updates import CompiledUpdater
from pl_rl.errors import CompilationError
from pl_rl.networks.layers import Activation
from tests.example_updates import (
    COEFFICIENTS,
    adam,
    make_minibatch,
    make_network,
    make_pixel_network,
    make_updates,
    run,
)


def assert_same(eager, compiled, rtol=1e-4, atol=1e-5):
    """Networks and optimizers agree, in values and in form."""
    torch.testing.assert_close(
        compiled.loss.state_dict(), eager.loss.state_dict(), rtol=rtol, atol=atol, check_stride=True
    )
    ours, theirs = compiled.optimizer.state_dict(), eager.optimizer.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    torch.testing.assert_close(ours["state"], theirs["state"], rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("discrete", {}),
        ("continuous", {"max_grad_norm": None}),
        ("discrete", {"clip_vloss": True, "max_grad_norm": 0.01}),
    ],
)
def test_compiled_updates_do_what_eager_ones_do(kind, settings):
    clipping = {name: settings[name] for name in settings if name == "max_grad_norm"}
    settings = {name: settings[name] for name in settings if name != "max_grad_norm"}
    networks = [make_network(kind) for _ in range(2)]
    minibatch = make_minibatch(networks[0])
    eager, compiled = (
        make_updates(updates_class, network, minibatch, **settings)
        for updates_class, network in zip([EagerUpdater, CompiledUpdater], networks, strict=True)
    )
    ours, expected = run(compiled, minibatch, **clipping), run(eager, minibatch, **clipping)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    assert_same(eager, compiled)
    assert not torch.equal(networks[0].actor[0].weight, make_network(kind).actor[0].weight)


@pytest.mark.slow
@pytest.mark.parametrize("activation", get_args(Activation))
def test_every_activation_is_compiled(activation):
    networks = [make_network(activation=activation) for _ in range(2)]
    minibatch = make_minibatch(networks[0])
    eager, compiled = (
        make_updates(updates_class, network, minibatch)
        for updates_class, network in zip([EagerUpdater, CompiledUpdater], networks, strict=True)
    )
    torch.testing.assert_close(run(compiled, minibatch), run(eager, minibatch), rtol=1e-4, atol=1e-5)
    assert_same(eager, compiled)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 36, 36), (36, 40, 3), (4, 84, 84)], ids=str)
def test_compiled_updates_from_pixels_do_what_eager_ones_do(shape):
    networks = [make_pixel_network(shape) for _ in range(2)]
    minibatch = make_minibatch(networks[0], size=24)
    assert minibatch.obs.dtype == torch.uint8
    eager, compiled = (
        make_updates(updates_class, network, minibatch, adam(network.parameters(), lr=1e-4))
        for updates_class, network in zip([EagerUpdater, CompiledUpdater], networks, strict=True)
    )
    torch.testing.assert_close(run(compiled, minibatch), run(eager, minibatch), rtol=1e-3, atol=1e-4)
    # Adam makes a step of a gradient that is all rounding, too: at most its rate in each of six.
    assert_same(eager, compiled, rtol=1e-3, atol=1e-4)
    assert not torch.equal(networks[0].convolutions[0].weight, make_pixel_network(shape).convolutions[0].weight)


@pytest.mark.slow
def test_a_gradient_that_is_not_pytorchs_is_refused(monkeypatch):
    monkeypatch.setitem(operations.AS_RESULT, torch.ops.aten.exp.default, "expm1_of({0})")
    network = make_network()
    with pytest.raises(CompilationError, match="its gradient differs from PyTorch's by"):
        make_updates(CompiledUpdater, network, make_minibatch(network))


@pytest.mark.slow
def test_parameters_that_made_fewer_steps_are_corrected_as_such():
    """Adam's bias correction is each parameter's own: some may have been held before."""
    networks = [make_network() for _ in range(2)]
    minibatch = make_minibatch(networks[0])
    optimizers = [adam(network.parameters()) for network in networks]
    for network, optimizer in zip(networks, optimizers, strict=True):
        network.actor.requires_grad_(False)
        run(make_updates(EagerUpdater, network, minibatch, optimizer), minibatch)
        network.actor.requires_grad_(True)
    eager, compiled = (
        make_updates(updates_class, network, minibatch, optimizer)
        for updates_class, network, optimizer in zip([EagerUpdater, CompiledUpdater], networks, optimizers, strict=True)
    )
    run(eager, minibatch)
    run(compiled, minibatch)
    assert_same(eager, compiled)
    assert {state["step"].item() for state in compiled.optimizer.state.values()} == {6.0, 12.0}


@pytest.mark.slow
def test_parameter_groups_keep_their_settings():
    def with_groups(network):
        actor = {"params": list(network.actor.parameters()), "lr": 0.1, "weight_decay": 0.3, "betas": (0.8, 0.99)}
        return adam([{"params": list(network.critic.parameters())}, actor])

    networks = [make_network() for _ in range(2)]
    minibatch = make_minibatch(networks[0])
    eager, compiled = (
        make_updates(updates_class, network, minibatch, with_groups(network))
        for updates_class, network in zip([EagerUpdater, CompiledUpdater], networks, strict=True)
    )
    torch.testing.assert_close(run(compiled, minibatch), run(eager, minibatch), rtol=1e-4, atol=1e-5)
    assert_same(eager, compiled)
    assert torch.equal(networks[1].encoder[0].weight, make_network().encoder[0].weight), "not the optimizer's to train"


@pytest.mark.slow
def test_frozen_parameters_stay_and_have_no_state():
    network = make_network()
    network.encoder.requires_grad_(False)
    before = copy.deepcopy(network.encoder.state_dict())
    minibatch = make_minibatch(network)
    trained = [param for param in network.parameters() if param.requires_grad]
    updates = make_updates(CompiledUpdater, network, minibatch, adam(trained))
    run(updates, minibatch)
    torch.testing.assert_close(network.encoder.state_dict(), before, rtol=0, atol=0)
    assert set(updates.optimizer.state) == set(trained)


@pytest.mark.slow
def test_an_optimizer_that_has_made_steps_is_taken_over():
    networks = [make_network() for _ in range(2)]
    minibatch = make_minibatch(networks[0])
    switching, staying = (make_updates(EagerUpdater, network, minibatch) for network in networks)
    run(switching, minibatch)
    compiled = make_updates(CompiledUpdater, networks[0], minibatch, switching.optimizer)
    run(compiled, minibatch)
    run(staying, minibatch, iterations=4)
    assert_same(staying, compiled)


@pytest.mark.slow
def test_chunks_and_threads(monkeypatch):
    results = {}
    for chunk_size, processors in [(4096, 1), (512, 1), (512, 2), (512, 3)]:
        monkeypatch.setattr("pl_rl.compiled.flops.CHUNK_SIZE", chunk_size)
        monkeypatch.setattr("pl_rl.compiled.updates.cores", lambda processors=processors: processors)
        network = make_network()
        minibatch = make_minibatch(network, size=2048)
        metrics = run(make_updates(CompiledUpdater, network, minibatch), minibatch)
        results[chunk_size, processors] = torch.cat([metrics.flatten(), *(p.flatten() for p in network.parameters())])
    for processors in (2, 3):
        assert torch.equal(results[512, 1], results[512, processors]), "the number of threads changes no bit"
    torch.testing.assert_close(results[512, 1], results[4096, 1], rtol=1e-4, atol=1e-5)
    assert not torch.equal(results[512, 1], results[4096, 1]), "or it was not done in chunks"


@pytest.mark.slow
def test_threads_share_small_minibatches_of_expensive_samples(monkeypatch):
    monkeypatch.setattr("pl_rl.compiled.flops.LEAST_CHUNK_SIZE", 8)
    monkeypatch.setattr("pl_rl.compiled.flops.CHUNK_FLOPS", 2**20)
    results = []
    for processors in (1, 2, 3):
        monkeypatch.setattr("pl_rl.compiled.updates.cores", lambda processors=processors: processors)
        network = make_pixel_network()
        minibatch = make_minibatch(network, size=32)
        updates = make_updates(CompiledUpdater, network, minibatch)
        assert len(updates._calls) == 4
        metrics = run(updates, minibatch)
        results.append(torch.cat([metrics.flatten(), *(p.flatten() for p in network.parameters())]))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda params: torch.optim.SGD(params, lr=0.1), "the optimizer is SGD"),
        (lambda params: torch.optim.AdamW(params, lr=0.1), "the optimizer is AdamW"),
        (lambda params: adam(params, fused=False), "fused is False"),
        (lambda params: adam(params, amsgrad=True), "amsgrad is True"),
        (lambda params: adam(params, maximize=True), "maximize is True"),
    ],
)
def test_another_optimizer_is_a_reason_not_to_compile(make, reason):
    network = make_network()
    with pytest.raises(CompilationError, match=reason):
        make_updates(CompiledUpdater, network, make_minibatch(network), make(network.parameters()))


def test_double_precision_is_a_reason_not_to_compile():
    network = make_network().double()
    minibatch = make_minibatch(make_network())
    with pytest.raises(CompilationError, match="float32 parameters"):
        make_updates(CompiledUpdater, network, minibatch)


@pytest.mark.slow
def test_a_failure_in_an_iteration_leaves_the_updates_made_until_then():
    network = make_network()
    minibatch = make_minibatch(network)
    updates = make_updates(CompiledUpdater, network, minibatch)
    before = network.actor[0].weight.clone()
    with pytest.raises(KeyboardInterrupt), updates.iteration(COEFFICIENTS, 0.5):
        updates.gradient(minibatch)
        updates.step()
        raise KeyboardInterrupt
    assert not torch.equal(network.actor[0].weight, before)
    assert updates.optimizer.state[network.actor[0].weight]["step"] == 1


def test_parameters_outside_of_the_network_are_a_reason_not_to_compile():
    network, other = make_network(), torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(CompilationError, match="trains more than the network"):
        make_updates(CompiledUpdater, network, make_minibatch(network), adam([*network.parameters(), other]))


def make_wider(minibatch):
    return minibatch._replace(obs=torch.cat([minibatch.obs, minibatch.obs], 1))


def make_strided(minibatch):
    return minibatch._replace(obs=minibatch.obs.t().contiguous().t())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda minibatch: Minibatch(*(field[:32] for field in minibatch)), "another shape or type"),
        (lambda minibatch: minibatch._replace(obs=minibatch.obs.double()), "another shape or type"),
        (make_wider, "another shape or type"),
        (make_strided, "not contiguous"),
    ],
)
def test_a_minibatch_of_another_form_is_refused_at_any_time(change, reason):
    network = make_network()
    minibatch = make_minibatch(network)
    updates = make_updates(CompiledUpdater, network, minibatch)
    with updates.iteration(COEFFICIENTS, 0.5):
        updates.gradient(minibatch)
    with updates.iteration(COEFFICIENTS, 0.5), pytest.raises(CompilationError, match=reason):
        updates.gradient(change(minibatch))


@pytest.mark.slow
def test_adams_moments_are_those_of_torch():
    """Not only nearly: 1 - beta2 in single precision would make the second 1.1e-5 too small, step after step."""
    networks = [make_network() for _ in range(2)]
    minibatch = make_minibatch(networks[0])
    eager, compiled = (
        make_updates(updates_class, network, minibatch)
        for updates_class, network in zip([EagerUpdater, CompiledUpdater], networks, strict=True)
    )
    for _ in range(5):
        with eager.iteration(COEFFICIENTS, None), compiled.iteration(COEFFICIENTS, None):
            eager.gradient(minibatch)
            torch.cat([param.grad.flatten() for param in networks[0].parameters()], out=compiled._mean_gradient)
            eager.step(), compiled.step()
    states = [[u.optimizer.state[p] for p in u.loss.parameters()] for u in (eager, compiled)]
    for theirs, ours in zip(*states, strict=True):
        torch.testing.assert_close(ours["exp_avg"], theirs["exp_avg"], rtol=2**-22, atol=0)
        torch.testing.assert_close(ours["exp_avg_sq"], theirs["exp_avg_sq"], rtol=2**-21, atol=0)
    compiled.close()
