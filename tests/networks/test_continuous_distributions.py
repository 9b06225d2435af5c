"""Log-probability, entropy and KL divergence of continuous distributions, by numerical integration."""

from functools import partial

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

from pl_rl import CNNActorCritic, MLPActorCritic, UsageError
from pl_rl.algorithm.functional import approx_kl
from pl_rl.networks.distributions import make_distribution, to_numpy
from pl_rl.networks.distributions.special import digamma, log_gamma
from tests.support import MemoryLogger, fit, small_ppo

LOW, HIGH = -2.0, 1.0
SPACE = Box(LOW, HIGH, (1,))
# The policy outputs of two distributions for each kind.
PAIRS = {
    "gaussian": ([0.3], [-0.2]),
    "state_dependent_gaussian": ([0.3, -0.5], [-0.2, 0.4]),
    "squashed_gaussian": ([0.8], [-0.2]),
    "beta": ([0.3, 1.5], [-1.0, 0.5]),
    "gsde": ([0.3, 0.5, -1.2], [-0.2, 0.1, 0.8]),
}


def pair_of(kind):
    distribution = make_distribution(SPACE, log_std_init=-0.3, continuous=kind)
    distribution.output_layer(2)
    distribution.double().requires_grad_(False)
    return distribution, *(torch.tensor([outputs], dtype=torch.float64) for outputs in PAIRS[kind])


def grid_of(distribution, count=200_001):
    """Sampled actions ``[count, 1]``, and the length that each stands for in the space where it is integrated."""
    if isinstance(distribution, type(make_distribution(SPACE, continuous="beta"))):
        edges = torch.linspace(0, 1, count + 1, dtype=torch.float64)
    else:
        edges = torch.linspace(-12, 12, count + 1, dtype=torch.float64)
    actions, sent = (edges[1:] + edges[:-1])[:, None] / 2, edges
    if hasattr(distribution, "unit"):
        sent = LOW + (HIGH - LOW) * distribution.unit(edges)
    return actions, sent.diff()


@pytest.mark.parametrize("kind", PAIRS)
def test_densities_are_those_of_the_actions_that_are_sent_and_entropies_their_integrals(kind):
    distribution, outputs, _ = pair_of(kind)
    actions, lengths = grid_of(distribution)
    log_density = distribution.log_prob(outputs, actions)
    density = log_density.exp()
    assert float((density * lengths).sum()) == pytest.approx(1, abs=1e-6)
    entropy = -(density * log_density * lengths).nansum()
    assert distribution.entropy(outputs).item() == pytest.approx(entropy.item(), abs=1e-5)


@pytest.mark.parametrize("kind", PAIRS)
def test_the_measured_divergence_is_that_between_the_densities(kind):
    """KL(p || q) by the estimator that PPO logs, its expectation integrated over p."""
    distribution, p_outputs, q_outputs = pair_of(kind)
    actions, lengths = grid_of(distribution)
    log_p, log_q = (distribution.log_prob(outputs, actions) for outputs in (p_outputs, q_outputs))
    weights = log_p.exp() * lengths
    estimates = torch.stack([approx_kl(log_ratio) for log_ratio in (log_q - log_p)[::100]])
    parameters = [distribution.parts(outputs).values() for outputs in (p_outputs, q_outputs)]
    if kind == "beta":
        p, q = (torch.distributions.Beta(*both) for both in parameters)
    else:  # squashing changes no divergence
        p, q = (torch.distributions.Normal(mean, log_std.exp()) for mean, log_std in parameters)
    expected = torch.distributions.kl_divergence(p, q).item()
    assert (weights * (log_p - log_q)).nansum().item() == pytest.approx(expected, abs=1e-5)
    integral = (weights[::100] * estimates).nansum().item() * 100
    assert integral == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("kind", PAIRS)
def test_samples_are_distributed_as_the_density_says(kind):
    distribution, outputs, _ = pair_of(kind)
    noise = distribution.noise((20_000,), torch.Generator().manual_seed(0)).double()
    samples = distribution.sample(outputs.expand(20_000, -1), noise).flatten().sort().values
    actions, lengths = grid_of(distribution)
    below = (distribution.log_prob(outputs, actions).exp() * lengths).nan_to_num().cumsum(0)
    expected = below[torch.searchsorted(actions.flatten(), samples).clamp(max=len(below) - 1)]
    # Kolmogorov-Smirnov: 1.95 / sqrt(20,000) is exceeded once in a thousand draws.
    assert (expected - torch.linspace(0, 1, 20_000)).abs().max() < 0.0138


@pytest.mark.parametrize("kind", PAIRS)
def test_gradients_of_log_probability_and_entropy_are_right(kind):
    distribution, outputs, _ = pair_of(kind)
    action = distribution.sample(outputs, distribution.noise((1,), torch.Generator().manual_seed(1)).double()).detach()
    outputs.requires_grad_()
    assert torch.autograd.gradcheck(lambda given: distribution.log_prob(given, action), outputs)
    assert torch.autograd.gradcheck(distribution.entropy, outputs)


