"""C++ source for graphs of ATen operations, as ``make_fx`` records them for fixed shapes.

Every tensor lies in a buffer: an argument, a result, or a part of one block of memory that is shared among those whose
lives do not overlap. A view is another way to go over a buffer (fake tensors tell which, and with which strides).
Operations on elements become loops; one whose result is read once, element by element, is part of its reader's loop.
Matrix products and elementary functions are those of ``native/kernels.h``.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from pl_rl.errors import CompilationError

aten = torch.ops.aten
INCLUDE = '#include "kernels.h"'
TYPES = {
    torch.float32: "float",
    torch.int64: "int64",
    torch.int32: "int",
    torch.uint8: "uint8",
    torch.bool: "bool",
}
ALIGNMENT = 64

Node = Any
"""A ``torch.fx.Node``, whose arguments are declared to be nearly anything."""

# Operations on elements, by what their operands become first: the result's type, or one type common to all.
AS_RESULT = {
    aten.add.Tensor: "({0} + {1})",
    aten.add.Scalar: "({0} + {1})",
    aten.sub.Tensor: "({0} - {1})",
    aten.sub.Scalar: "({0} - {1})",
    aten.mul.Tensor: "({0} * {1})",
    aten.mul.Scalar: "({0} * {1})",
    aten.div.Tensor: "({0} / {1})",
    aten.div.Scalar: "({0} / {1})",
    aten.neg.default: "(-{0})",
    aten.abs.default: "absolute({0})",
    aten.sign.default: "sign({0})",
    aten.exp.default: "exp_of({0})",
    aten.expm1.default: "expm1_of({0})",
    aten.log.default: "log_of({0})",
    aten.log1p.default: "__builtin_log1pf({0})",
    aten.tanh.default: "tanh_of({0})",
    aten.sigmoid.default: "sigmoid_of({0})",
    aten.relu.default: "relu({0})",
    aten.erf.default: "__builtin_erff({0})",
    aten.sin.default: "__builtin_sinf({0})",
    aten.cos.default: "__builtin_cosf({0})",
    aten.sqrt.default: "__builtin_sqrtf({0})",
    aten.rsqrt.default: "(1.f / __builtin_sqrtf({0}))",
    aten.reciprocal.default: "(1.f / {0})",
    aten.floor.default: "__builtin_floorf({0})",
    aten.maximum.default: "maximum({0}, {1})",
    aten.minimum.default: "minimum({0}, {1})",
    aten.clamp.Tensor: "minimum(maximum({0}, {1}), {2})",
    aten.clone.default: "{0}",
    aten._to_copy.default: "{0}",
    aten.lift_fresh_copy.default: "{0}",
}
AS_COMMON = {
    aten.eq: "({0} == {1})",
    aten.ne: "({0} != {1})",
    aten.lt: "({0} < {1})",
    aten.le: "({0} <= {1})",
    aten.gt: "({0} > {1})",
    aten.ge: "({0} >= {1})",
    aten.logical_and: "({0} && {1})",
    aten.logical_or: "({0} || {1})",
    aten.logical_not: "(!{0})",
    aten.bitwise_and: "({0} & {1})",
    aten.bitwise_or: "({0} | {1})",
}
CONSTANTS = {
    aten.full.default: 1,
    aten.full_like.default: 1,
    aten.scalar_tensor.default: 0,
}
"""Tensors of one number, and which argument it is."""
POWERS = {
    1: "{0}",
    2: "square({0})",
    3: "({0} * square({0}))",
    0.5: "__builtin_sqrtf({0})",
    -1: "(1.f / {0})",
}
SUMS = {aten.sum.default, aten.sum.dim_IntList, aten.mean.default, aten.mean.dim}
EXTREMES = {aten.amax.default: "maximum", aten.amin.default: "minimum"}
PRODUCTS = {aten.mm.default, aten.addmm.default, aten.bmm.default}


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


@dataclasses.dataclass(frozen=True)
class Source:
    """A function in C++: ``run(arguments, results, block)``, all of them pointers.

    Attributes:
        text: The source.
        block_size: Bytes of memory that it works in.
    """

    text: str
    block_size: int


def generate(graph: fx.GraphModule) -> Source:
    """C++ source of a graph.

    Args:
        graph: Functional, in core ATen operations, its nodes with fake tensors.

    Raises:
        CompilationError: For an operation or a type that it is not made for.
    """
    return _Generator(graph).source()


class _Generator:
    """Goes over the nodes of a graph once."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph
        self.nodes = list(graph.graph.nodes)
        self.results = list(_tensors(graph.graph.output_node().args[0]))
        self.by_storage: dict[int, Buffer] = {}
        self.inlined: dict[Node, Expression] = {}
        self.buffers: list[Buffer] = []
        self.steps: list[list[str]] = []
        self.lines: list[str] = []
        self.constants: list[str] = []

    def source(self) -> Source:
        """The text, once all nodes are written."""
        arguments = [node for node in self.nodes if node.op == "placeholder"]
        for i, node in enumerate(arguments):
            self._new_buffer(node, f"arguments[{i}]")
        for node in self.nodes:
            if node.op == "get_attr":
                self._constant(node)
            elif node.op == "call_function":
                self._node(node)
        for i, node in enumerate(self.results):
            self._result(node, f"results[{i}]")
        block_size = self._share_memory()
        declared = [
            f"{_type(buffer.dtype)}* const {buffer.name} = ({_type(buffer.dtype)}*)({buffer.place});"
            for buffer in self.buffers
        ]
        steps = [f"  {line}" for step in self.steps for line in ["{", *(f"  {line}" for line in step), "}"]]
        head = 'extern "C" void run(void* const* arguments, void* const* results, char* block) {'
        panel = f"float* const panel = (float*)(block + {block_size});"
        lines = [INCLUDE, *self.constants, head, *(f"  {line}" for line in [*declared, panel]), *steps, "}"]
        return Source("\n".join([*lines, ""]), block_size + PANEL_BYTES)

    def _node(self, node: Node) -> None:
        """Write a node, unless it is a view or becomes part of its reader."""
        tensors = [value for value in _values(node) if isinstance(value, Tensor)]
        if tensors and all(_storage(value) in self.by_storage for value in tensors):
            return  # a view
        if len(tensors) != 1 or not isinstance(node.meta["val"], Tensor):
            raise _unsupported(node)
        if node.target in (aten.view.default, aten._unsafe_view.default):
            if not node.args[0].meta["val"].is_contiguous():
                raise _unsupported(node)
            self.by_storage[_storage(tensors[0])] = self._buffer_of(node.args[0])
            return
        expression = self._pointwise(node)
        if expression is not None and self._is_part_of_its_reader(node):
            self.inlined[node] = expression
            return
        result = self._new_buffer(node)
        if expression is not None:
            self._assign(_element(node, result), expression, node.meta["val"].shape)
        elif node.target in SUMS or node.target in EXTREMES:
            self._reduce(node, result)
        elif node.target in PRODUCTS:
            self._multiply(node, result)
        elif handler := HANDLERS.get(node.target):
            handler(self, node, result)
        else:
            raise _unsupported(node)
        self.steps.append(self.lines)
        self.lines = []

    # Buffers ----------------------------------------------------------------------------------------------------------

    def _new_buffer(self, node: Node, place: str | None = None) -> Buffer:
        value = node.meta["val"]
        _type(value.dtype)
        step = len(self.steps)
        buffer = Buffer(f"b{len(self.buffers)}", value.dtype, _extent(value), step, step, place)
        self.buffers.append(buffer)
        self.by_storage[_storage(value)] = buffer
        return buffer

    def _buffer_of(self, node: Any) -> Buffer:
        """The buffer of a tensor that the current step reads."""
        if node in self.inlined:
            raise _unsupported(node)
        buffer = self.by_storage[_storage(node.meta["val"])]
        buffer.last_use = len(self.steps)
        return buffer

    def _constant(self, node: Node) -> None:
        tensor: Any = reduce(getattr, str(node.target).split("."), self.graph)
        node.meta.setdefault("val", tensor)
        name = f"constant{len(self.constants)}"
        numbers = ", ".join(_literal(number, tensor.dtype) for number in tensor.flatten().tolist())
        self._new_buffer(node, f"(void*){name}")
        self.constants.append(f"static const {_type(tensor.dtype)} {name}[] = {{{numbers}}};")

    def _result(self, node: Node, place: str) -> None:
        """Let a result be computed in its place, or copy it there."""
        value = node.meta["val"]
        buffer = self._buffer_of(node)
        if buffer.place is None and value.is_contiguous() and value.numel() == buffer.size:
            buffer.place = place
            return
        result = Buffer(f"b{len(self.buffers)}", value.dtype, value.numel(), place=place)
        self.buffers.append(result)
        strides = tuple(torch.empty(value.shape, device="meta").stride())
        self._assign(Element(result, 0, strides), _element(node, buffer), value.shape)
        self.steps.append(self.lines)
        self.lines = []

    def _share_memory(self) -> int:
        """Give each buffer a place that is free while it lives, the first that is large enough; the block's size."""
        placed: list[tuple[int, int, Buffer]] = []
        total = 0
        for buffer in self.buffers:
            if buffer.place is not None:
                continue
            size = -(-buffer.size * buffer.dtype.itemsize // ALIGNMENT) * ALIGNMENT
            begin = 0
            for other_begin, other_end, other in sorted(placed, key=lambda item: item[:2]):
                if other.last_use >= buffer.first_use and buffer.last_use >= other.first_use:
                    if begin + size <= other_begin:
                        break
                    begin = max(begin, other_end)
            placed.append((begin, begin + size, buffer))
            buffer.place = f"block + {begin}"
            total = max(total, begin + size)
        return total

    # Elements ---------------------------------------------------------------------------------------------------------

    def _is_part_of_its_reader(self, node: Node) -> bool:
        """Whether a node's elements are computed where they are read."""
        readers = list(node.users)
        if not all(reader.target in ELEMENT_READERS for reader in readers):
            return False
        if not _tensors(node.args):
            return True  # a constant
        (reader, *others) = readers
        value = node.meta["val"]
        if others or sum(1 for read in _tensors([reader.args, reader.kwargs]) if read is node) > 1:
            return False
        if reader.target in SUMS or reader.target in EXTREMES:
            return True
        return reader.target in ELEMENTWISE and reader.meta["val"].shape == value.shape

    def _pointwise(self, node: Node) -> Expression | None:
        """A node's element as an expression, if each is computed from elements at the same place alone."""
        target, value, args = node.target, node.meta["val"], list(node.args)
        if target in CONSTANTS:
            return Operation(_literal(args[CONSTANTS[target]], value.dtype))
        if target not in ELEMENTWISE:
            return None
        overload_packet = getattr(target, "overloadpacket", None)
        if target is aten.where.self:
            condition = self._operand(args[0], value.shape, torch.bool)
            chosen = [self._operand(arg, value.shape, value.dtype) for arg in args[1:]]
            return Operation("({0} ? {1} : {2})", (condition, *chosen))
        if target is aten.clamp.default:
            bounds = [*args[1:], None][:2] if len(args) > 1 else [node.kwargs.get("min"), node.kwargs.get("max")]
            expression = self._operand(args[0], value.shape, value.dtype)
            for name, bound in zip(["maximum", "minimum"], bounds, strict=True):
                if bound is not None:
                    literal = _literal(bound, value.dtype)
                    expression = Operation(f"{name}({{0}}, {literal})", (expression,))
            return expression
        if target is aten.pow.Tensor_Scalar:
            template = POWERS.get(args[1], f"__builtin_powf({{0}}, {_literal(args[1], torch.float32)})")
            return Operation(template, (self._operand(args[0], value.shape, value.dtype),))
        if target is aten.gather.default:
            return self._gathered(node)
        if overload_packet in AS_COMMON:
            dtype = _common_type(args)
            template = AS_COMMON[overload_packet]
        else:
            dtype = value.dtype
            template = AS_RESULT[target]
            if node.kwargs.get("alpha", 1) != 1:
                factor = _literal(node.kwargs["alpha"], dtype)
                template = template.replace("{1}", f"{factor} * {{1}}")
        if dtype.is_floating_point is False and "__builtin" in template:
            raise _unsupported(node)
        return Operation(template, tuple(self._operand(arg, value.shape, dtype) for arg in args))

    def _operand(self, argument: Any, shape: Sequence[int], dtype: torch.dtype) -> Expression:
        """An operand's element in a loop over ``shape``, as a ``dtype``."""
        if not isinstance(argument, fx.Node):
            return Operation(_literal(argument, dtype))
        expression = self.inlined.get(argument)
        if expression is None:
            expression = _element(argument, self._buffer_of(argument), len(shape))
        else:
            for element in elements_of(expression):
                element.buffer.last_use = len(self.steps)
        if argument.meta["val"].dtype == dtype:
            return expression
        return Operation(f"(({_type(dtype)}){{0}})", (expression,))

    def _gathered(self, node: Node) -> Expression:
        """One element of the first argument along a dimension, at each place of the index."""
        source, dim, index = node.args[:3]
        element = _element(source, self._buffer_of(source))
        return _at_index(element, dim, self._operand(index, node.meta["val"].shape, torch.int64))

    # Loops ------------------------------------------------------------------------------------------------------------

    def _assign(self, target: Element, expression: Expression, shape: Sequence[int], operator: str = "=") -> None:
        """A loop over a shape that writes an expression."""
        loop = _Loop([target, expression], _by_stride(target.strides), shape)
        dependent = target.index is not None and operator != "="
        self.lines += loop.around(
            [f"{loop.text(target)} {operator} {loop.text(expression)};"], "" if dependent else "#pragma GCC ivdep"
        )

    def _reduce(self, node: Node, result: Buffer) -> None:
        """Sums, means and extremes over dimensions."""
        source = node.args[0]
        value, reduced_value = source.meta["val"], node.meta["val"]
        reduced = _reduced_dims(node, value.dim())
        kept = [dim for dim in range(value.dim()) if dim not in reduced]
        expression = self._operand(source, value.shape, reduced_value.dtype)
        strides = list(reduced_value.stride())
        if len(strides) != value.dim():
            strides = [0 if dim in reduced else strides[kept.index(dim)] for dim in range(value.dim())]
        target = Element(result, 0, tuple(0 if dim in reduced else strides[dim] for dim in range(value.dim())))
        kept.sort(key=lambda dim: -target.strides[dim])
        count = math.prod(value.shape[dim] for dim in reduced)
        ctype = _type(reduced_value.dtype)
        if node.target in EXTREMES:
            start, update = "-__builtin_inff()" if node.target is aten.amax.default else "__builtin_inff()", ""
            update = f"{{0}} = {EXTREMES[node.target]}({{0}}, {{1}});"
            pragma = ""
        else:
            start, update, pragma = "0", "{0} += {1};", "#pragma omp simd reduction(+ : sum)"
        mean = f" / {count}" if node.target in (aten.mean.default, aten.mean.dim) else ""
        along = [element.strides for element in elements_of(expression)]
        if kept and all(strides[kept[-1]] == 1 or strides[reduced[-1]] != 1 for strides in along):
            # Rows are added to rows, rather than each column added up by itself.
            self._assign(target, Operation(start), [1 if dim in reduced else n for dim, n in enumerate(value.shape)])
            loop = _Loop([target, expression], [*reduced, *kept], value.shape, [set(reduced), set(kept)])
            added = update.format(loop.text(target), loop.text(expression))
            self.lines += loop.around([added], "#pragma GCC ivdep")
            if mean:
                total = Operation(f"{{0}}{mean}", (target,))
                self._assign(target, total, [1 if dim in reduced else n for dim, n in enumerate(value.shape)])
            return
        loop = _Loop([target, expression], [*kept, *reduced], value.shape, [set(kept), set(reduced)])
        inner = loop.around([update.format("sum", loop.text(expression))], pragma, set(reduced))
        body = [f"{ctype} sum = {start};", *inner, f"{loop.text(target)} = sum{mean};"]
        self.lines += loop.around(body, "", set(kept))

    def _argmax(self, node: Node, result: Buffer) -> None:
        source, dim = node.args[0], node.args[1]
        value = source.meta["val"]
        dim %= value.dim()
        keep = len(node.args) > 2 and node.args[2]
        strides = list(node.meta["val"].stride())
        if not keep:
            strides.insert(dim, 0)
        target = Element(result, 0, tuple(0 if i == dim else stride for i, stride in enumerate(strides)))
        element = self._operand(source, value.shape, value.dtype)
        kept = [i for i in range(value.dim()) if i != dim]
        loop = _Loop([target, element], [*kept, dim], value.shape, [set(kept), {dim}])
        ctype = _type(value.dtype)
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

    def _variance(self, node: Node, result: Buffer) -> None:
        """In two passes: the mean, then the squares of what is left."""
        source = node.args[0]
        value = source.meta["val"]
        reduced = _reduced_dims(node, value.dim())
        kept = [dim for dim in range(value.dim()) if dim not in reduced]
        strides = list(node.meta["val"].stride())
        if len(strides) != value.dim():
            strides = [0 if dim in reduced else strides[kept.index(dim)] for dim in range(value.dim())]
        target = Element(result, 0, tuple(0 if dim in reduced else strides[dim] for dim in range(value.dim())))
        element = self._operand(source, value.shape, value.dtype)
        loop = _Loop([target, element], [*kept, *reduced], value.shape, [set(kept), set(reduced)])
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
            f"{loop.text(target)} = sum / {_literal(divisor, torch.float32)};",
        ]
        self.lines += loop.around(body, "", set(kept))

    # Pieces -----------------------------------------------------------------------------------------------------------

    def _cat(self, node: Node, result: Buffer) -> None:
        tensors, dim = node.args[0], node.args[1] if len(node.args) > 1 else 0
        whole = _element(node, result)
        dim %= len(whole.strides)
        begin = 0
        for tensor in tensors:
            value = tensor.meta["val"]
            part = dataclasses.replace(whole, offset=begin * whole.strides[dim])
            if value.numel():
                self._assign(part, self._operand(tensor, value.shape, result.dtype), value.shape)
                begin += value.shape[dim]

    def _slice_scatter(self, node: Node, result: Buffer) -> None:
        base, source = node.args[:2]
        given: list[Any] = list(node.args[2:])
        dim, begin, _, step = given + [0, None, None, 1][len(given) :]
        value, shape = node.meta["val"], source.meta["val"].shape
        whole = _element(node, result)
        self._assign(whole, self._operand(base, value.shape, result.dtype), value.shape)
        strides = list(whole.strides)
        first = min(max(0, begin + value.shape[dim] if begin < 0 else begin), value.shape[dim]) if begin else 0
        offset = first * strides[dim]
        strides[dim] *= step
        self._assign(Element(result, offset, tuple(strides)), self._operand(source, shape, result.dtype), shape)

    def _select_scatter(self, node: Node, result: Buffer) -> None:
        base, source, dim, index = node.args
        whole, value = _element(node, result), node.meta["val"]
        dim %= value.dim()
        index %= value.shape[dim]
        self._assign(whole, self._operand(base, value.shape, result.dtype), value.shape)
        strides = list(whole.strides)
        offset = index * strides.pop(dim)
        shape = source.meta["val"].shape
        self._assign(Element(result, offset, tuple(strides)), self._operand(source, shape, result.dtype), shape)

    def _scatter(self, node: Node, result: Buffer) -> None:
        """Writes, or adds, at the places that an index names, one after another."""
        base, dim, index, source = node.args[:4]
        whole, value = _element(node, result), node.meta["val"]
        shape = index.meta["val"].shape
        self._assign(whole, self._operand(base, value.shape, result.dtype), value.shape)
        target = _at_index(whole, dim, self._operand(index, shape, torch.int64))
        operator = "+=" if node.target is aten.scatter_add.default else "="
        self._assign(target, self._operand(source, shape, result.dtype), shape, operator)

    def _multiply(self, node: Node, result: Buffer) -> None:
        *start, left, right = node.args[-3:] if node.target is aten.addmm.default else node.args
        value = node.meta["val"]
        if node.kwargs or not value.is_contiguous() or value.dtype != torch.float32:
            raise _unsupported(node)
        sides = [_element(side, self._buffer_of(side)) for side in (left, right)]
        m, n = value.shape[-2:]
        k = left.meta["val"].shape[-1]
        added = "0, 0, 0"
        if start:
            bias = _element(start[0], self._buffer_of(start[0]), 2)
            added = ", ".join([f"{bias.buffer.name} + {bias.offset}", *map(str, bias.strides)])
        for batch in range(value.shape[0] if value.dim() == 3 else 1):
            operands = []
            for side in sides:
                offset = side.offset + (batch * side.strides[0] if value.dim() == 3 else 0)
                operands.append(", ".join([f"{side.buffer.name} + {offset}", *map(str, side.strides[-2:])]))
            place = f"{result.name} + {batch * m * n}"
            self.lines.append(f"multiply({m}, {n}, {k}, {operands[0]}, {operands[1]}, {added}, {place}, panel);")


