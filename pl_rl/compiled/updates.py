"""Gradient updates as compiled functions.

Shapes: ``B`` samples of a minibatch, ``P`` trained parameters.
"""

import ctypes
import itertools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pl_rl.algorithm.loss import Coefficients, Minibatch, PPOLoss
from pl_rl.algorithm.updates import Updater
from pl_rl.compiled.flops import count_flops, number_of_chunks
from pl_rl.compiled.function import Compiled, Library, describe_machine_code
from pl_rl.compiled.module_state import call_with, found, has_hook, places_of
from pl_rl.compiled.rounding import MOST_ROUNDING, length_of_difference, perturbed
from pl_rl.envs.processors import cores
from pl_rl.errors import CompilationError


class CompiledUpdater(Updater):
    """The gradient as one compiled function, clipping and Adam as another, on the parameters where they lie.

    A large minibatch is worked through in chunks whose size depends on the minibatch and the network alone, on as many
    threads as there are processors; gradients are averaged in order, so the number of threads does not change a result.

    Raises:
        CompilationError: If this network, this optimizer or this machine does not allow it.
    """

    def __init__(self, loss: PPOLoss, optimizer: torch.optim.Optimizer, example: Minibatch) -> None:
        super().__init__(loss, optimizer)
        _check_optimizer(optimizer)
        self.description = describe_machine_code()
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
        chunks = number_of_chunks(len(example.obs), count_flops(loss, example))
        self._threads = min(chunks, cores())
        self._minibatch = [(field.shape, field.dtype) for field in example]
        part = [field[: len(field) // chunks].contiguous() for field in example]
        self._chunk_bytes = [field.nbytes for field in part]
        values = [param.detach() for param in self._parameters]
        numbers = torch.zeros(len(Coefficients._fields)).unbind()
        inputs = [*part, *numbers, *values, *(place.tensor.detach() for place in self._others)]
        compiled = Compiled(self._gradient, inputs, self._threads)
        adam = Library('#include "adam.cpp"\n')
        self._step, self._average = adam.load().step, adam.load().average
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        self._step.argtypes, self._step.restype = [pointer, size, pointer, size, ctypes.c_float, pointer], None
        self._average.argtypes, self._average.restype = [pointer, size, size, pointer], None
        compiled.load()
        self._gradients = torch.zeros(chunks, sum(param.numel() for param in self._parameters))
        self._mean_gradient = self._gradients[0] if chunks == 1 else torch.zeros_like(self._gradients[0])
        self._gradient_pieces = _pieces(self._mean_gradient, values)
        self._calls = [
            compiled.bind(inputs, [*_pieces(gradient, values), torch.zeros(len(PPOLoss.METRICS))], i % self._threads)
            for i, gradient in enumerate(self._gradients)
        ]
        self._pool = ThreadPoolExecutor(max(1, self._threads - 1))
        self._settings = (_Settings * len(self._parameters))()
        self._table = (_Parameter * len(self._parameters))()
        self._addresses: list[int] = []
        self._shares: list[int] = []
        self._compare(example)

    def _gradient(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """What is compiled: the gradient of each parameter, and the metrics.

        Args:
            tensors: The minibatch's, the loss's coefficients, the parameters, then what is not trained.
        """
        given = iter(tensors)
        minibatch = Minibatch(*itertools.islice(given, len(Minibatch._fields)))
        coefficients = Coefficients(*itertools.islice(given, len(Coefficients._fields)))
        parameters = [next(given).detach().requires_grad_() for _ in self._places]
        names = [place.name for place in [*self._places, *self._others]]
        state = dict(zip(names, [*parameters, *given], strict=True))
        loss, metrics = call_with(self.loss, state, (minibatch, coefficients))
        return *torch.autograd.grad(loss, parameters, materialize_grads=True), metrics

    def _compare(self, example: Minibatch) -> None:
        """Whether the gradient is the one that PyTorch computes.

        Raises:
            CompilationError: If it is another one.
        """
        coefficients = Coefficients(torch.tensor(0.2), 0.5, 0.01)
        self._point(coefficients)
        self.gradient(example)
        difference = length_of_difference(self._mean_gradient, self.eager_gradient(example, coefficients))
        if not difference < MOST_ROUNDING:
            raise CompilationError(f"its gradient differs from PyTorch's by {difference:.1e} of its length")

    def eager_gradient(self, minibatch: Minibatch, coefficients: Coefficients) -> Tensor:
        """What is compiled, by PyTorch: the gradient of all that is trained, in a row."""
        loss, _ = self.loss(minibatch, coefficients)
        gradients = torch.autograd.grad(loss, self._parameters, materialize_grads=True)
        return torch.cat([gradient.flatten() for gradient in gradients])

    def gradient_nearby(self, minibatch: Minibatch, coefficients: Coefficients) -> Tensor:
        """As :meth:`eager_gradient`, of parameters a little away from where they are."""
        values = perturbed([param.detach() for param in self._parameters])
        numbers = [torch.as_tensor(number) for number in coefficients]
        *gradients, _ = self._gradient(*minibatch, *numbers, *values, *map(found, self._others))
        return torch.cat([gradient.flatten() for gradient in gradients])

    def chunk_gradient(self, minibatch: Minibatch, coefficients: Coefficients) -> tuple[Minibatch, Tensor]:
        """The first chunk of a minibatch and its gradient, between two iterations, of which it changes nothing."""
        self._check(minibatch)
        self._point(coefficients)
        metrics = torch.empty(len(PPOLoss.METRICS))
        self._aim(0, minibatch, metrics)
        self._calls[0]()
        size = len(minibatch.obs) // len(self._calls)
        return Minibatch(*(field[:size] for field in minibatch)), self._gradients[0]

    def change(self) -> str | None:
        """What is other than it was when this was compiled, in words, so that this does no longer apply."""
        in_groups = itertools.chain.from_iterable(group["params"] for group in self.optimizer.param_groups)
        if any(one is not other for one, other in itertools.zip_longest(in_groups, self._parameters)):
            return "the optimizer trains other parameters"
        try:
            _check_optimizer(self.optimizer)
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
        """Finds out where everything lies, and how many steps have been made."""
        self._point(coefficients)
        states = [self._adam_state(param) for param in self._parameters]
        of_adam = [[state[name] for name in ("exp_avg", "exp_avg_sq", "step")] for state in states]
        addresses = [tensor.data_ptr() for tensor in (*self._parameters, *itertools.chain(*of_adam))]
        groups = [number for number, group in enumerate(self.optimizer.param_groups) for _ in group["params"]]
        # Corrections for the first steps differ where some parameters were frozen for a while.
        kinds = [(group, int(state["step"])) for group, state in zip(groups, states, strict=True)]
        distinct = list(dict.fromkeys(kinds))
        shares = [distinct.index(kind) for kind in kinds]
        if (addresses, shares) != (self._addresses, self._shares):
            self._fill_table(of_adam, shares)
            self._addresses, self._shares = addresses, shares
        self._groups = [self.optimizer.param_groups[group] for group, _ in distinct]
        self._counts = [steps for _, steps in distinct]
        with super().iteration(coefficients, max_grad_norm):
            yield

    def _point(self, coefficients: Coefficients) -> None:
        """Let the calls find the loss's coefficients, the parameters, and what is not trained."""
        self._checked = False
        numbers = [torch.as_tensor(number, dtype=torch.float32) for number in coefficients]
        self._arguments = [*numbers, *map(found, self._places), *map(found, self._others)]  # kept alive
        addresses: list[Any] = [tensor.data_ptr() for tensor in self._arguments]
        for call in self._calls:
            call.arguments[len(self._minibatch) :] = addresses

    def _fill_table(self, of_adam: list[list[Tensor]], shares: list[int]) -> None:
        """Let Adam find the parameters, the state of each and their settings."""
        for entry, param, state, gradient, share in zip(
            self._table, self._parameters, of_adam, self._gradient_pieces, shares, strict=True
        ):
            if not all(tensor.is_contiguous() for tensor in state) or {t.numel() for t in state[:2]} != {param.numel()}:
                raise CompilationError("Adam's averages of a parameter have another shape, or are not contiguous")
            tensors = (param, *state, gradient)
            settings = ctypes.addressof(self._settings[share])
            entry.__init__(*(tensor.data_ptr() for tensor in tensors), settings, param.numel())

    def gradient(self, minibatch: Minibatch) -> Tensor:
        """In chunks, side by side."""
        if not self._checked:  # the others of an iteration are alike
            self._check(minibatch)
            self._checked = True
        metrics = torch.empty(len(self._calls), len(PPOLoss.METRICS))
        for i in range(len(self._calls)):
            self._aim(i, minibatch, metrics[i])
        if len(self._calls) == 1:
            self._calls[0]()
            return metrics[0]

        def work(thread: int) -> None:
            for call in self._calls[thread :: self._threads]:
                call()

        others = [self._pool.submit(work, thread) for thread in range(1, self._threads)]
        work(0)
        for other in others:
            other.result()
        self._average(self._gradients.data_ptr(), *self._gradients.shape, self._mean_gradient.data_ptr())
        return metrics.mean(0)

    def _check(self, minibatch: Minibatch) -> None:
        """Machine code would read past the end of a minibatch of another form.

        Raises:
            CompilationError: If it has one.
        """
        if [(field.shape, field.dtype) for field in minibatch] != self._minibatch:
            raise CompilationError("a minibatch has another shape or type than it was compiled for")
        if not all(field.is_contiguous() for field in minibatch):
            raise CompilationError("a minibatch is not contiguous")

    def _aim(self, chunk: int, minibatch: Minibatch, metrics: Tensor) -> None:
        """Prepare the call of a chunk."""
        call = self._calls[chunk]
        for argument, (field, size) in enumerate(zip(minibatch, self._chunk_bytes, strict=True)):
            call.arguments[argument] = field.data_ptr() + chunk * size
        call.results[len(self._parameters)] = metrics.data_ptr()

    def step(self) -> Tensor:
        """Clip as ``clip_grad_norm_`` does, then Adam."""
        self._counts = [count + 1 for count in self._counts]
        # There may be as many settings as parameters, and mostly there is one.
        for group, count, settings in zip(self._groups, self._counts, self._settings, strict=False):
            beta1, beta2 = group["betas"]
            correction, root_correction = 1 - beta1**count, math.sqrt(1 - beta2**count)
            settings.__init__(
                *(group["lr"], 1 - beta1, beta2, 1 - beta2, group["weight_decay"], group["eps"]),
                *(correction, root_correction),
            )
        gradient, norm = self._mean_gradient, torch.empty(())
        self._step(
            self._table,
            len(self._table),
            gradient.data_ptr(),
            gradient.numel(),
            self._max_grad_norm,
            norm.data_ptr(),
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


class _Settings(ctypes.Structure):
    """Of parameters in one group that have made as many steps, as in ``kernels/adam.cpp``."""

    _fields_ = [
        (name, ctypes.c_float)
        for name in (
            *("rate", "new_in_average", "beta2", "new_in_square"),
            *("decay", "epsilon", "correction", "root_correction"),
        )
    ]


class _Parameter(ctypes.Structure):
    """As in ``kernels/adam.cpp``."""

    _fields_ = [
        *(
            (name, ctypes.c_void_p)
            for name in ("value", "average", "average_of_square", "steps", "gradient", "settings")
        ),
        ("count", ctypes.c_size_t),
    ]


def _pieces(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """A flat vector as tensors of the shapes of others."""
    pieces = flat.split([tensor.numel() for tensor in like])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]


def _check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Whether the optimizer is the Adam that is computed here.

    Raises:
        CompilationError: If it is another one.
    """
    if type(optimizer) is not torch.optim.Adam:
        raise CompilationError(f"the optimizer is {type(optimizer).__name__}, and it is made for Adam")
    expected: dict[str, Any] = {"fused": True, "amsgrad": False, "maximize": False, "decoupled_weight_decay": False}
    for group in optimizer.param_groups:
        for name, value in expected.items():
            if group.get(name, value) != value:
                raise CompilationError(f"Adam's {name} is {group[name]}, and it is made for {value}")