def test_the_gamma_function_and_its_derivatives_are_torchs():
    x = torch.logspace(0, 5, 1000, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(log_gamma(x), torch.lgamma(x), atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(digamma(x), torch.digamma(x), atol=1e-7, rtol=0)
    (slope,) = torch.autograd.grad(digamma(x).sum(), x)
    torch.testing.assert_close(slope, torch.polygamma(1, x), atol=1e-7, rtol=0)


@pytest.mark.parametrize("kind", ["squashed_gaussian", "beta"])
def test_actions_are_scaled_to_the_bounds_and_never_beyond(kind):
    space = Box(np.array([-1.0, 0.0], np.float32), np.array([3.0, 0.1], np.float32))
    distribution = make_distribution(space, continuous=kind)
    outputs = torch.linspace(-40, 40, 41)[:, None] * torch.ones(distribution.num_outputs)
    noise = distribution.noise((41,), torch.Generator().manual_seed(0))
    sampled = distribution.sample(outputs, noise).detach()
    assert all(space.contains(action) for action in distribution.to_env(to_numpy(sampled)))
    assert distribution.log_prob(outputs, sampled).isfinite().all()
    assert distribution.entropy(outputs).isfinite().all()
    middle = distribution.to_env(to_numpy(distribution.mode(torch.zeros(1, distribution.num_outputs))))
    np.testing.assert_allclose(middle, [[1.0, 0.05]], atol=1e-6)


def test_the_mode_of_a_beta_distribution_has_the_highest_density():
    distribution, outputs, _ = pair_of("beta")
    actions, _ = grid_of(distribution, 10_001)
    best = actions[distribution.log_prob(outputs, actions).argmax()]
    torch.testing.assert_close(distribution.mode(outputs)[0], best, atol=1e-4, rtol=0)
    assert distribution.mode(torch.full((1, 2), -200.0)).isfinite().all()


@pytest.mark.parametrize("kind", ["squashed_gaussian", "beta"])
def test_an_action_without_bounds_is_refused_with_a_way_out(kind):
    for space in (Box(-np.inf, 1.0, (2,)), Box(0.0, 0.0, (1,))):
        with pytest.raises(UsageError, match=r"needs a finite lower and a larger.*distribution gaussian"):
            make_distribution(space, continuous=kind)


@pytest.mark.parametrize("space", [Discrete(2), MultiDiscrete([2, 3]), MultiBinary(2)])
def test_a_distribution_of_continuous_actions_is_refused_for_others(space):
    with pytest.raises(UsageError, match=r"distribution=beta needs continuous actions, not .*; leave it out"):
        MLPActorCritic(Box(-1.0, 1.0, (2,)), space, distribution="beta")


def test_an_unknown_distribution_is_refused_with_those_that_there_are():
    with pytest.raises(UsageError, match=r"distribution='cauchy' is unknown; use gaussian, .*, beta, gsde"):
        MLPActorCritic(Box(-1.0, 1.0, (2,)), SPACE, distribution="cauchy")


@pytest.mark.parametrize("kind", [kind for kind in PAIRS if kind != "gaussian"])
def test_a_bounded_mean_needs_the_plain_gaussian(kind):
    with pytest.raises(UsageError, match=f"tanh_mean=true needs distribution=gaussian, not {kind}"):
        MLPActorCritic(Box(-1.0, 1.0, (2,)), SPACE, tanh_mean=True, distribution=kind)


@pytest.mark.parametrize("kind", PAIRS)
def test_images_may_lead_to_each_of_them(kind):
    network = CNNActorCritic(Box(0, 255, (36, 36, 3), np.uint8), SPACE, distribution=kind)
    outputs, _ = network(torch.zeros(2, 36, 36, 3, dtype=torch.uint8))
    assert outputs.shape == (2, network.distribution.num_outputs)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("gaussian", 0.5), ("state_dependent_gaussian", 0.5), ("squashed_gaussian", 0.5), ("beta", None)],
)
def test_the_mean_deviation_is_logged(kind, expected):
    logger = MemoryLogger()
    network = partial(MLPActorCritic, distribution=kind, log_std_init=float(np.log(0.5)))
    model = small_ppo(env="Pendulum-v1", network=network, learning_rate=1e-9)
    fit(model, logger=logger, max_epochs=1, log_every_n_steps=1)
    (std,) = logger.values("policy/std")
    if expected is None:  # of a Beta(1 + log 2, 1 + log 2) between -2 and 2
        expected = torch.distributions.Beta(*2 * [1 + torch.tensor(2.0).log()]).stddev.item() * 4
    assert std == pytest.approx(expected, rel=0.02)
