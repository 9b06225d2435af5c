"""Pointwise operations, reductions and indexing as loops, with loop fusion.

A pointwise operation whose result is read once, element by element, gets neither a loop nor a buffer: its expression is
inlined where it is read.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from pl_rl.compiled.generator.buffers import Buffers
from pl_rl.compiled.generator.loops import (
    Buffer,
    Element,
    Expression,
    Loop,
    Node,
    Operation,
    by_stride,
    elements_of,
    literal,
    type_name,
)
from pl_rl.compiled.generator.nodes import (
    at_index,
    bounds_of,
    common_type,
    element_of,
    nodes_in,
    reads_as_image,
    reduced_element,
    unsupported,
)
from pl_rl.compiled.generator.operations import (
    AS_COMMON,
    AS_RESULT,
    CLAMPS,
    CONSTANTS,
    ELEMENT_READERS,
    ELEMENTWISE,
    EXTREMES,
    POWERS,
    SMALL,
    SUMS,
    WHOLE,
    WRAPPING,
)

aten = torch.ops.aten


class Elements(Buffers):
    """Writes expressions and the loops around them.

    Attributes:
        inlined: Expressions of the nodes that are fused into their readers.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.inlined: dict[Node, Expression] = {}

    def buffer_of(self, node: Any) -> Buffer:
        """The buffer of a tensor that the current step reads."""
        if node in self.inlined:
            raise unsupported(node)
        return super().buffer_of(node)

    def is_fused(self, node: Node) -> bool:
        """Loop fusion: whether a pointwise node is inlined into its reader."""
        readers = list(node.users)
        if not all(reader.target in ELEMENT_READERS for reader in readers):
            return False
        if not nodes_in(node.args):
            return True  # a constant
        if readers and all(reads_as_image(reader, node) for reader in readers):
            return True  # recomputed in the backward pass
        (reader, *others) = readers
        value = node.meta["val"]
        if others or sum(1 for read in nodes_in([reader.args, reader.kwargs]) if read is node) > 1:
            return False
        if reader.target in SUMS or reader.target in EXTREMES:
            return True
        if reader.target is aten.convolution_backward.default:
            return reader.args[0] is node
        return reader.target in ELEMENTWISE and reader.meta["val"].shape == value.shape

    def pointwise(self, node: Node) -> Expression | None:
        """One element of a pointwise operation as an expression; ``None`` for any other operation."""
        target, value, args = node.target, node.meta["val"], list(node.args)
        if target in CONSTANTS:
            return Operation(literal(args[CONSTANTS[target]], value.dtype))
        if target not in ELEMENTWISE:
            return None
        overload_packet = getattr(target, "overloadpacket", None)
        if target is aten.where.self:
            condition = self.operand(args[0], value.shape, torch.bool)
            chosen = [self.operand(arg, value.shape, value.dtype) for arg in args[1:]]
            return Operation("({0} ? {1} : {2})", (condition, *chosen))
        if target in CLAMPS:
            given = dict(zip(["min", "max"], args[1:], strict=False)) | node.kwargs
            expression = self.operand(args[0], value.shape, value.dtype)
            for name, bound in [("maximum", given.get("min")), ("minimum", given.get("max"))]:
                if bound is not None:
                    bound = self.operand(bound, value.shape, value.dtype)
                    expression = Operation(f"{name}({{0}}, {{1}})", (expression, bound))
            return expression
        if target is aten.pow.Tensor_Scalar:
            template = POWERS.get(args[1], f"__builtin_powf({{0}}, {literal(args[1], torch.float32)})")
            if not value.dtype.is_floating_point:
                template = f"({type_name(value.dtype)})power({{0}}, {args[1]})"
            return Operation(template, (self.operand(args[0], value.shape, value.dtype),))
        if target is aten.gather.default:
            return self.gathered(node)
        if overload_packet in AS_COMMON:
            dtype = common_type(args)
            template = AS_COMMON[overload_packet]
        else:
            dtype = value.dtype
            template = AS_RESULT[target]
            if node.kwargs.get("alpha", 1) != 1:
                factor = literal(node.kwargs["alpha"], dtype)
                template = template.replace("{1}", f"{factor} * {{1}}")
            if dtype in WHOLE and target in WRAPPING:
                unsigned = template.replace("{0}", "(size){0}").replace("{1}", "(size){1}")
                template = f"(({type_name(dtype)}){unsigned})"
            if dtype in SMALL:
                template = f"({type_name(dtype)}){template}"
        if dtype.is_floating_point is False and "__builtin" in template:
            raise unsupported(node)
        return Operation(template, tuple(self.operand(arg, value.shape, dtype) for arg in args))

    def operand(self, argument: Any, shape: Sequence[int], dtype: torch.dtype) -> Expression:
        """One element of an operand, broadcast to ``shape`` and converted to ``dtype``."""
        if not isinstance(argument, fx.Node):
            return Operation(literal(argument, dtype))
        expression = self.inlined.get(argument)
        if expression is None:
            expression = element_of(argument, self.buffer_of(argument), len(shape))
        else:
            for element in elements_of(expression):
                element.buffer.last_use = len(self.steps)
        if argument.meta["val"].dtype == dtype:
            return expression
        through = ""
        if dtype == torch.uint8 and argument.meta["val"].dtype.is_floating_point:
            through = "(int64)"  # as in PyTorch; undefined in C++ for numbers outside [0, 256)
        return Operation(f"(({type_name(dtype)}){through}{{0}})", (expression,))

    def gathered(self, node: Node) -> Expression:
        """One element of ``torch.gather``."""
        source, dim, index = node.args[:3]
        element = element_of(source, self.buffer_of(source))
        return self.indexed_element(element, source, dim, index)

    def indexed_element(self, element: Element, indexed: Node, dim: int, index: Node) -> Element:
        """The element that a gather reads or a scatter writes; writes a bounds check of the whole index first."""
        shape = index.meta["val"].shape
        at = self.operand(index, shape, torch.int64)
        size = indexed.meta["val"].shape[dim]
        loop = Loop([at], by_stride(index.meta["val"].stride()), shape)
        self.lines += [
            "{",
            "  int outside = 0;",
            *(f"  {line}" for line in loop.around([f"outside |= (size){loop.text(at)} >= {size};"], "")),
            "  if (outside) return 1;",
            "}",
        ]
        return at_index(element, dim, at)

    def assign(self, target: Element, expression: Expression, shape: Sequence[int], operator: str = "=") -> None:
        """A loop over a shape that assigns an expression to the elements of a buffer."""
        loop = Loop([target, expression], by_stride(target.strides), shape)
        dependent = target.index is not None and operator != "="
        self.lines += loop.around(
            [f"{loop.text(target)} {operator} {loop.text(expression)};"], "" if dependent else "#pragma GCC ivdep"
        )

    def reduce(self, node: Node, result: Buffer) -> None:
        """Sums, means, minima and maxima over dimensions."""
        source = node.args[0]
        value, reduced_value = source.meta["val"], node.meta["val"]
        target, kept, reduced = reduced_element(node, result)
        expression = self.operand(source, value.shape, reduced_value.dtype)
        kept.sort(key=lambda dim: -target.strides[dim])
        count = math.prod(value.shape[dim] for dim in reduced)
        ctype = type_name(reduced_value.dtype)
        if node.target in EXTREMES:
            start = bounds_of(reduced_value.dtype)[node.target is aten.amin.default]
            update = f"{{0}} = {EXTREMES[node.target]}({{0}}, {{1}});"
            pragma = ""
        else:
            start, update, pragma = "0", "{0} += {1};", "#pragma omp simd reduction(+ : sum)"
        mean = f" / {count}" if node.target in (aten.mean.default, aten.mean.dim) else ""
        along = [element.strides for element in elements_of(expression)]
        if kept and all(strides[kept[-1]] == 1 or strides[reduced[-1]] != 1 for strides in along):
            # Whole rows are accumulated, so that the inner loop is contiguous, rather than one column after another.
            self.assign(target, Operation(start), [1 if dim in reduced else n for dim, n in enumerate(value.shape)])
            loop = Loop([target, expression], [*reduced, *kept], value.shape, [set(reduced), set(kept)])
            added = update.format(loop.text(target), loop.text(expression))
            self.lines += loop.around([added], "#pragma GCC ivdep")
            if mean:
                total = Operation(f"{{0}}{mean}", (target,))
                self.assign(target, total, [1 if dim in reduced else n for dim, n in enumerate(value.shape)])
            return
        loop = Loop([target, expression], [*kept, *reduced], value.shape, [set(kept), set(reduced)])
        inner = loop.around([update.format("sum", loop.text(expression))], pragma, set(reduced))
        body = [f"{ctype} sum = {start};", *inner, f"{loop.text(target)} = sum{mean};"]
        self.lines += loop.around(body, "", set(kept))

    def argmax(self, node: Node, result: Buffer) -> None:
        """The index of the first NaN, else of the first maximum."""
        source, dim = node.args[0], node.args[1]
        value = source.meta["val"]
        dim %= value.dim()
        keep = len(node.args) > 2 and node.args[2]
        strides = list(node.meta["val"].stride())
        if not keep:
            strides.insert(dim, 0)
        target = Element(result, 0, tuple(0 if i == dim else stride for i, stride in enumerate(strides)))
        element = self.operand(source, value.shape, value.dtype)
        kept = [i for i in range(value.dim()) if i != dim]
        loop = Loop([target, element], [*kept, dim], value.shape, [set(kept), {dim}])
        ctype = type_name(value.dtype)
        at = loop.variable(dim)
        inner = loop.around(
            [
                f"{ctype} value = {loop.text(element)};",
                f"if ({at} == 0 || value > best || (value != value && best == best)) best = value, at = {at};",
            ],
            "",
            {dim},
        )
        body = [f"{ctype} best = 0;", "int64 at = 0;", *inner, f"{loop.text(target)} = at;"]
        self.lines += loop.around(body, "", set(kept))

    def variance(self, node: Node, result: Buffer) -> None:
        """Two passes: the mean, then the mean squared deviation from it."""
        source = node.args[0]
        value = source.meta["val"]
        target, kept, reduced = reduced_element(node, result)
        element = self.operand(source, value.shape, value.dtype)
        loop = Loop([target, element], [*kept, *reduced], value.shape, [set(kept), set(reduced)])
        count = math.prod(value.shape[dim] for dim in reduced)
        correction = node.kwargs.get("correction")
        divisor = float(count - (1 if correction is None else correction))
        pragma = "#pragma omp simd reduction(+ : sum)"
        body = [
            "float sum = 0;",
            *loop.around([f"sum += {loop.text(element)};"], pragma, set(reduced)),
            f"float mean = sum / {count};",
            "sum = 0;",
            *loop.around([f"sum += square({loop.text(element)} - mean);"], pragma, set(reduced)),
            f"{loop.text(target)} = sum / {literal(divisor, torch.float32)};",
        ]
        self.lines += loop.around(body, "", set(kept))
