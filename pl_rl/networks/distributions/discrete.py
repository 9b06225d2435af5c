"""Distributions over discrete actions.

Shapes: ``...`` any leading dimensions, ``P`` policy outputs, ``A`` action dimensions.
"""

import math

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softplus

from pl_rl.networks.distributions.base import ActionDistribution, at_least_float32


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
        return (np.add(actions, self._start) if self._start else actions).astype(self._dtype)


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


class Bernoulli(ActionDistribution):
    """Independent switches; the outputs are the logits of their being on."""

    def __init__(self, space: gym.spaces.MultiBinary) -> None:
        super().__init__()
        self._shape, self._dtype = space.shape, space.dtype
        self.num_outputs = math.prod(space.shape)

    def noise(self, batch_shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Standard logistic variates ``[..., A]``, each the difference of two Gumbel variates."""
        shape = (*batch_shape, self.num_outputs)
        return _gumbel(shape, generator) - _gumbel(shape, generator)

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """0 or 1 for each switch, ``[..., A]``."""
        return self.mode(outputs + noise)

    def mode(self, outputs: Tensor) -> Tensor:
        """1 for each switch that is rather on, ``[..., A]``."""
        return (outputs > 0).long()

    def log_prob(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Sum over the switches, ``[...]``."""
        logits = at_least_float32(outputs)
        return (actions * logits - softplus(logits)).sum(-1)

    def entropy(self, outputs: Tensor) -> Tensor:
        """Sum over the switches, ``[...]``."""
        logits = at_least_float32(outputs)
        return (softplus(logits) - logits * logits.sigmoid()).sum(-1)

    def to_env(self, actions: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """In the space's shape and type."""
        return actions.reshape(-1, *self._shape).astype(self._dtype)


def _log_softmax(logits: Tensor) -> Tensor:
    """Log-probabilities, in float32 if the network computes in lower precision."""
    return log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _gumbel(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    exponential = torch.empty(shape, device=generator.device).exponential_(generator=generator)
    return -exponential.log()
