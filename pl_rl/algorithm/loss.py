"""The PPO loss of a minibatch.

Shapes: ``B`` samples of a minibatch.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pl_rl.algorithm import functional as F
from pl_rl.networks.actor_critic import ActorCritic
from pl_rl.networks.normalization import ValueNormalizer
from pl_rl.networks.records import Observations


class Minibatch(NamedTuple):
    """Samples of a rollout, flattened over time and environments.

    For a network with a memory ``B`` counts sequences, and each shape has their length ``L`` after ``B``.
    """

    obs: Observations
    """``[B, *observation_space.shape]``, or a dictionary of such tensors."""
    actions: Tensor
    """``[B]`` or ``[B, A]``"""
    log_probs: Tensor
    """``[B]``, log pi_old(a|s)."""
    values: Tensor
    """``[B]``, as predicted when the samples were collected."""
    advantages: Tensor
    """``[B]``"""
    returns: Tensor
    """``[B]``, targets of the value function."""

    def as_predicted_by(self, normalizer: ValueNormalizer) -> "Minibatch":
        """The same with values and returns as a value function predicts them."""
        return self._replace(values=normalizer(self.values), returns=normalizer(self.returns))


class Coefficients(NamedTuple):
    """Coefficients of the loss, scalars; they may change between iterations."""

    clip_coef: float | Tensor
    """Half-width of the clipping interval of the probability ratio."""
    vf_coef: float | Tensor
    """Weight of the value loss."""
    ent_coef: float | Tensor
    """Weight of the entropy bonus."""
    vf_clip_coef: float | Tensor
    """Largest change of a value that counts, where the value loss is clipped."""

    def on(self, device: torch.device) -> "Coefficients":
        """Those that are clipped by as tensors, as a loss takes them."""
        clip_coef, vf_clip_coef = torch.tensor([float(self.clip_coef), float(self.vf_clip_coef)], device=device)
        return self._replace(clip_coef=clip_coef, vf_clip_coef=vf_clip_coef)


class PPOLoss(nn.Module):
    """Policy loss, value loss and entropy bonus of a network, https://arxiv.org/abs/1707.06347 equation 9.

    Args:
        network: The policy and the value function.
        clip_vloss: Clip the value loss too, by a coefficient of its own.
    """

    METRICS = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction")

    def __init__(self, network: ActorCritic, clip_vloss: bool) -> None:
        super().__init__()
        self.network = network
        self.clip_vloss = clip_vloss

    def forward(
        self, minibatch: Minibatch, coefficients: Coefficients, said: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The loss, a scalar, and ``METRICS``, ``[5]`` without gradient.

        Args:
            minibatch: What is learnt from.
            coefficients: Of the terms.
            said: Policy outputs and values, where the network has computed them already.
        """
        clip_coef, vf_coef, ent_coef, vf_clip_coef = coefficients
        outputs, values = self.network(minibatch.obs) if said is None else said
        values = values.to(minibatch.values.dtype)
        distribution = self.network.distribution
        log_ratio = distribution.log_prob(outputs, minibatch.actions) - minibatch.log_probs
        ratio = log_ratio.exp()
        policy_loss = F.clipped_surrogate_loss(ratio, minibatch.advantages, clip_coef)
        if self.clip_vloss:
            value_loss = F.clipped_value_loss(values, minibatch.values, minibatch.returns, vf_clip_coef)
        else:
            value_loss = F.value_loss(values, minibatch.returns)
        entropy = distribution.entropy(outputs).mean()
        loss = policy_loss + vf_coef * value_loss - ent_coef * entropy
        with torch.no_grad():
            approx_kl, clip_fraction = F.approx_kl(log_ratio), F.clip_fraction(ratio, clip_coef)
            metrics = torch.stack([policy_loss, value_loss, entropy, approx_kl, clip_fraction])
        return loss, metrics.detach()


def mean_losses(metrics: Tensor, coefficients: Coefficients) -> dict[str, Tensor]:
    """``PPOLoss.METRICS`` and the loss, each a scalar, over the updates of ``metrics`` ``[U, 5]``."""
    losses = dict(zip(PPOLoss.METRICS, metrics.mean(0), strict=True))
    policy_loss, value_loss, entropy = (losses[name] for name in ("policy_loss", "value_loss", "entropy"))
    return {**losses, "loss": policy_loss + coefficients.vf_coef * value_loss - coefficients.ent_coef * entropy}
