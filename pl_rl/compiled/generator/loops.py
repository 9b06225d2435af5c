"""Loop nests and expressions over elements of tensors, as C++ text."""

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
    """Memory of ``size`` elements, live from the step ``first_use`` to the step ``last_use``."""

    name: str
    dtype: torch.dtype
    size: int
    first_use: int = 0
    last_use: int = 0
    place: str | None = None
    """Its address in C++; ``None`` for a part of the scratch block that is not chosen yet."""


@dataclasses.dataclass(frozen=True)
class Element:
    """The address of one element in a loop: ``offset + sum(i_d * strides[d])``, in elements.

    Gathers and scatters add ``index * index_stride``.
    """

    buffer: Buffer
    offset: int
    strides: tuple[int, ...]
    index: "Expression | None" = None
    index_stride: int = 0


@dataclasses.dataclass(frozen=True)
class Operation:
    """A C++ expression: a template and its operands."""

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
    """A loop nest over a shape; dimensions that are contiguous in all operands are collapsed into one loop.

    Args:
        expressions: What is read and written inside.
        order: The dimensions, outermost first.
        shape: Of the loop.
        kinds: Sets of dimensions that are not collapsed with those outside, as the reduced and the kept ones.
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
        """The loop variable of a dimension."""
        return next((f"i{i}" for i, group in enumerate(self.groups) if dim in group), "0")

    def text(self, expression: Expression) -> str:
        """An expression in C++, inside the loops."""
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
        """The loops, or those over ``dims`` only, around the lines of a body; the innermost has the pragma."""
        groups = [(i, g) for i, g in enumerate(self.groups) if dims is None or g[-1] in dims]
        lines = list(body)
        for depth, (i, group) in enumerate(reversed(groups)):
            count = math.prod(self.shape[dim] for dim in group)
            head = [pragma] if pragma and depth == 0 else []
            lines = [*head, f"for (int i{i} = 0; i{i} < {count}; i{i}++) {{", *(f"  {line}" for line in lines), "}"]
        return lines if groups else ["{", *(f"  {line}" for line in lines), "}"]


def by_stride(strides: Sequence[int]) -> list[int]:
    """Dimensions from the largest stride to the smallest."""
    return sorted(range(len(strides)), key=lambda dim: -strides[dim])


def type_name(dtype: torch.dtype) -> str:
    """The C++ type.

    Raises:
        CompilationError: If there is none.
    """
    if dtype not in TYPES:
        raise CompilationError(f"the network computes in {dtype}, which compiled updates are not made for")
    return TYPES[dtype]


def literal(number: Any, dtype: torch.dtype) -> str:
    """A C++ literal; floats are written in hexadecimal, which loses no digit."""
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
