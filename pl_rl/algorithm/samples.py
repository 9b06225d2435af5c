"""What is learnt from a rollout: advantages and returns, in samples.

Shapes: ``T`` steps of a rollout, ``N`` environments, ``S`` parts of them.
"""

from functools import partial
from typing import cast

import torch

from pl_rl.algorithm import functional as F
from pl_rl.algorithm.loss import Minibatch
from pl_rl.algorithm.rollout import Rollout
from pl_rl.networks.normalization import ValueNormalizer
from pl_rl.networks.records import as_samples, tree_map


def samples_of(
    rollout: Rollout,
    parts: int,
    gamma: float,
    gae_lambda: float,
    sequence_length: int | None,
    normalizer: ValueNormalizer | None,
) -> Minibatch:
    """All ``T * N`` samples of a rollout with their advantages and returns, part by part.

    Args:
        rollout: ``[T, N]``.
        parts: ``S``, equal blocks of environments.
        gamma: Discount factor.
        gae_lambda: Weight of longer returns in the advantages.
        sequence_length: Of the sequences that a network with a memory learns from.
        normalizer: Gives values in units of the rewards for those that the network predicts, if it predicts others.
    """
    samples = []
    for part in rollout.split(parts):
        values, next_values = part.values, part.next_values
        if normalizer is not None:
            values, next_values = normalizer.inverse(values), normalizer.inverse(next_values)
        ended = part.terminated, part.truncated
        advantages = F.gae(part.rewards, values, next_values, *ended, gamma, gae_lambda)
        per_step = Minibatch(part.obs, part.actions, part.log_probs, values, advantages, advantages + values)
        samples.append(tree_map(partial(as_samples, length=sequence_length), per_step))
    return cast(Minibatch, samples[0] if parts == 1 else tree_map(lambda *fields: torch.cat(fields), *samples))
