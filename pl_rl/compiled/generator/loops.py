"""Loops over elements of tensors, in C++."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from pl_rl.errors import CompilationError

TYPES = {
    torch.float32: "float",
    torch.int64: "int64",
    torch.int32: "int",
    torch.uint8: "uint8",
    torch.bool: "bool",
}

Node = Any
"""A ``torch.fx.Node``, whose arguments are declared to be nearly anything."""


@dataclasses.dataclass
class Buffer:
    """Memory of tensors: ``size`` elements, read last by the step ``last_use``."""

    name: str
    dtype: torch.dtype
    size: int
    first_use: int = 0
    last_use: int = 0
    place: str | None = None
    """Where it lies, in C++; ``None`` for a part of the shared block."""


@dataclasses.dataclass(frozen=True)
class Element:
    """An element of a buffer, by strides over the dimensions of a loop; ``index`` counts ``index_stride`` more."""

    buffer: Buffer
    offset: int
    strides: tuple[int, ...]
    index: "Expression | None" = None
    index_stride: int = 0


@dataclasses.dataclass(frozen=True)
class Operation:
    """A computation with elements."""

    template: str
    operands: tuple["Expression", ...] = ()


Expression = Element | Operation


def elements_of(expression: Expression) -> Iterable[Element]:
    """All elements that an expression reads."""
    if isinstance(expression, Operation):
        for operand in expression.operands:
            yield from elements_of(operand)
        return
    yield expression
    if expression.index is not None:
        yield from elements_of(expression.index)


class Loop:
    """Nested loops over the dimensions of a shape, as few as the strides of all elements allow.

    Args:
        expressions: What is read and written inside.
        order: The dimensions, outermost first.
        shape: Of the loop.
        kinds: Sets of dimensions that stay apart.
    """

    def __init__(
        self,
        expressions: Sequence[Expression],
        order: Sequence[int],
        shape: Sequence[int],
        kinds: Sequence[set[int]] = (),
    ) -> None:
        strides = [element.strides for expression in expressions for element in elements_of(expression)]
        self.groups: list[list[int]] = []
        self.shape = shape
        for dim in order:
            if shape[dim] == 1:
                continue
            if self.groups:
                last = self.groups[-1][-1]
                together = all((last in kind) == (dim in kind) for kind in kinds)
                if together and all(s[last] == s[dim] * shape[dim] for s in strides):
                    self.groups[-1].append(dim)
                    continue
            self.groups.append([dim])

    def variable(self, dim: int) -> str:
        """Counts a dimension that stays apart."""
        return next((f"i{i}" for i, group in enumerate(self.groups) if dim in group), "0")

    def text(self, expression: Expression) -> str:
        """An expression in C++, inside of the loops."""
        if isinstance(expression, Operation):
            return expression.template.format(*map(self.text, expression.operands))
        terms = [str(expression.offset)] if expression.offset else []
        for i, group in enumerate(self.groups):
            if stride := expression.strides[group[-1]]:
                terms.append(f"i{i} * {stride}" if stride != 1 else f"i{i}")
        if expression.index is not None:
            terms.append(f"{self.text(expression.index)} * {expression.index_stride}")
        return f"{expression.buffer.name}[{' + '.join(terms) or '0'}]"

    def around(self, body: Sequence[str], pragma: str, dims: set[int] | None = None) -> list[str]:
        """Lines of a loop, or of the loops over some dimensions, around others."""
        groups = [(i, g) for i, g in enumerate(self.groups) if dims is None or g[-1] in dims]
        lines = list(body)
        for depth, (i, group) in enumerate(reversed(groups)):
            count = math.prod(self.shape[dim] for dim in group)
            head = [pragma] if pragma and depth == 0 else []
            lines = [*head, f"for (int i{i} = 0; i{i} < {count}; i{i}++) {{", *(f"  {line}" for line in lines), "}"]
        return lines if groups else ["{", *(f"  {line}" for line in lines), "}"]


def by_stride(strides: Sequence[int]) -> list[int]:
    """Dimensions in the order in which memory runs."""
    return sorted(range(len(strides)), key=lambda dim: -strides[dim])


def type_name(dtype: torch.dtype) -> str:
    """In C++."""
    if dtype not in TYPES:
        raise CompilationError(f"the network computes in {dtype}, which compiled updates are not made for")
    return TYPES[dtype]


def literal(number: Any, dtype: torch.dtype) -> str:
    """A number in C++."""
    if not dtype.is_floating_point:
        number = int(number)  # C++ has no literal for the least one
        return f"({type_name(dtype)}){number}" if number > -(2**63) else f"({type_name(dtype)})({number + 1} - 1)"
    with np.errstate(over="ignore"):  # infinite in PyTorch, too
        number = float(np.float32(number))
    if math.isnan(number):
        return '__builtin_nanf("")'
    if math.isinf(number):
        return "__builtin_inff()" if number > 0 else "(-__builtin_inff())"
    return f"({number.hex()}f)" if number < 0 else f"{number.hex()}f"
