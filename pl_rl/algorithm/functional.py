"""The mathematics of PPO: tensors in, tensors out.

Shapes: ``T`` steps of a rollout, ``N`` environments, ``B`` samples of a minibatch.
"""

import torch
from torch import Tensor


def gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Generalized advantage estimation, https://arxiv.org/abs/1506.02438 equation 16.

    A terminated episode has no future value. A truncated one (a time limit) has: the value of its true final
    observation, which is what ``next_values`` holds there; its advantages do not reach into the next episode.

    Args:
        rewards: ``[T, N]``.
        values: ``[T, N]``, V(s_t).
        next_values: ``[T, N]``, V of the state that the step led to, before any reset.
        terminated: ``[T, N]`` bool.
        truncated: ``[T, N]`` bool.
        gamma: Discount factor.
        gae_lambda: Weight of longer returns: 0 is one-step TD, 1 is Monte Carlo.

    Returns:
        Advantages ``[T, N]``; add ``values`` for the returns that the critic learns.
    """
    deltas = rewards + gamma * next_values * ~terminated - values
    decay = gamma * gae_lambda * ~(terminated | truncated)
    # A_t = delta_t + decay_t A_{t+1} as a parallel scan (https://www.cs.cmu.edu/~guyb/papers/Ble93.pdf): each of the
    # log2(T) rounds doubles the number of steps that are summed. A loop over t would call T small operations.
    advantages, reach = deltas, 1
    while reach < len(deltas):
        further = torch.addcmul(advantages[:-reach], decay[:-reach], advantages[reach:])
        advantages = torch.cat([further, advantages[-reach:]])
        decay = torch.cat([decay[:-reach] * decay[reach:], decay[-reach:]])
        reach *= 2
    return advantages


def normalize(advantages: Tensor) -> Tensor:
    """Zero mean and unit (sample) standard deviation over each minibatch, ``[..., B]``, ``B >= 2``."""
    std, mean = torch.std_mean(advantages, -1, keepdim=True)
    return (advantages - mean) / (std + 1e-8)


def clipped_surrogate_loss(ratio: Tensor, advantages: Tensor, clip_coef: float | Tensor) -> Tensor:
    """The clipped policy objective, https://arxiv.org/abs/1707.06347 equation 7, as a loss.

    Args:
        ratio: ``[B]``, pi(a|s) / pi_old(a|s).
        advantages: ``[B]``.
        clip_coef: Half-width of the interval round 1 in which the ratio may improve the objective.

    Returns:
        Scalar.
    """
    # Torch declares two numbers or two tensors, not either.
    clipped = ratio.clamp(1 - clip_coef, 1 + clip_coef)  # type: ignore[arg-type]
    return -torch.minimum(advantages * ratio, advantages * clipped).mean()


def value_loss(values: Tensor, returns: Tensor) -> Tensor:
    """Half the mean squared error of ``values`` ``[B]`` against ``returns`` ``[B]``; scalar."""
    return 0.5 * (values - returns).square().mean()


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_coef: float | Tensor) -> Tensor:
    """Value loss that a change beyond ``clip_coef`` from the old value cannot lower; scalar.

    Source: implementation detail 9 of https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/

    Args:
        values: ``[B]``, predicted by the network that is being trained.
        old_values: ``[B]``, predicted when the samples were collected.
        returns: ``[B]``.
        clip_coef: Largest change that counts.
    """
    # As above.
    clipped = old_values + (values - old_values).clamp(-clip_coef, clip_coef)  # type: ignore[arg-type]
    return 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square()).mean()


def approx_kl(log_ratio: Tensor) -> Tensor:
    """KL(pi_old || pi) estimated from samples of pi_old: unbiased, never negative.

    Source: estimator k3 of http://joschu.net/blog/kl-approx.html

    Args:
        log_ratio: ``[B]``, log pi(a|s) - log pi_old(a|s).
    """
    return (log_ratio.exp() - 1 - log_ratio).mean()


def clip_fraction(ratio: Tensor, clip_coef: float | Tensor) -> Tensor:
    """Share of the ratios ``[B]`` outside ``1 +- clip_coef``; scalar between 0 and 1."""
    return ((ratio - 1).abs() > clip_coef).float().mean()


def explained_variance(values: Tensor, returns: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns): 1 is a perfect critic, 0 one no better than a constant.

    NaN where the returns do not vary, as nothing can be explained there.
    """
    variance = returns.var()
    return torch.where(variance > 0, 1 - (returns - values).var() / variance, torch.nan)
