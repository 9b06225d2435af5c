"""Action selection during a rollout.

Shapes: ``T`` steps of a rollout, ``N`` environments, ``P`` outputs of the policy.
"""

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pl_rl.networks.actor_critic import ActorCritic
from pl_rl.networks.distributions import to_numpy
from pl_rl.networks.records import Observations, tree_map, unbind


class ActionSelector(ABC):
    """Selects the actions of one rollout after another; the network is in evaluation mode.

    Args:
        network: The policy and the value function; read at each step.

    Attributes:
        state: Of the network's memory ``[N, S]`` after the latest step; ``None`` if it has none.
    """

    def __init__(self, network: ActorCritic) -> None:
        self.network = network
        self.state: Tensor | None = None

    @abstractmethod
    def begin(self, obs: Observations, noise: Tensor) -> None:
        """Begin a rollout.

        Args:
            obs: ``[T, N, ...]``, filled in step by step; what the network takes.
            noise: ``[T, N, ...]``, random numbers for :meth:`ActionDistribution.sample`.
        """

    @abstractmethod
    def act(self, t: int) -> npt.NDArray[np.generic]:
        """Actions ``[N]`` or ``[N, A]`` of step ``t``, whose observations have been filled in; not to be written to."""

    @abstractmethod
    def decisions(self) -> tuple[Tensor, Tensor, Tensor]:
        """Policy outputs ``[T, N, P]``, values ``[T, N]`` and actions ``[T, N, ...]`` of the whole rollout."""


class EagerActionSelector(ActionSelector):
    """Calls the network as a module; for any network and device."""

    def begin(self, obs: Observations, noise: Tensor) -> None:
        """Unbind all rows at once, which is cheaper than indexing at each step."""
        device = next(self.network.parameters()).device
        self._obs, self._noise = unbind(obs), noise.to(device).unbind()
        self._decided: list[tuple[Tensor, Tensor, Tensor]] = []
        self._device = device

    def act(self, t: int) -> npt.NDArray[np.generic]:
        """One forward pass and one sample."""
        outputs, values, self.state = self.network.step(tree_map(lambda row: row.to(self._device), self._obs[t]))
        actions = self.network.distribution.sample(outputs, self._noise[t])
        self._decided.append((outputs, values, actions))
        return to_numpy(actions)

    def decisions(self) -> tuple[Tensor, Tensor, Tensor]:
        """The steps, stacked."""
        outputs, values, actions = (torch.stack(tensors) for tensors in zip(*self._decided, strict=True))
        return outputs, values, actions
