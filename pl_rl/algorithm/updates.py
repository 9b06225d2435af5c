"""Gradient updates.

Shapes: ``B`` samples of a minibatch, ``P`` trained parameters, ``U`` updates.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pl_rl.algorithm.loss import Coefficients, Minibatch, PPOLoss


class Updater(ABC):
    """Makes gradient updates: the gradient of a minibatch's loss, clipping, a step of the optimizer.

    Args:
        loss: The loss, with the network in it.
        optimizer: Takes the steps.

    Attributes:
        description: How updates are computed. Where it differs, results may differ by rounding.
    """

    description: str

    def __init__(self, loss: PPOLoss, optimizer: torch.optim.Optimizer) -> None:
        self.loss = loss
        self.optimizer = optimizer

    @contextmanager
    def iteration(self, coefficients: Coefficients, max_grad_norm: float | None) -> Iterator[None]:
        """Surrounds the updates of one iteration; afterwards the network and the optimizer are up to date.

        Args:
            coefficients: Of the loss.
            max_grad_norm: Largest norm of the gradient over all parameters that the optimizer trains; ``None`` does not
                clip.
        """
        self._coefficients = coefficients
        self._max_grad_norm = math.inf if max_grad_norm is None else max_grad_norm
        yield

    @abstractmethod
    def gradient(self, minibatch: Minibatch) -> Tensor:
        """Compute the gradient of the loss; returns ``PPOLoss.METRICS``, ``[5]``."""

    @abstractmethod
    def step(self) -> Tensor:
        """Clip the gradient and step; returns its norm before clipping, a scalar."""

    def close(self) -> None:
        """Free threads."""
        return


class PartUpdater(Updater):
    """An updater whose gradient can be taken out, and another put in its place."""

    @abstractmethod
    def flat_gradient(self) -> Tensor:
        """The gradient in one piece, ``[P]``."""

    @abstractmethod
    def take_gradient(self, flat: Tensor) -> None:
        """Step along another gradient ``[P]`` than the one that was computed."""


class EagerUpdater(PartUpdater):
    """Autograd and the optimizer's own step; for any network, optimizer and device."""

    description = "eager"

    @contextmanager
    def iteration(self, coefficients: Coefficients, max_grad_norm: float | None) -> Iterator[None]:
        """Looks up the trained parameters, in the network's order."""
        with super().iteration(coefficients, max_grad_norm):
            of_optimizer = dict.fromkeys(param for group in self.optimizer.param_groups for param in group["params"])
            in_order = dict.fromkeys(param for param in self.loss.parameters() if param in of_optimizer)
            self._trained = [param for param in in_order | of_optimizer if param.requires_grad]
            self.loss.zero_grad()
            yield

    def gradient(self, minibatch: Minibatch) -> Tensor:
        """Backpropagate into the ``grad`` of the trained parameters; all others have none."""
        for param in self._trained:
            param.grad = None
        metrics: Tensor
        loss, metrics = self.loss(minibatch, self._coefficients)
        loss.backward(inputs=self._trained)
        return metrics

    def flat_gradient(self) -> Tensor:
        """Zero for parameters without one."""
        pieces = [torch.zeros_like(param) if param.grad is None else param.grad for param in self._trained]
        return torch.cat([piece.flatten() for piece in pieces])

    def take_gradient(self, flat: Tensor) -> None:
        """Parameters without a gradient stay without one."""
        for param, piece in zip(self._trained, flat.split([param.numel() for param in self._trained]), strict=True):
            if param.grad is not None:
                param.grad.copy_(piece.view_as(param))

    def step(self) -> Tensor:
        """Clip by ``clip_grad_norm_``, and let the optimizer step."""
        norm = nn.utils.clip_grad_norm_(self._trained, self._max_grad_norm)
        self.optimizer.step()
        return norm


def lost_number(network: nn.Module, metrics: Tensor, grad_norms: Tensor) -> str | None:
    """The first infinite number or NaN after updates, in words; ``None`` if all numbers are finite.

    Args:
        network: With its parameters after the updates.
        metrics: ``[U, 5]``, ``PPOLoss.METRICS`` of each update.
        grad_norms: ``[U]``
    """
    parameters = torch.cat([param.detach().flatten() for param in network.parameters()])
    # One check (some 25 us) for all: a sum is finite only if its terms are.
    if (parameters.sum() + metrics.sum() + grad_norms.sum()).isfinite():
        return None
    for name, values in {"the loss": metrics, "the gradient": grad_norms, "a parameter": parameters}.items():
        lost = values[~values.isfinite()]
        if len(lost):
            return f"{name} became {lost[0]}"
    return None  # finite terms, whose sum overflowed
