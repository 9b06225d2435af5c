"""Distributions over continuous actions within the bounds of their space.

A rollout keeps actions as they were sampled, before they are scaled to the bounds; log-probabilities and entropies are
those of the scaled actions.

Shapes: ``...`` any leading dimensions, ``P`` policy outputs, ``A`` action dimensions, ``K`` nodes or proposals.
"""

import math
from abc import abstractmethod
from collections.abc import Callable

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import softplus

from pl_rl.errors import UsageError
from pl_rl.networks.distributions.base import ActionDistribution, at_least_float32
from pl_rl.networks.distributions.gaussian import DiagonalGaussian
from pl_rl.networks.distributions.special import digamma, log_gamma

# Of a quadrature whose error is below 1e-6 for standard deviations up to 1.
NODES = 24
# A proposal for a gamma variate is accepted with a probability of 0.95 or more, so that all of them are rejected once
# in 10^10 samples.
PROPOSALS = 8
SMALLEST = 1e-6


class BoundedDistribution(ActionDistribution):
    """Base class of distributions over actions between finite bounds."""

    def _set_bounds(self, space: gym.spaces.Box) -> None:
        """Remember the bounds.

        Raises:
            UsageError: If there is not a finite lower and a larger finite upper one of each action.
        """
        if not (space.is_bounded() and (space.low < space.high).all()):
            raise UsageError(
                f"{type(self).__name__} needs a finite lower and a larger finite upper bound of each action, not "
                f"{space}; use --model.network.init_args.distribution gaussian"
            )
        self._low, self._high, self._shape, self._dtype = space.low, space.high, space.shape, space.dtype
        self._range = space.high.astype(np.float64).reshape(-1) - space.low.reshape(-1)
        self._log_range = float(np.log(self._range).sum())

    @abstractmethod
    def unit(self, actions: Tensor) -> Tensor:
        """Sampled actions as shares of the way from the lower to the upper bound, from 0 to 1."""

    def to_env(self, actions: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """Scaled to the space's bounds, in its shape and type."""
        unit = self.unit(torch.from_numpy(actions)).numpy().reshape(-1, *self._shape).astype(self._dtype)
        scaled = self._low + (self._high - self._low) * unit
        return np.clip(scaled, self._low, self._high)  # rounding may pass a bound


class SquashedGaussian(BoundedDistribution, DiagonalGaussian):
    """A Gaussian whose samples ``u`` are squashed to the bounds by tanh; the outputs are the means of ``u``.

    Rollouts keep ``u``, so that no action is too close to a bound for its log-probability.
    """

    _nodes: Tensor
    _weights: Tensor

    def __init__(self, space: gym.spaces.Box, log_std_init: float = 0.0) -> None:
        super().__init__(space, log_std_init)
        self._set_bounds(space)
        nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
        self.register_buffer("_nodes", torch.tensor(nodes, dtype=torch.float32), persistent=False)
        self.register_buffer("_weights", torch.tensor(weights / weights.sum(), dtype=torch.float32), persistent=False)

    def unit(self, actions: Tensor) -> Tensor:
        """(1 + tanh u) / 2."""
        return (2 * actions).sigmoid()

    def mode(self, outputs: Tensor) -> Tensor:
        """The means ``[..., A]`` of ``u``, at the median of the actions."""
        return outputs

    def log_prob(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Sum over the action dimensions, ``[...]``."""
        return super().log_prob(outputs, actions) - _log_slope(actions).sum(-1) - self._log_range

    def entropy(self, outputs: Tensor) -> Tensor:
        """Sum over the action dimensions, ``[...]``: the Gaussian's, and the expected log-determinant of the squashing.

        The latter has no closed form; it is integrated by Gauss-Hermite quadrature,
        https://en.wikipedia.org/wiki/Gauss%E2%80%93Hermite_quadrature.
        """
        mean, std = at_least_float32(outputs).unsqueeze(-1), self.log_std.exp().unsqueeze(-1)
        slopes = _log_slope(mean + std * self._nodes) * self._weights
        return super().entropy(outputs) + slopes.sum((-2, -1)) + self._log_range


class Beta(BoundedDistribution):
    """A beta distribution with one maximum for each action, scaled to the bounds, https://proceedings.mlr.press/v70/chou17a.html.

    The outputs become ``alpha - 1`` and ``beta - 1`` by softplus. Rollouts keep actions as shares between 0 and 1.
    """

    def __init__(self, space: gym.spaces.Box) -> None:
        super().__init__()
        self._set_bounds(space)
        self.num_actions = len(self._range)
        self.num_outputs = 2 * self.num_actions

    def unit(self, actions: Tensor) -> Tensor:
        """The actions themselves."""
        return actions

    def noise(self, batch_shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Standard normal variates and logarithms of uniform ones, ``[..., 2, K, 2A]``."""
        shape, device = (*batch_shape, PROPOSALS, 2 * self.num_actions), generator.device
        normal = torch.randn(shape, generator=generator, device=device)
        exponential = torch.empty(shape, device=device).exponential_(generator=generator)
        return torch.stack([normal, -exponential], -3)

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Shares ``[..., A]``, of two gamma variates each."""
        alpha, beta = _halves(_gamma_sample(1 + _excess(outputs), *noise.unbind(-3)))
        return (alpha / (alpha + beta)).clamp(SMALLEST, 1 - SMALLEST)

    def mode(self, outputs: Tensor) -> Tensor:
        """Shares ``[..., A]``."""
        alpha, beta = _halves(_excess(outputs))
        return alpha / (alpha + beta)

    def log_prob(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Sum over the action dimensions, ``[...]``."""
        alpha, beta = _halves(_excess(outputs))
        terms = alpha * actions.log() + beta * (1 - actions).log() - _log_beta(1 + alpha, 1 + beta)
        return terms.sum(-1) - self._log_range

    def entropy(self, outputs: Tensor) -> Tensor:
        """Sum over the action dimensions, ``[...]``."""
        alpha, beta = _halves(_excess(outputs))
        terms = _log_beta(1 + alpha, 1 + beta) - alpha * digamma(1 + alpha) - beta * digamma(1 + beta)
        return (terms + (alpha + beta) * digamma(2 + alpha + beta)).sum(-1) + self._log_range

    def parts(self, outputs: Tensor) -> dict[str, Tensor]:
        """``alpha`` and ``beta`` ``[..., A]``, of shares."""
        alpha, beta = _halves(1 + _excess(outputs))
        return {"alpha": alpha, "beta": beta}

    def mean_std(self, outputs: Callable[[], Tensor]) -> float:
        """Of the scaled actions, over the action dimensions and the outputs."""
        alpha, beta = self.parts(outputs()).values()
        total = alpha + beta
        std = (alpha * beta / (total + 1)).sqrt() / total
        return (std.cpu() * torch.from_numpy(self._range)).mean().item()


def _log_slope(u: Tensor) -> Tensor:
    """Logarithm of the derivative of ``(1 + tanh u) / 2``, without a logarithm of zero far out."""
    return math.log(2) - softplus(2 * u) - softplus(-2 * u)


def _excess(outputs: Tensor) -> Tensor:
    """``alpha - 1`` and ``beta - 1``, ``[..., P]``, not both zero, so that there is a mode."""
    return softplus(at_least_float32(outputs)) + SMALLEST


def _halves(tensor: Tensor) -> tuple[Tensor, Tensor]:
    one, other = tensor.chunk(2, -1)
    return one, other


def _log_beta(alpha: Tensor, beta: Tensor) -> Tensor:
    return log_gamma(alpha) + log_gamma(beta) - log_gamma(alpha + beta)


def _gamma_sample(concentration: Tensor, normal: Tensor, log_uniform: Tensor) -> Tensor:
    """Gamma variates by rejection, https://dl.acm.org/doi/10.1145/358407.358414: the first proposal that is accepted.

    Args:
        concentration: ``[..., P]``, 1 or more.
        normal: ``[..., K, P]``
        log_uniform: ``[..., K, P]``
    """
    d = concentration - 1 / 3
    variates = torch.ones_like(d)
    for x, log_u in zip(reversed(normal.unbind(-2)), reversed(log_uniform.unbind(-2)), strict=True):
        root = 1 + x / (9 * d).sqrt()
        cube = root * root * root
        accepted = log_u < 0.5 * x * x + d * (1 - cube + cube.clamp(min=SMALLEST).log())
        variates = torch.where(accepted & (cube > SMALLEST), cube, variates)
    return d * variates
