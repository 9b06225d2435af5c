"""Averaging and clipping of gradients, and Adam, as compiled functions (``kernels/adam.cpp``).

Shapes: ``P`` trained parameters.
"""

import ctypes
import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pl_rl.compiled.function import Library
from pl_rl.errors import CompilationError


class CompiledAdam:
    """Takes the steps of an optimizer in its place; parameters and states are updated in place.

    The constructor starts the compiler.

    Args:
        optimizer: Has the parameters, their settings and states; see :func:`check_optimizer`.
        gradient: ``[P]``, which each step reads: that of all parameters in the optimizer's order.

    Raises:
        CompilationError: If there is no compiler, or it cannot be started.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, gradient: Tensor) -> None:
        self._optimizer = optimizer
        self._parameters: list[Tensor] = [param for group in optimizer.param_groups for param in group["params"]]
        self._gradient = gradient
        self._pieces = split_like(gradient, self._parameters)
        self._settings = (_Settings * len(self._parameters))()
        self._table = (_Parameter * len(self._parameters))()
        self._addresses: list[int] = []
        self._shares: list[int] = []
        self._library = Library('#include "adam.cpp"\n')

    def load(self) -> None:
        """Wait for the compiler.

        Raises:
            CompilationError: If it fails.
        """
        library = self._library.load()
        self._step, self._average = library.step, library.average
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        self._step.argtypes, self._step.restype = [pointer, size, pointer, size, ctypes.c_float, pointer], None
        self._average.argtypes, self._average.restype = [pointer, size, size, pointer], None

    def begin(self) -> None:
        """Begin an iteration: look up addresses of parameters and states, and the numbers of steps.

        Raises:
            CompilationError: If the state of a parameter has another shape, or is not contiguous.
        """
        states = [self._state(param) for param in self._parameters]
        tensors = [[state[name] for name in ("exp_avg", "exp_avg_sq", "step")] for state in states]
        addresses = [tensor.data_ptr() for tensor in (*self._parameters, *itertools.chain(*tensors))]
        groups = [number for number, group in enumerate(self._optimizer.param_groups) for _ in group["params"]]
        # Bias corrections differ between parameters if some were frozen for a while.
        kinds = [(group, int(state["step"])) for group, state in zip(groups, states, strict=True)]
        distinct = list(dict.fromkeys(kinds))
        shares = [distinct.index(kind) for kind in kinds]
        if (addresses, shares) != (self._addresses, self._shares):
            self._fill_table(tensors, shares)
            self._addresses, self._shares = addresses, shares
        self._groups = [self._optimizer.param_groups[group] for group, _ in distinct]
        self._counts = [steps for _, steps in distinct]

    def average(self, gradients: Tensor) -> None:
        """Write the mean of the gradients ``[chunks, P]`` into the gradient."""
        self._average(gradients.data_ptr(), *gradients.shape, self._gradient.data_ptr())

    def step(self, max_grad_norm: float) -> Tensor:
        """Clip as ``clip_grad_norm_`` does, then step; returns the norm before clipping, a scalar."""
        self._counts = [count + 1 for count in self._counts]
        # There is room for one per parameter, and mostly one in use.
        for group, count, settings in zip(self._groups, self._counts, self._settings, strict=False):
            beta1, beta2 = group["betas"]
            correction, root_correction = 1 - beta1**count, math.sqrt(1 - beta2**count)
            settings.__init__(
                *(group["lr"], 1 - beta1, beta2, 1 - beta2, group["weight_decay"], group["eps"]),
                *(correction, root_correction),
            )
        gradient, norm = self._gradient, torch.empty(())
        self._step(self._table, len(self._table), gradient.data_ptr(), gradient.numel(), max_grad_norm, norm.data_ptr())
        return norm

    def _state(self, param: Tensor) -> dict[str, Tensor]:
        """Adam's state of a parameter, initialized as by its first step."""
        state: dict[str, Tensor] = self._optimizer.state[param]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(param), torch.zeros_like(param)
        return state

    def _fill_table(self, states: list[list[Tensor]], shares: list[int]) -> None:
        """Fill in what the compiled function reads: addresses of parameters, states, gradients and settings."""
        for entry, param, state, gradient, share in zip(
            self._table, self._parameters, states, self._pieces, shares, strict=True
        ):
            if not all(tensor.is_contiguous() for tensor in state) or {t.numel() for t in state[:2]} != {param.numel()}:
                raise CompilationError("Adam's averages of a parameter have another shape, or are not contiguous")
            tensors = (param, *state, gradient)
            settings = ctypes.addressof(self._settings[share])
            entry.__init__(*(tensor.data_ptr() for tensor in tensors), settings, param.numel())


class _Settings(ctypes.Structure):
    """``Settings`` of ``kernels/adam.cpp``: of parameters in one group with the same number of steps."""

    _fields_ = [
        (name, ctypes.c_float)
        for name in (
            *("rate", "new_in_average", "beta2", "new_in_square"),
            *("decay", "epsilon", "correction", "root_correction"),
        )
    ]


class _Parameter(ctypes.Structure):
    """``Parameter`` of ``kernels/adam.cpp``."""

    _fields_ = [
        *(
            (name, ctypes.c_void_p)
            for name in ("value", "average", "average_of_square", "steps", "gradient", "settings")
        ),
        ("count", ctypes.c_size_t),
    ]


def split_like(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of a flat vector, in the shapes of other tensors."""
    pieces = flat.split([tensor.numel() for tensor in like])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Refuse any optimizer but the Adam of ``kernels/adam.cpp``.

    Raises:
        CompilationError: With the difference.
    """
    if type(optimizer) is not torch.optim.Adam:
        raise CompilationError(f"the optimizer is {type(optimizer).__name__}, and it is made for Adam")
    expected: dict[str, Any] = {"fused": True, "amsgrad": False, "maximize": False, "decoupled_weight_decay": False}
    for group in optimizer.param_groups:
        for name, value in expected.items():
            if group.get(name, value) != value:
                raise CompilationError(f"Adam's {name} is {group[name]}, and it is made for {value}")
