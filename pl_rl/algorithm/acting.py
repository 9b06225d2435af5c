"""Choosing actions during a rollout.

Shapes: ``T`` steps of a rollout, ``N`` environments, ``P`` outputs of the policy.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pl_rl.networks.actor_critic import ActorCritic


class ActionSelector(ABC):
    """A network's decisions over one rollout after another, in evaluation mode.

    Args:
        network: The policy and the value function; read at each step.
    """

    def __init__(self, network: ActorCritic) -> None:
        self.network = network

    @abstractmethod
    def begin(self, obs: Tensor, noise: Tensor) -> None:
        """A rollout begins: the observations ``[T, N, ...]``, still to be filled in, and the noise ``[T, N, ...]``."""

    @abstractmethod
    def act(self, t: int) -> Tensor:
        """Actions ``[N]`` or ``[N, A]`` of step ``t``, whose observations are there by now."""

    @abstractmethod
    def decisions(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of the whole rollout: the policy's outputs ``[T, N, P]``, values ``[T, N]`` and actions ``[T, N, ...]``."""


class EagerActionSelector(ActionSelector):
    """Any network, any device."""

    def begin(self, obs: Tensor, noise: Tensor) -> None:
        """Take all rows out at once, which is cheaper than indexing at each step."""
        device = next(self.network.parameters()).device
        self._obs, self._noise = obs.unbind(), noise.to(device).unbind()
        self._decided: list[tuple[Tensor, Tensor, Tensor]] = []
        self._device = device

    def act(self, t: int) -> Tensor:
        """By the modules of the network."""
        outputs, values = self.network(self._obs[t].to(self._device))
        actions = self.network.distribution.sample(outputs, self._noise[t])
        self._decided.append((outputs, values, actions))
        return actions

    def decisions(self) -> tuple[Tensor, Tensor, Tensor]:
        """Steps stacked."""
        outputs, values, actions = (torch.stack(tensors) for tensors in zip(*self._decided, strict=True))
        return outputs, values, actions