HANDLERS: dict[Any, Callable[[_Generator, Node, Buffer], None]] = {
    aten.argmax.default: _Generator._argmax,
    aten.var.correction: _Generator._variance,
    aten.cat.default: _Generator._cat,
    aten.slice_scatter.default: _Generator._slice_scatter,
    aten.select_scatter.default: _Generator._select_scatter,
    aten.scatter.src: _Generator._scatter,
    aten.scatter.value: _Generator._scatter,
    aten.scatter_add.default: _Generator._scatter,
}
ELEMENTWISE = {
    *AS_RESULT,
    *(getattr(packet, name) for packet in AS_COMMON for name in packet.overloads() if "out" not in name),
    aten.where.self,
    aten.clamp.default,
    aten.pow.Tensor_Scalar,
    aten.gather.default,
}
ELEMENT_READERS = {*ELEMENTWISE, *SUMS, *EXTREMES, *HANDLERS} - {aten.gather.default}
PANEL_BYTES = 4 * 256 * 32
"""``DEPTH * 2 * LANES`` floats of ``native/kernels.h``."""


class _Loop:
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


def _by_stride(strides: Sequence[int]) -> list[int]:
    """Dimensions in the order in which memory runs."""
    return sorted(range(len(strides)), key=lambda dim: -strides[dim])


