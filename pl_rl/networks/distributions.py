"""Action distributions, parametrized by the outputs of a policy network.

A distribution is a module that holds parameters which do not depend on the observation, if it has any. Sampling takes
its random numbers as an argument: a rollout draws all of them in one call.

Shapes: ``...`` any leading dimensions, ``P`` policy outputs, ``A`` action dimensions.
"""

import math
from abc import ABC, abstractmethod
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from pl_rl.errors import UsageError


class ActionDistribution(nn.Module, ABC):
    """A distribution over actions for each of the policy outputs ``[..., P]``."""

    num_outputs: int

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

    def mean_std(self) -> float | None:
        """Mean standard deviation of continuous actions that does not hang on the observation, else ``None``."""
        return None


class Categorical(ActionDistribution):
    """One choice out of ``P``; the outputs are logits."""

    def __init__(self, space: gym.spaces.Discrete) -> None:
        super().__init__()
        self.num_outputs = int(space.n)
        self._start, self._dtype = space.start, space.dtype

    def noise(self, batch_shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Standard Gumbel variates ``[..., P]``."""
        return _gumbel((*batch_shape, self.num_outputs), generator)

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Gumbel-max trick, https://arxiv.org/abs/1411.0030."""
        return (outputs + noise).argmax(-1)

    def mode(self, outputs: Tensor) -> Tensor:
        """The choice of highest probability."""
        return outputs.argmax(-1)

    def log_prob(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Log-probabilities ``[...]``."""
        return _log_softmax(outputs).gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def entropy(self, outputs: Tensor) -> Tensor:
        """Entropies ``[...]``."""
        log_probs = _log_softmax(outputs)
        return -(log_probs.exp() * log_probs).sum(-1)

    def to_env(self, actions: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """Actions with the space's ``start`` added, in its type."""
        return np.asarray(actions.astype(np.int64) + self._start, self._dtype)


class MultiCategorical(ActionDistribution):
    """Independent choices; the outputs are their logits, concatenated."""

    def __init__(self, space: gym.spaces.MultiDiscrete) -> None:
        super().__init__()
        self._sizes = [int(n) for n in space.nvec.flatten()]
        self._start, self._shape, self._dtype = space.start, space.shape, space.dtype
        self.num_outputs = sum(self._sizes)

    def noise(self, batch_shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Standard Gumbel variates ``[..., P]``."""
        return _gumbel((*batch_shape, self.num_outputs), generator)

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """One choice for each dimension, ``[..., A]``."""
        return self.mode(outputs + noise)

    def mode(self, outputs: Tensor) -> Tensor:
        """The most probable choice in each dimension, ``[..., A]``."""
        return torch.stack([logits.argmax(-1) for logits in outputs.split(self._sizes, -1)], -1)

    def log_prob(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Sum over the dimensions, ``[...]``."""
        choices = actions.unsqueeze(-1).unbind(-2)
        logits = outputs.split(self._sizes, -1)
        terms = [_log_softmax(lg).gather(-1, choice) for lg, choice in zip(logits, choices, strict=True)]
        return torch.cat(terms, -1).sum(-1)

    def entropy(self, outputs: Tensor) -> Tensor:
        """Sum over the dimensions, ``[...]``."""
        log_probs = [_log_softmax(logits) for logits in outputs.split(self._sizes, -1)]
        return -torch.stack([(lp.exp() * lp).sum(-1) for lp in log_probs], -1).sum(-1)

    def to_env(self, actions: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """Shifted to the space's ``start``, in its shape and type."""
        return np.asarray(actions.astype(np.int64).reshape(-1, *self._shape) + self._start, self._dtype)


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

    def to_env(self, actions: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """Clipped to the space's bounds, in its shape and type."""
        shaped = actions.reshape(-1, *self._shape).astype(self._dtype)
        return np.clip(shaped, self._low, self._high)

    def mean_std(self) -> float:
        """Over the action dimensions."""
        return self.log_std.exp().mean().item()


def to_numpy(actions: Tensor) -> npt.NDArray[np.generic]:
    """Actions for :meth:`ActionDistribution.to_env`; NumPy has no bfloat16."""
    if actions.is_floating_point():
        actions = actions.to(torch.promote_types(actions.dtype, torch.float32))
    return actions.cpu().numpy()


def make_distribution(action_space: gym.Space[Any], log_std_init: float = 0.0) -> ActionDistribution:
    """The distribution that fits an action space.

    Args:
        action_space: ``Discrete``, ``MultiDiscrete`` or a ``Box`` of floats.
        log_std_init: Initial log standard deviation of continuous actions.

    Raises:
        UsageError: For any other space.
    """
    match action_space:
        case gym.spaces.Discrete():
            return Categorical(action_space)
        case gym.spaces.MultiDiscrete():
            return MultiCategorical(action_space)
        case gym.spaces.Box() if np.issubdtype(action_space.dtype, np.floating):
            return DiagonalGaussian(action_space, log_std_init)
    raise UsageError(
        f"the action space {action_space} is not supported: PPO here acts in Discrete, MultiDiscrete and "
        "floating-point Box spaces; convert it with a gymnasium action wrapper"
    )


def _log_softmax(logits: Tensor) -> Tensor:
    """Log-probabilities, in float32 if the network computes in lower precision."""
    return log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _gumbel(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    exponential = torch.empty(shape, device=generator.device).exponential_(generator=generator)
    return -exponential.log()
