"""Gradient updates, one operation at a time or as one compiled function.

Shapes: ``B`` samples of a minibatch, ``P`` trained parameters.
"""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pl_rl.compilation import CompilationError, compile_function, find_compiler
from pl_rl.loss import Minibatch, PPOLoss

# Parts of a minibatch whose intermediate results fit a processor's cache, and that threads share among themselves.
CHUNK_SIZE = 512


class Updates(ABC):
    """Lowers a loss by gradient updates.

    Args:
        loss: The loss, with the network in it.
        optimizer: Takes the steps.
        max_grad_norm: Largest norm of the gradient; ``None`` does not clip.

    Attributes:
        description: What the results depend on; other words, other rounding.
    """

    description: str

    def __init__(self, loss: PPOLoss, optimizer: torch.optim.Optimizer, max_grad_norm: float | None) -> None:
        self.loss = loss
        self.optimizer = optimizer
        self.max_grad_norm = math.inf if max_grad_norm is None else max_grad_norm

    @contextmanager
    def iteration(self) -> Iterator[None]:
        """Surrounds the updates of an iteration; network and optimiser are up to date after it."""
        yield

    @abstractmethod
    def gradient(self, minibatch: Minibatch, clip_coef: Tensor) -> Tensor:
        """Compute the loss's gradient; returns ``PPOLoss.METRICS``."""

    @abstractmethod
    def step(self) -> Tensor:
        """Move along the gradient; returns its norm before clipping."""

    def close(self) -> None:
        """Let go of threads."""
        return


class EagerUpdates(Updates):
    """Any network, any optimiser, any device."""

    description = "eager"

    def gradient(self, minibatch: Minibatch, clip_coef: Tensor) -> Tensor:
        """By backpropagation into the parameters' ``grad``."""
        self.optimizer.zero_grad()
        metrics: Tensor
        loss, metrics = self.loss(minibatch, clip_coef)
        loss.backward()
        return metrics

    def step(self) -> Tensor:
        """Clip and let the optimiser step."""
        norm = nn.utils.clip_grad_norm_(self.loss.parameters(), self.max_grad_norm)
        self.optimizer.step()
        return norm


