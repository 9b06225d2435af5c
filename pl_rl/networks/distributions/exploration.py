"""Generalized state-dependent exploration (gSDE), https://arxiv.org/abs/2005.05719.

Shapes: ``...`` any leading dimensions, ``A`` action dimensions, ``D`` features, ``P = A + D`` policy outputs; ``T``
steps of ``N`` environments.
"""

from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from pl_rl.errors import UsageError
from pl_rl.networks.distributions.base import at_least_float32
from pl_rl.networks.distributions.gaussian import StateDependentGaussian
from pl_rl.networks.layers import orthogonal

# Stable-Baselines3's, so that a feature of zero leaves a deviation.
SMALLEST_VARIANCE = 1e-6


class StateDependentExploration(StateDependentGaussian):
    """A Gaussian whose noise is linear in the policy's last hidden layer, by a matrix that stays for several steps.

    The outputs are the means and the features. Deviations ``[D, A]`` of the matrix are parameters; their gradient does
    not reach the features. A rollout draws its matrices as it begins, so that none outlives it.

    Args:
        space: Of the actions.
        log_std_init: Initial log standard deviation of the matrix.
        sde_sample_freq: Env steps that a matrix stays for; -1 for a whole rollout.

    Raises:
        UsageError: If a matrix would stay for no step.
    """

    def __init__(self, space: gym.spaces.Box, log_std_init: float = 0.0, sde_sample_freq: int = -1) -> None:
        super().__init__(space, log_std_init)
        del self.num_outputs  # it is not known before output_layer
        if sde_sample_freq < 1 and sde_sample_freq != -1:
            raise UsageError(f"sde_sample_freq={sde_sample_freq} must be at least 1, or -1 for once a rollout")
        self.sde_sample_freq = sde_sample_freq

    def __getattr__(self, name: str) -> Any:
        if name == "num_outputs":
            raise UsageError(
                "distribution=gsde has as many outputs as the policy's last hidden layer has units; make its output "
                "layer with self.distribution.output_layer(units)"
            )
        return super().__getattr__(name)

    def output_layer(self, features: int, gain: float = 0.01) -> nn.Module:
        """The layer of the means, which also passes on its input."""
        self.num_outputs = self.num_actions + features
        self.log_std = nn.Parameter(torch.full((features, self.num_actions), self.log_std_init))
        return orthogonal(_MeanAndFeatures(features, self.num_actions), gain)

    def noise(self, batch_shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Standard normal matrices ``[..., D, A]``; of ``[T, N]`` the same for some steps of each environment."""
        *steps, count = batch_shape
        shape, device = (count, *self.log_std.shape), generator.device
        if not steps:
            return torch.randn(shape, generator=generator, device=device)
        length = steps[0] if self.sde_sample_freq == -1 else self.sde_sample_freq
        matrices = torch.randn((-(-steps[0] // length), *shape), generator=generator, device=device)
        return matrices.repeat_interleave(length, 0)[: steps[0]]

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Actions ``[..., A]``."""
        mean, features = self._mean_features(outputs)
        return mean + (features.unsqueeze(-1) * noise * self.log_std.exp()).sum(-2)

    def _mean_features(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        return outputs[..., : self.num_actions], outputs[..., self.num_actions :]

    def _mean_log_std(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        mean, features = self._mean_features(outputs)
        # No product of matrices, which mixed precision would make of rounded numbers.
        variances = features.square().unsqueeze(-1) * (2 * at_least_float32(self.log_std)).exp()
        return mean, 0.5 * (variances.sum(-2) + SMALLEST_VARIANCE).log()


class _MeanAndFeatures(nn.Linear):
    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([super().forward(features), features.detach()], -1)
