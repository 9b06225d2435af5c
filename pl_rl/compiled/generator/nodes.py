"""Shapes, strides, types and operands of the nodes of a graph."""

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
    """One element of a tensor in a loop over its shape, or over a shape of ``dims`` that it is broadcast to."""
    value = node.meta["val"]
    strides = [stride if n != 1 else 0 for stride, n in zip(value.stride(), value.shape, strict=True)]
    missing = 0 if dims is None else dims - len(strides)
    return Element(buffer, value.storage_offset(), (*[0] * missing, *strides))


def at_index(element: Element, dim: int, index: Expression) -> Element:
    """An element with an index in the place of one dimension's loop variable."""
    strides = list(element.strides)
    dim %= max(1, len(strides))
    stride, strides[dim] = strides[dim], 0
    return dataclasses.replace(element, strides=tuple(strides), index=index, index_stride=stride)


def reads_as_image(reader: Node, node: Node) -> bool:
    """Whether a reader is a convolution that reads a node as its images, and not as weights or gradient too."""
    place = CONVOLUTIONS.get(reader.target)
    return place is not None and [i for i, argument in enumerate(reader.args) if argument is node] == [place]


def reduced_dims(node: Node, dims: int) -> list[int]:
    """The dimensions, of ``dims``, that a reduction reduces."""
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if given is None or given == []:
        return list(range(dims))
    return sorted({dim % max(1, dims) for dim in (given if isinstance(given, Sequence) else [given])})


def reduced_element(node: Node, result: Buffer) -> tuple[Element, list[int], list[int]]:
    """One element of a reduction's result in a loop over its argument; the kept and the reduced dimensions."""
    dims = node.args[0].meta["val"].dim()
    reduced = reduced_dims(node, dims)
    kept = [dim for dim in range(dims) if dim not in reduced]
    strides = list(node.meta["val"].stride())
    if len(strides) != dims:
        strides = [0 if dim in reduced else strides[kept.index(dim)] for dim in range(dims)]
    return Element(result, 0, tuple(0 if dim in reduced else strides[dim] for dim in range(dims))), kept, reduced


def extent(value: Tensor) -> int:
    """Elements of memory from a tensor's first element to its last, gaps included."""
    if value.numel() == 0:
        return 0
    return sum((n - 1) * stride for n, stride in zip(value.shape, value.stride(), strict=True)) + 1


def common_type(arguments: Sequence[Any]) -> torch.dtype:
    """The type to which the operands of a comparison are promoted."""
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
    """The identity of a tensor's storage, which its views share."""
    identity: int = value.untyped_storage()._cdata
    return identity


def values_of(node: Node) -> Sequence[Any]:
    """The outputs of a node, of which some may be ``None``."""
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
    """The refusal of an operation that is not supported."""
    return CompilationError(f"the network uses {node.target}, which compiled updates are not made for")
