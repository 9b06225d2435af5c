"""Tracing: functions of tensors as graphs of core ATen operations, and the refusal of what a trace would miss."""

from collections.abc import Callable, Sequence
from functools import cache, reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch._decomp import core_aten_decompositions, get_decompositions
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from pl_rl.compiled import generator as codegen
from pl_rl.errors import CompilationError
from pl_rl.signals import held_back

ALSO_DECOMPOSED = [getattr(torch.ops.aten, name) for name in ("_log_softmax", "_softmax", "elu", "gelu", "leaky_relu")]
NOT_DECOMPOSED = [torch.ops.aten.slice_scatter.default, torch.ops.aten.select_scatter.default]
ARRAY = "the network computes with a NumPy array, which might change unseen; make it a buffer"


def trace(function: Callable[..., Sequence[Tensor]], example: Sequence[Tensor]) -> fx.GraphModule:
    """Trace a function into a functional graph of core ATen operations (nothing is changed in place).

    Raises:
        CompilationError: If it cannot be traced, or the graph would not be the same function.
    """
    graph = _recorded(function, example)
    _check(graph)
    decompositions = _decompositions(len(torch._C._dispatch_get_all_op_names()))
    functional = _recorded(functionalize(graph), example, {**decompositions})
    functional.graph.eliminate_dead_code()
    for node in functional.graph.nodes:
        if node.target is torch.ops.aten.copy_.default:  # those that are left change an argument
            raise CompilationError("the network changes its own state")
    return functional


@cache
def _decompositions(operations: int) -> dict[Any, Any]:
    """What makes core operations of others.

    Args:
        operations: How many torch knows; a library may add some. To look through them takes 60 ms.
    """
    decompositions = {**core_aten_decompositions(), **get_decompositions(ALSO_DECOMPOSED)}
    decompositions[torch.ops.aten.native_layer_norm.default] = _layer_norm
    decompositions |= codegen.DECOMPOSITIONS
    for operation in NOT_DECOMPOSED:
        decompositions.pop(operation, None)
    return decompositions


def _recorded(
    function: Callable[..., Any], example: Sequence[Tensor], decompositions: dict[Any, Any] | None = None
) -> fx.GraphModule:
    try:
        with held_back(), _NoArrays():
            return make_fx(function, tracing_mode="fake", decomposition_table=decompositions)(*example)
    except CompilationError:
        raise
    except Exception as error:
        raise CompilationError(f"the network cannot be traced: {first_line(error)}") from error


class _NoArrays(TorchFunctionMode):
    """Refuses tensors made from NumPy arrays."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(value, np.ndarray) for value in tree_leaves((args, kwargs))):
            raise CompilationError(ARRAY)
        return func(*args, **(kwargs or {}))


def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Layer norm by supported operations; also returns the mean and the reciprocal of the standard deviation."""
    dims = list(range(-len(shape), 0))
    mean = x.mean(dims, keepdim=True)
    inverse = (x.var(dims, correction=0, keepdim=True) + eps).rsqrt()
    normal = (x - mean) * inverse
    scaled = normal if weight is None else normal * weight
    return scaled if bias is None else scaled + bias, mean, inverse


def _check(graph: fx.GraphModule) -> None:
    """Refuse random numbers, changes of the network's own state, and constants in foreign memory (NumPy arrays).

    Raises:
        CompilationError: With the operation.
    """
    names = [str(node.target) for node in graph.graph.nodes if node.op == "get_attr"]
    constants: list[Any] = [reduce(getattr, name.split("."), graph) for name in names]
    if any(isinstance(value, Tensor) and not value.untyped_storage().resizable() for value in constants):
        raise CompilationError(ARRAY)
    for node in graph.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise CompilationError(f"the network draws random numbers ({node.target})")
        if "batch_norm" in str(node.target):
            raise CompilationError(f"the network changes its own state ({node.target})")


def first_line(error: Exception) -> str:
    """The type of an exception and the first line of its message."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
