"""One gradient update, as DI-engine makes it from the same weights and the same minibatch.

The reference clips the value loss, takes its advantages as they are (they come with zero mean and unit standard
deviation) and goes on with the Adam state of the file.
"""

from types import SimpleNamespace

import pytest
import torch

from pl_rl import MLPActorCritic
from pl_rl.algorithm.loss import Coefficients, Minibatch, PPOLoss
from pl_rl.algorithm.updates import EagerUpdater
from pl_rl.compiled.updates import CompiledUpdater
from pl_rl.pretrained import read_weights
from tests.pretrained.support import files, network_of, reference_of

CLOSE = {"rtol": 0.0, "atol": 5e-6}


class BoundedMean(MLPActorCritic):
    """The mean goes through tanh, DI-engine's ``bound_type='tanh'``."""

    def policy(self, obs):
        return super().policy(obs).tanh()

    def forward(self, obs):
        outputs, values = super().forward(obs)
        return outputs.tanh(), values


@pytest.fixture(params=files("di_engine"), ids=lambda path: path.name)
def case(request):
    """A file's network, its Adam, the reference's minibatch and what came of it there."""
    weights, reference = read_weights(request.param), reference_of(request.param)
    settings = reference["model_kwargs"]
    network_class = BoundedMean if settings.get("bound_type") == "tanh" else MLPActorCritic
    network = network_of(weights, settings.get("activation", "relu"), network_class).requires_grad_()
    update = reference["one_update"]
    expected = {key: torch.tensor(value) for key, value in update.items() if key != "hyper"}
    hyper = SimpleNamespace(**update["hyper"])
    optimizer = torch.optim.Adam(network.parameters(), hyper.lr, tuple(hyper.betas), hyper.eps, fused=True)
    for name, param in network.named_parameters():
        state = weights.optimizer[name]
        optimizer.state[param] = {**state, "step": torch.tensor(float(state["step"]))}
    return SimpleNamespace(
        network=network,
        optimizer=optimizer,
        loss=PPOLoss(network, clip_vloss=True),
        coefficients=Coefficients(
            torch.tensor(hyper.clip_ratio), hyper.value_weight, hyper.entropy_weight, hyper.clip_ratio
        ),
        max_grad_norm=hyper.grad_clip_norm,
        minibatch=Minibatch(
            obs=reference["obs"],
            actions=expected["action"],
            log_probs=old_policy(expected).log_prob(expected["action"]),
            values=expected["old_value"],
            advantages=expected["adv"],
            returns=expected["ret"],
        ),
        expected=expected,
    )


def old_policy(expected):
    """The policy that the reference compares with, in torch's own words."""
    if "old_logit" in expected:
        return torch.distributions.Categorical(logits=expected["old_logit"])
    return torch.distributions.Independent(torch.distributions.Normal(expected["old_mu"], expected["old_sigma"]), 1)


@pytest.mark.slow
@pytest.mark.parametrize("updates_class", [EagerUpdater, CompiledUpdater])
def test_an_update_moves_the_network_as_di_engine_does(case, updates_class):
    example = (case.minibatch,) if updates_class is CompiledUpdater else ()
    updates = updates_class(case.loss, case.optimizer, *example)
    with updates.iteration(case.coefficients, case.max_grad_norm):
        metrics = dict(zip(PPOLoss.METRICS, updates.gradient(case.minibatch), strict=True))
        norm = updates.step()
    updates.close()
    expected = case.expected
    for ours, theirs in [("policy_loss",) * 2, ("value_loss",) * 2, ("entropy",) * 2, ("clip_fraction", "clipfrac")]:
        torch.testing.assert_close(metrics[ours], expected[theirs], **CLOSE)
    torch.testing.assert_close(norm, expected["grad_norm_before_clip"], **CLOSE)
    with torch.no_grad():
        outputs, values = case.network(case.minibatch.obs)
    torch.testing.assert_close(values, expected["value_after"], **CLOSE)
    torch.testing.assert_close(outputs, expected["logit_after" if "logit_after" in expected else "mu_after"], **CLOSE)
    if "sigma_after" in expected:
        std = case.network.distribution.log_std.detach().exp()
        torch.testing.assert_close(std.expand_as(outputs), expected["sigma_after"], **CLOSE)


def test_the_whole_loss_is_di_engines(case):
    loss, _ = case.loss(case.minibatch, case.coefficients)
    torch.testing.assert_close(loss.detach(), case.expected["total_loss"], **CLOSE)


def test_the_kl_is_another_estimate_from_the_same_ratios(case):
    """DI-engine takes the mean of -log ratio (k1), which can be negative; ours adds the mean of ratio - 1 (k3)."""
    with torch.no_grad():
        outputs, _ = case.network(case.minibatch.obs)
        log_ratio = case.network.distribution.log_prob(outputs, case.minibatch.actions) - case.minibatch.log_probs
        _, metrics = case.loss(case.minibatch, case.coefficients)
    torch.testing.assert_close(-log_ratio.mean(), case.expected["approx_kl"], **CLOSE)
    ours = metrics[PPOLoss.METRICS.index("approx_kl")]
    torch.testing.assert_close(ours, case.expected["approx_kl"] + log_ratio.expm1().mean(), **CLOSE)
