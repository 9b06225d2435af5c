"""The interface of action distributions, parametrized by the outputs of a policy network.

A distribution is a module that holds parameters which do not depend on the observation, if it has any. Sampling takes
its random numbers as an argument: a rollout draws all of them in one call.

Shapes: ``...`` any leading dimensions, ``P`` policy outputs, ``A`` action dimensions.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pl_rl.networks.layers import linear


class ActionDistribution(nn.Module, ABC):
    """A distribution over actions for each of the policy outputs ``[..., P]``."""

    num_outputs: int

    def output_layer(self, features: int, gain: float = 0.01) -> nn.Module:
        """The last layer of a policy, from hidden features ``[..., features]`` to outputs; made once."""
        return linear(features, self.num_outputs, gain)

    @abstractmethod
    def noise(self, batch_shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """The random numbers that ``sample`` needs for a batch of this shape, on the generator's device."""

    @abstractmethod
    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Actions ``[...]`` (one discrete choice) or ``[..., A]``."""

    @abstractmethod
    def mode(self, outputs: Tensor) -> Tensor:
        """The most probable actions."""

    @abstractmethod
    def log_prob(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Log-probabilities ``[...]`` of the actions."""

    @abstractmethod
    def entropy(self, outputs: Tensor) -> Tensor:
        """Entropies ``[...]`` in nats."""

    @abstractmethod
    def to_env(self, actions: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """The actions as the environment takes them, ``[N, *action_space.shape]``."""

    def parts(self, outputs: Tensor) -> dict[str, Tensor]:
        """The distribution's parameters by name: ``logits`` ``[..., P]``, or of continuous actions, ``[..., A]``."""
        return {"logits": outputs}

    def mean_std(self, outputs: Callable[[], Tensor]) -> float | None:
        """Mean standard deviation of continuous actions, ``None`` of others.

        Args:
            outputs: Computes the policy's outputs ``[..., P]``; called where the deviation depends on them.
        """
        return None


def to_numpy(actions: Tensor) -> npt.NDArray[np.generic]:
    """Actions for :meth:`ActionDistribution.to_env`; NumPy has no bfloat16."""
    if actions.is_floating_point():
        actions = actions.to(torch.promote_types(actions.dtype, torch.float32))
    return actions.detach().cpu().numpy()


def at_least_float32(outputs: Tensor) -> Tensor:
    """Outputs of a network that computes in lower precision are not precise enough for a log-probability."""
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))
