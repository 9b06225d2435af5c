"""What the steps of a rollout led to, and what it is worth.

Shapes: ``T`` steps of a rollout, ``N`` environments, ``F`` episodes that were truncated in it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pl_rl.networks.actor_critic import ActorCritic
from pl_rl.networks.records import Observations, as_samples, as_steps, leaves, tree_map


class Following(NamedTuple):
    """Observations of which a rollout has the value, but which are none of its steps."""

    seen: Observations
    """``[N + F, ...]``, as the network sees them: those after the last step, then the final ones of episodes."""
    places: list[tuple[int, int]]
    """Step and environment of each final one."""

    def next_values(self, network: ActorCritic, values: Tensor) -> tuple[Tensor, Tensor]:
        """Values and next values, both ``[T, N]``, in float32 at least, whatever the network computes in.

        Args:
            network: Values what follows, in the mode that it is in.
            values: ``[T, N]``, of the steps.
        """
        last_values, final_values = network.value(self.seen).split([values.shape[1], len(self.places)])
        every_value = torch.cat([values, last_values.unsqueeze(0)])
        every_value = every_value.to(torch.promote_types(every_value.dtype, torch.float32))
        next_values = every_value[1:].clone()
        for step_and_env, final_value in zip(self.places, final_values, strict=True):
            next_values[step_and_env] = final_value
        return every_value[:-1], next_values


def values_of_steps(network: ActorCritic, obs: Observations) -> Tensor:
    """Values ``[T, N]`` of a rollout's observations by the present network, in the mode that it is in.

    One with a memory computes them in the sequences that it learns from.
    """
    length = network.sequence_length
    steps = len(leaves(obs)[0])
    return as_steps(network.value(tree_map(lambda field: as_samples(field, length), obs)), steps, length)
