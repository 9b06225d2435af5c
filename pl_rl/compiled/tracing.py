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
    decompositions = _decompositions(len(torch._C._dispatch_get_all_op_names()))
    functional = _recorded(function, example, {**decompositions})
    _check(functional)
    if not _replace_copies(functional):
        functional = _recorded(functionalize(_recorded(function, example)), example, {**decompositions})
    functional.graph.eliminate_dead_code()
    for node in functional.graph.nodes:
        if node.target is torch.ops.aten.copy_.default:  # those that are left change an argument
            raise CompilationError("the network changes its own state")
    return functional


def _replace_copies(graph: fx.GraphModule) -> bool:
    """Use what is copied into an intermediate result in the place of that result.

    Derivatives of minimum and maximum copy so. To trace once more, by torch's own way of doing without changes in
    place, takes longer than the trace itself.

    Returns:
        Whether nothing is changed in place any more; if not, the graph is of no use.
    """
    nodes = {node: place for place, node in enumerate(graph.graph.nodes)}
    changes = [node for node in nodes if node.op == "call_function" and _aliases(node, "arguments", written=True)]
    targets = [node.args[0] for node in changes]
    for change in changes:
        if change.target is not torch.ops.aten.copy_.default:
            return False
        target, source = change.args[:2]
        if not (_is_own(target) and _is_own(source)) or source in targets or _layout(target) != _layout(source):
            return False
        if any(_aliases(user, "arguments") for user in target.users if user not in (change, graph.graph.output_node())):
            return False  # a view would go on showing what was there before
        for user in list(target.users):
            if nodes[user] > nodes[change]:
                user.replace_input_with(target, source)
        change.replace_all_uses_with(source)
        graph.graph.erase_node(change)
    return True


def _is_own(node: Any) -> bool:
    """Whether it is the result of an operation and no view."""
    return isinstance(node, fx.Node) and node.op == "call_function" and not _aliases(node, "returns")


def _aliases(node: fx.Node, what: str, written: bool = False) -> bool:
    """Whether an operation's arguments or returns share memory with others, or are written to; of others, perhaps."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return not written
    infos = [part.alias_info for part in getattr(node.target._schema, what)]
    return any(info is not None and (info.is_write or not written) for info in infos)


def _layout(node: fx.Node) -> tuple[Any, ...]:
    value = node.meta["val"]
    return value.shape, value.stride(), value.dtype


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
        if _has_array((args, kwargs)):
            raise CompilationError(ARRAY)
        return func(*args, **(kwargs or {}))


def _has_array(value: Any) -> bool:
    if isinstance(value, Tensor):  # most are
        return False
    if isinstance(value, dict):
        return any(map(_has_array, value.values()))
    return isinstance(value, np.ndarray) or (isinstance(value, (list, tuple)) and any(map(_has_array, value)))


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
