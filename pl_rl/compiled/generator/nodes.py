"""What is asked of the nodes of a graph."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx

from pl_rl.compiled.generator.convolutions import CONVOLUTIONS
from pl_rl.compiled.generator.loops import Buffer, Element, Expression, Node, literal
from pl_rl.errors import CompilationError


def element_of(node: Node, buffer: Buffer, dims: int | None = None) -> Element:
    """An element of a tensor in a loop over its shape, or over one that it is broadcast to."""
    value = node.meta["val"]
    strides = [stride if n != 1 else 0 for stride, n in zip(value.stride(), value.shape, strict=True)]
    missing = 0 if dims is None else dims - len(strides)
    return Element(buffer, value.storage_offset(), (*[0] * missing, *strides))


def at_index(element: Element, dim: int, index: Expression) -> Element:
    """An element whose place along a dimension is an index."""
    strides = list(element.strides)
    dim %= max(1, len(strides))
    stride, strides[dim] = strides[dim], 0
    return dataclasses.replace(element, strides=tuple(strides), index=index, index_stride=stride)


def reads_as_image(reader: Node, node: Node) -> bool:
    """Whether a reader is a convolution whose images a node is, and nothing else of it."""
    place = CONVOLUTIONS.get(reader.target)
    return place is not None and [i for i, argument in enumerate(reader.args) if argument is node] == [place]


def reduced_dims(node: Node, dims: int) -> list[int]:
    """Over which dimensions a node adds up, or looks for the largest."""
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if given is None or given == []:
        return list(range(dims))
    return sorted({dim % max(1, dims) for dim in (given if isinstance(given, Sequence) else [given])})


def reduced_element(node: Node, result: Buffer) -> tuple[Element, list[int], list[int]]:
    """An element of a reduction's result in a loop over its argument; the dimensions that are kept, and the others."""
    dims = node.args[0].meta["val"].dim()
    reduced = reduced_dims(node, dims)
    kept = [dim for dim in range(dims) if dim not in reduced]
    strides = list(node.meta["val"].stride())
    if len(strides) != dims:
        strides = [0 if dim in reduced else strides[kept.index(dim)] for dim in range(dims)]
    return Element(result, 0, tuple(0 if dim in reduced else strides[dim] for dim in range(dims))), kept, reduced


def extent(value: Tensor) -> int:
    """Elements from the first to the last, in memory."""
    if value.numel() == 0:
        return 0
    return sum((n - 1) * stride for n, stride in zip(value.shape, value.stride(), strict=True)) + 1


def common_type(arguments: Sequence[Any]) -> torch.dtype:
    """In which numbers are compared."""
    types = [arg.meta["val"].dtype if isinstance(arg, fx.Node) else torch.tensor(arg).dtype for arg in arguments]
    return reduce(torch.promote_types, types)


def bounds_of(dtype: torch.dtype) -> tuple[str, str]:
    """The least and the largest number of a type, in C++."""
    if dtype.is_floating_point:
        return literal(-math.inf, dtype), literal(math.inf, dtype)
    if dtype == torch.bool:
        return literal(0, dtype), literal(1, dtype)
    return literal(torch.iinfo(dtype).min, dtype), literal(torch.iinfo(dtype).max, dtype)


def storage_of(value: Tensor) -> int:
    """What a tensor and its views have in common, and no other tensor."""
    identity: int = value.untyped_storage()._cdata
    return identity


def values_of(node: Node) -> Sequence[Any]:
    """What a node returns."""
    value = node.meta.get("val")
    return value if isinstance(value, tuple | list) else [value]


def nodes_in(arguments: Any) -> list[Node]:
    """All nodes among arguments."""
    if isinstance(arguments, fx.Node):
        return [arguments]
    if isinstance(arguments, dict):
        arguments = arguments.values()
    if isinstance(arguments, Iterable) and not isinstance(arguments, str):
        return list(itertools.chain.from_iterable(map(nodes_in, arguments)))
    return []


def unsupported(node: Node) -> CompilationError:
    """That there is no source for a node."""
    return CompilationError(f"the network uses {node.target}, which compiled updates are not made for")
