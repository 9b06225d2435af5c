"""Gaussian distributions over continuous actions that are clipped to the space's bounds.

Shapes: ``...`` any leading dimensions, ``P`` policy outputs, ``A`` action dimensions.
"""

import math
from collections.abc import Callable

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pl_rl.networks.distributions.base import ActionDistribution, at_least_float32

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class DiagonalGaussian(ActionDistribution):
    """Continuous actions: the outputs are the means, the standard deviations are parameters.

    Actions are sampled without bounds and clipped to the space's bounds on their way into the environment;
    the log-probability is that of the unclipped action, as in https://arxiv.org/abs/1707.06347 and its
    reference implementation.
    """

    def __init__(self, space: gym.spaces.Box, log_std_init: float = 0.0) -> None:
        super().__init__()
        self.num_outputs = math.prod(space.shape)
        self.log_std = nn.Parameter(torch.full((self.num_outputs,), log_std_init))
        self._low, self._high, self._shape, self._dtype = space.low, space.high, space.shape, space.dtype

    def noise(self, batch_shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Standard normal variates ``[..., A]``."""
        return torch.randn((*batch_shape, self.num_outputs), generator=generator, device=generator.device)

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Actions ``[..., A]``."""
        return outputs + noise * self.log_std.exp()

    def mode(self, outputs: Tensor) -> Tensor:
        """The means ``[..., A]``."""
        return outputs

    def log_prob(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Sum over the action dimensions, ``[...]``."""
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        deviations = (actions - outputs) * (-self.log_std).exp()
        constant = self.log_std.sum() + 0.5 * self.num_outputs * math.log(2 * math.pi)
        return -0.5 * deviations.square().sum(-1) - constant

    def entropy(self, outputs: Tensor) -> Tensor:
        """Sum over the action dimensions, ``[...]``; the same for each observation."""
        entropy = self.log_std.sum() + 0.5 * self.num_outputs * (1 + math.log(2 * math.pi))
        return entropy.expand(outputs.shape[:-1])

    def parts(self, outputs: Tensor) -> dict[str, Tensor]:
        """``mean`` and ``log_std`` ``[..., A]``."""
        return {"mean": outputs, "log_std": self.log_std.expand_as(outputs)}

    def to_env(self, actions: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """Clipped to the space's bounds, in its shape and type."""
        shaped = actions.reshape(-1, *self._shape).astype(self._dtype)
        return np.clip(shaped, self._low, self._high)

    def mean_std(self, outputs: Callable[[], Tensor]) -> float:
        """Over the action dimensions."""
        return self.log_std.exp().mean().item()


class StateDependentGaussian(DiagonalGaussian):
    """A Gaussian whose standard deviations the network predicts: the outputs are means and log standard deviations.

    ``log_std_init`` is added to the latter, so that an untrained network starts near it.
    """

    def __init__(self, space: gym.spaces.Box, log_std_init: float = 0.0) -> None:
        super().__init__(space)
        del self.log_std
        self.num_actions, self.num_outputs = self.num_outputs, 2 * self.num_outputs
        self.log_std_init = log_std_init

    def _mean_log_std(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = outputs.split(self.num_actions, -1)
        return mean, log_std + self.log_std_init

    def noise(self, batch_shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Standard normal variates ``[..., A]``."""
        return torch.randn((*batch_shape, self.num_actions), generator=generator, device=generator.device)

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Actions ``[..., A]``."""
        mean, log_std = self._mean_log_std(outputs)
        return mean + noise * log_std.exp()

    def mode(self, outputs: Tensor) -> Tensor:
        """The means ``[..., A]``."""
        return outputs[..., : self.num_actions]

    def log_prob(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Sum over the action dimensions, ``[...]``."""
        mean, log_std = self._mean_log_std(at_least_float32(outputs))
        deviations = (actions - mean) * (-log_std).exp()
        return -(0.5 * deviations.square() + log_std + LOG_SQRT_2PI).sum(-1)

    def entropy(self, outputs: Tensor) -> Tensor:
        """Sum over the action dimensions, ``[...]``."""
        _, log_std = self._mean_log_std(at_least_float32(outputs))
        return (log_std + 0.5 + LOG_SQRT_2PI).sum(-1)

    def parts(self, outputs: Tensor) -> dict[str, Tensor]:
        """``mean`` and ``log_std`` ``[..., A]``."""
        mean, log_std = self._mean_log_std(outputs)
        return {"mean": mean, "log_std": log_std}

    def mean_std(self, outputs: Callable[[], Tensor]) -> float:
        """Over the action dimensions and the outputs."""
        return self._mean_log_std(outputs())[1].exp().mean().item()