def _element(node: Node, buffer: Buffer, dims: int | None = None) -> Element:
    """An element of a tensor in a loop over its shape, or over one that it is broadcast to."""
    value = node.meta["val"]
    strides = [stride if n != 1 else 0 for stride, n in zip(value.stride(), value.shape, strict=True)]
    missing = 0 if dims is None else dims - len(strides)
    return Element(buffer, value.storage_offset(), (*[0] * missing, *strides))


def _at_index(element: Element, dim: int, index: Expression) -> Element:
    strides = list(element.strides)
    dim %= max(1, len(strides))
    stride, strides[dim] = strides[dim], 0
    return dataclasses.replace(element, strides=tuple(strides), index=index, index_stride=stride)


def _reduced_dims(node: Node, dims: int) -> list[int]:
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if given is None or given == []:
        return list(range(dims))
    return sorted({dim % max(1, dims) for dim in (given if isinstance(given, Sequence) else [given])})


def _extent(value: Tensor) -> int:
    """Elements from the first to the last, in memory."""
    return sum((n - 1) * stride for n, stride in zip(value.shape, value.stride(), strict=True)) + 1


def _common_type(arguments: Sequence[Any]) -> torch.dtype:
    """In which numbers are compared."""
    types = [arg.meta["val"].dtype if isinstance(arg, fx.Node) else torch.tensor(arg).dtype for arg in arguments]
    return reduce(torch.promote_types, types)