class CompiledUpdates(Updates):
    """The gradient as one compiled function of one flat vector of parameters, and Adam on that vector.

    For the time of an iteration the trained parameters, and Adam's averages, are copied into flat vectors. A large
    minibatch is worked through in chunks of a size that depends on the minibatch alone, on as many threads as there
    are processors; their gradients are added in order, so the number of threads does not change the result.

    Raises:
        CompilationError: If this network, this optimiser or this machine does not allow it.
    """

    def __init__(
        self, loss: PPOLoss, optimizer: torch.optim.Optimizer, max_grad_norm: float | None, example: Minibatch
    ) -> None:
        super().__init__(loss, optimizer, max_grad_norm)
        _check_optimizer(optimizer)
        self.description = f"compiled by {find_compiler()}"
        self._parameters = [param for group in optimizer.param_groups for param in group["params"]]
        trained = set(self._parameters)
        names = {param: name for name, param in loss.named_parameters()}
        tensors = [*loss.named_parameters(), *loss.named_buffers()]
        if not trained <= names.keys():
            raise CompilationError("the optimiser trains more than the network")
        if {(param.dtype, param.device.type) for param in trained} != {(torch.float32, "cpu")}:
            raise CompilationError("it is made for float32 parameters on a CPU")
        self._names = [names[param] for param in self._parameters]
        self._constants = {name: tensor for name, tensor in tensors if tensor not in trained}
        self._expected = [(field.shape, field.dtype) for field in example]
        self._chunks = _number_of_chunks(len(example.obs))
        self._threads = min(self._chunks, _processors())
        size = len(example.obs) // self._chunks
        self._gradient_of = compile_function(
            self._gradient,
            [self._flatten(self._parameters), torch.zeros(()), *(x[:size] for x in example), *self._constants.values()],
            instances=self._threads,
        )
        self._pool = ThreadPoolExecutor(max(1, self._threads - 1), initializer=torch.set_num_threads, initargs=(1,))
        # The parameters, Adam's running means of the gradient and of its square, and where each lies in them.
        self._vectors = [torch.zeros(sum(param.numel() for param in self._parameters)) for _ in range(3)]
        self._views = [self._unflatten(vector) for vector in self._vectors]

    def _gradient(self, flat: Tensor, clip_coef: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """What is compiled: the gradient ``[P]`` and the metrics.

        Args:
            flat: ``[P]``, the trained parameters.
            clip_coef: Scalar.
            tensors: The minibatch's, then what is not trained.
        """
        flat = flat.detach().requires_grad_()
        minibatch, constants = Minibatch(*tensors[: len(Minibatch._fields)]), tensors[len(Minibatch._fields) :]
        state = dict(zip(self._names, self._unflatten(flat), strict=True))
        state |= zip(self._constants, constants, strict=True)
        loss, metrics = functional_call(self.loss, state, (minibatch, clip_coef))
        (gradient,) = torch.autograd.grad(loss, flat)
        return gradient, metrics

    @contextmanager
    def iteration(self) -> Iterator[None]:
        """Copies parameters and Adam's averages into flat vectors, and back."""
        states = [self._adam_state(param) for param in self._parameters]
        steps = [state["step"] for state in states]
        tensors = [[state[name] for state in states] for name in ("exp_avg", "exp_avg_sq")]
        tensors.insert(0, [param.detach() for param in self._parameters])
        for views, originals in zip(self._views, tensors, strict=True):
            torch._foreach_copy_(views, originals)
        # Neighbours in a group share one Adam if they have made as many steps, unlike one that was held for a while.
        shares = [
            (group, step, list(params))
            for group in self.optimizer.param_groups
            for step, params in groupby(group["params"], lambda param: self.optimizer.state[param]["step"].item())
        ]
        lengths = [sum(param.numel() for param in params) for _, _, params in shares]
        counts = [torch.tensor(step) for _, step, _ in shares]
        vectors = zip(*(vector.split(lengths) for vector in self._vectors), strict=True)
        self._slices = [(group, count, *v) for (group, _, _), count, v in zip(shares, counts, vectors, strict=True)]
        try:
            yield
        finally:
            for views, originals in zip(self._views, tensors, strict=True):
                torch._foreach_copy_(originals, views)
            torch._foreach_copy_(
                steps, [count for (*_, params), count in zip(shares, counts, strict=True) for _ in params]
            )

    def gradient(self, minibatch: Minibatch, clip_coef: Tensor) -> Tensor:
        """In chunks, side by side."""
        if self._expected:  # machine code would read past the end of anything else
            assert self._expected == [(field.shape, field.dtype) for field in minibatch]
            self._expected = []
        constants = self._constants.values()
        if self._chunks == 1:
            self._grad, metrics = self._gradient_of(self._vectors[0], clip_coef, *minibatch, *constants)
            return metrics
        chunks = list(zip(*(field.chunk(self._chunks) for field in minibatch), strict=True))

        def work(thread: int) -> list[list[Tensor]]:
            return [
                self._gradient_of(self._vectors[0], clip_coef, *chunk, *constants, instance=thread)
                for chunk in chunks[thread :: self._threads]
            ]

        others = [self._pool.submit(work, thread) for thread in range(1, self._threads)]
        shares = [work(0), *(other.result() for other in others)]
        parts = [shares[i % self._threads][i // self._threads] for i in range(self._chunks)]
        self._grad, metrics = parts[0]
        for grad, more in parts[1:]:
            self._grad += grad
            metrics += more
        self._grad /= self._chunks
        return metrics / self._chunks

    def step(self) -> Tensor:
        """Clip as ``clip_grad_norm_`` does, then Adam on slices of the flat vectors."""
        norm: Tensor = torch.linalg.vector_norm(self._grad)
        divisor = None
        if self.max_grad_norm < math.inf:
            divisor = torch.add(norm, 1e-6).div_(self.max_grad_norm).clamp_(min=1)
        begin = 0
        for group, count, param, average, average_of_square in self._slices:
            grad = self._grad[begin : (begin := begin + len(param))]
            count += 1
            torch._fused_adam_(
                [param],
                [grad],
                [average],
                [average_of_square],
                [],
                [count],
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
                grad_scale=divisor,
            )
        return norm

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def _adam_state(self, param: Tensor) -> dict[str, Tensor]:
        """Adam's state of a parameter, as its own first step would make it."""
        state: dict[str, Tensor] = self.optimizer.state[param]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(param), torch.zeros_like(param)
        return state

    def _flatten(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([tensor.detach().flatten() for tensor in tensors])

    def _unflatten(self, flat: Tensor) -> list[Tensor]:
        pieces = flat.split([param.numel() for param in self._parameters])
        return [piece.view_as(param) for piece, param in zip(pieces, self._parameters, strict=True)]


def _check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Whether the optimiser is the Adam that is computed here.

    Raises:
        CompilationError: If it is another one.
    """
    if type(optimizer) is not torch.optim.Adam:
        raise CompilationError(f"the optimiser is {type(optimizer).__name__}, and it is made for Adam")
    expected: dict[str, Any] = {"fused": True, "amsgrad": False, "maximize": False, "decoupled_weight_decay": False}
    for group in optimizer.param_groups:
        for name, value in expected.items():
            if group.get(name, value) != value:
                raise CompilationError(f"Adam's {name} is {group[name]}, and it is made for {value}")


def _processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def _number_of_chunks(minibatch_size: int) -> int:
    """As many equal chunks as leave each with ``CHUNK_SIZE`` samples or more."""
    most = max(1, minibatch_size // CHUNK_SIZE)
    return next(number for number in range(most, 0, -1) if minibatch_size % number == 0)
