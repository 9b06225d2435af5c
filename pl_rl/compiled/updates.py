"""Gradient updates as compiled functions.

Shapes: ``B`` samples of a minibatch, ``P`` trained parameters.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pl_rl.algorithm.loss import Coefficients, Minibatch, PPOLoss
from pl_rl.algorithm.updates import PartUpdater
from pl_rl.compiled import sequences
from pl_rl.compiled.adam import CompiledAdam, check_optimizer, split_like
from pl_rl.compiled.flops import count_flops, number_of_chunks
from pl_rl.compiled.function import Compiled
from pl_rl.compiled.module_state import call_with, has_hook, places_of
from pl_rl.compiled.rounding import MOST_ROUNDING, perturbed, relative_error
from pl_rl.compiled.sequences import SequenceGradient
from pl_rl.compiled.threads import Threads
from pl_rl.envs.processors import cores
from pl_rl.errors import CompilationError
from pl_rl.networks.records import leaves, leaves_as, rows, tree_map


class CompiledUpdater(PartUpdater):
    """The gradient as one compiled function, clipping and Adam as another; both work on the parameters in place.

    A large minibatch is computed in chunks whose size depends on the minibatch and the network alone, by up to one
    thread per processor core. Gradients of chunks are averaged in order, so the number of threads changes no bit.

    Args:
        loss: With the network in it.
        optimizer: Adam, fused, over float32 parameters of the network on the CPU, none of them frozen.
        example: A minibatch of the shapes and types of all that will come.
        back_end: Compiles the gradient.
        flops: Of the example's gradient; they are counted if they are not given.

    Raises:
        CompilationError: If this network, this optimizer or this machine does not allow it.
    """

    def __init__(
        self,
        loss: PPOLoss,
        optimizer: torch.optim.Optimizer,
        example: Minibatch,
        back_end: type[Compiled] = Compiled,
        flops: int | None = None,
    ) -> None:
        super().__init__(loss, optimizer)
        check_optimizer(optimizer)
        self._back_end = back_end
        self.description = back_end.describe()
        self._parameters = [param for group in optimizer.param_groups for param in group["params"]]
        trained = set(self._parameters)
        places = {place.tensor: place for place in places_of(loss)}
        if not trained <= places.keys():
            raise CompilationError("the optimizer trains more than the network")
        if {(param.dtype, param.device.type) for param in trained} != {(torch.float32, "cpu")}:
            raise CompilationError("it is made for float32 parameters on a CPU")
        if not all(param.requires_grad for param in trained):
            raise CompilationError("the optimizer has parameters that are frozen")
        self._places = [places[param] for param in self._parameters]
        self._others = [place for tensor, place in places.items() if tensor not in trained]
        flops = count_flops(loss.network, example.obs) if flops is None else flops
        chunks = number_of_chunks(len(example.actions), flops)
        self._threads = min(chunks, cores())
        self._minibatch = tree_map(lambda field: (field.shape, field.dtype), example)
        part = tree_map(Tensor.contiguous, rows(example, slice(len(example.actions) // chunks)))
        self._chunk_bytes = [field.nbytes for field in leaves(part)]
        values = [param.detach() for param in self._parameters]
        numbers = torch.zeros(len(Coefficients._fields)).unbind()
        inputs = [*leaves(part), *numbers, *values, *(place.tensor.detach() for place in self._others)]
        self._gradients = torch.zeros(chunks, sum(param.numel() for param in self._parameters))
        self._mean_gradient = self._gradients[0] if chunks == 1 else torch.zeros_like(self._gradients[0])
        # Both are compiled in parallel.
        compiled = self._compiled(part, numbers, inputs)
        self._adam = CompiledAdam(optimizer, self._mean_gradient)
        self._adam.load()
        compiled.load()
        metrics = torch.zeros(len(PPOLoss.METRICS))
        self._calls = [
            compiled.bind(inputs, [*split_like(gradient, values), metrics], i % self._threads)
            for i, gradient in enumerate(self._gradients)
        ]
        self._at_once = Threads(self._threads)
        self._compare(example)

    def _compiled(
        self, part: Minibatch, numbers: Sequence[Tensor], inputs: Sequence[Tensor]
    ) -> Compiled | SequenceGradient:
        """The gradient of a chunk; a network without a memory needs no steps."""
        if self.loss.network.sequence_length is None:
            return self._back_end(self._gradient, inputs, self._threads)
        if self._back_end is not Compiled:
            raise CompilationError("a network with a memory is compiled by the generator alone")
        self.description = Compiled.describe(Path(sequences.__file__))
        trained, others = (
            {place.name: place.tensor.detach() for place in places} for places in (self._places, self._others)
        )
        return SequenceGradient(self.loss, part, numbers, trained, others, self._threads)

    def _gradient(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The function that is compiled: the gradient of each parameter, and the metrics.

        Args:
            tensors: The minibatch, the coefficients, the trained parameters, then all other parameters and buffers.
        """
        given = iter(tensors)
        minibatch = tree_map(lambda _: next(given), self._minibatch)
        coefficients = Coefficients(*itertools.islice(given, len(Coefficients._fields)))
        parameters = [next(given).detach().requires_grad_() for _ in self._places]
        names = [place.name for place in [*self._places, *self._others]]
        state = dict(zip(names, [*parameters, *given], strict=True))
        loss, metrics = call_with(self.loss, state, (minibatch, coefficients))
        return *torch.autograd.grad(loss, parameters, materialize_grads=True), metrics

    def _compare(self, example: Minibatch) -> None:
        """Compare a gradient with PyTorch's.

        Raises:
            CompilationError: If it differs by more than rounding.
        """
        coefficients = Coefficients(torch.tensor(0.2), 0.5, 0.01, 0.2)
        self._bind_state(coefficients)
        self.gradient(example)
        difference = relative_error(self._mean_gradient, self.eager_gradient(example, coefficients))
        if not difference < MOST_ROUNDING:
            raise CompilationError(f"its gradient differs from PyTorch's by {difference:.1e} of its length")

    def eager_gradient(self, minibatch: Minibatch, coefficients: Coefficients) -> Tensor:
        """The same gradient by PyTorch, flattened and concatenated, ``[P]``."""
        loss, _ = self.loss(minibatch, coefficients)
        gradients = torch.autograd.grad(loss, self._parameters, materialize_grads=True)
        return torch.cat([gradient.flatten() for gradient in gradients])

    def gradient_nearby(self, minibatch: Minibatch, coefficients: Coefficients) -> Tensor:
        """As :meth:`eager_gradient`, at slightly perturbed parameters."""
        values = perturbed([param.detach() for param in self._parameters])
        numbers = [torch.as_tensor(number) for number in coefficients]
        inputs = [*self._fields(minibatch), *numbers, *values]
        *gradients, _ = self._gradient(*inputs, *(place.current() for place in self._others))
        return torch.cat([gradient.flatten() for gradient in gradients])

    def chunk_gradient(self, minibatch: Minibatch, coefficients: Coefficients) -> tuple[Minibatch, Tensor]:
        """The first chunk of a minibatch and its gradient ``[P]``; called between iterations, it changes neither."""
        fields = self._fields(minibatch)
        self._check(fields)
        self._bind_state(coefficients)
        metrics = torch.empty(len(PPOLoss.METRICS))
        self._bind_chunk(0, fields, metrics)
        self._calls[0]()
        return rows(minibatch, slice(len(minibatch.actions) // len(self._calls))), self._gradients[0]

    def change(self) -> str | None:
        """What has changed since this was compiled so that it no longer applies, in words; ``None`` if nothing."""
        in_groups = itertools.chain.from_iterable(group["params"] for group in self.optimizer.param_groups)
        if any(one is not other for one, other in itertools.zip_longest(in_groups, self._parameters)):
            return "the optimizer trains other parameters"
        try:
            check_optimizer(self.optimizer)
        except CompilationError as error:
            return str(error)
        for place in self._places:
            if not place.is_original:
                return f"{place.name} has been replaced"
            if has_hook(place.tensor):
                return f"{place.name} has a hook"
        for place in [*self._places, *self._others]:
            if not place.fits:
                return f"{place.name} has another shape or type"
        return None

    @contextmanager
    def iteration(self, coefficients: Coefficients, max_grad_norm: float | None) -> Iterator[None]:
        """Looks up the addresses of parameters, buffers and Adam's state."""
        self._bind_state(coefficients)
        self._adam.begin()
        with super().iteration(coefficients, max_grad_norm):
            yield

    def _bind_state(self, coefficients: Coefficients) -> None:
        """Write the addresses of the coefficients and of all parameters and buffers into the calls."""
        self._checked = False
        numbers = [torch.as_tensor(number, dtype=torch.float32) for number in coefficients]
        places = [*self._places, *self._others]
        self._arguments = [*numbers, *(place.current() for place in places)]  # kept alive
        addresses: list[Any] = [tensor.data_ptr() for tensor in self._arguments]
        for call in self._calls:
            call.arguments[len(self._chunk_bytes) :] = addresses

    def gradient(self, minibatch: Minibatch) -> Tensor:
        """Chunk by chunk, on several threads."""
        fields = self._fields(minibatch)
        if not self._checked:  # the minibatches of an iteration are alike
            self._check(fields)
            self._checked = True
        metrics = torch.empty(len(self._calls), len(PPOLoss.METRICS))
        for i in range(len(self._calls)):
            self._bind_chunk(i, fields, metrics[i])
        if len(self._calls) == 1:
            self._calls[0]()
            return metrics[0]
        self._at_once.run(self._calls)
        self._adam.average(self._gradients)
        return metrics.mean(0)

    def _fields(self, minibatch: Minibatch) -> list[Tensor]:
        """The tensors of a minibatch, in the order of the example's."""
        return [*leaves_as(self._minibatch.obs, minibatch.obs), *minibatch[1:]]

    def _check(self, fields: Sequence[Tensor]) -> None:
        """Refuse a minibatch past whose end machine code would read.

        Raises:
            CompilationError: If it has another shape or type, or is not contiguous.
        """
        if [(field.shape, field.dtype) for field in fields] != leaves(self._minibatch):
            raise CompilationError("a minibatch has another shape or type than it was compiled for")
        if not all(field.is_contiguous() for field in fields):
            raise CompilationError("a minibatch is not contiguous")

    def _bind_chunk(self, chunk: int, fields: Sequence[Tensor], metrics: Tensor) -> None:
        """Write the addresses of a chunk of the minibatch and of its metrics ``[5]`` into its call."""
        call = self._calls[chunk]
        for argument, (field, size) in enumerate(zip(fields, self._chunk_bytes, strict=True)):
            call.arguments[argument] = field.data_ptr() + chunk * size
        call.results[len(self._parameters)] = metrics.data_ptr()

    def flat_gradient(self) -> Tensor:
        """In the optimizer's order; overwritten by the next."""
        return self._mean_gradient

    def take_gradient(self, flat: Tensor) -> None:
        """Overwrites the one that was computed."""
        self._mean_gradient.copy_(flat)

    def step(self) -> Tensor:
        """Clip and step, by :class:`CompiledAdam`."""
        return self._adam.step(self._max_grad_norm)

    def close(self) -> None:
        """End the threads."""
        self._at_once.close()