def _type(dtype: torch.dtype) -> str:
    """In C++."""
    if dtype not in TYPES:
        raise CompilationError(f"the network computes in {dtype}, which compiled updates are not made for")
    return TYPES[dtype]


def _literal(number: Any, dtype: torch.dtype) -> str:
    """A number in C++."""
    if not dtype.is_floating_point:
        return f"({_type(dtype)}){int(number)}"
    number = float(np.float32(number))
    if math.isnan(number):
        return '__builtin_nanf("")'
    if math.isinf(number):
        return "__builtin_inff()" if number > 0 else "(-__builtin_inff())"
    return f"({number.hex()}f)" if number < 0 else f"{number.hex()}f"


def _storage(value: Tensor) -> int:
    identity: int = value.untyped_storage()._cdata
    return identity


def _values(node: Node) -> Sequence[Any]:
    value = node.meta.get("val")
    return value if isinstance(value, tuple | list) else [value]


def _tensors(arguments: Any) -> list[Node]:
    """All nodes among arguments."""
    if isinstance(arguments, fx.Node):
        return [arguments]
    if isinstance(arguments, dict):
        arguments = arguments.values()
    if isinstance(arguments, Iterable) and not isinstance(arguments, str):
        return list(itertools.chain.from_iterable(map(_tensors, arguments)))
    return []


def _unsupported(node: Node) -> CompilationError:
    return CompilationError(f"the network uses {node.target}, which compiled updates are not made for")
