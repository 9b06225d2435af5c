"""C++ source for graphs of ATen operations, as ``make_fx`` records them for fixed shapes.

Every tensor lies in a buffer: an argument, a result, or a part of one block of memory that is shared among those whose
lives do not overlap. A view is another way to go over a buffer (fake tensors tell which, and with which strides).
Operations on elements become loops; one whose result is read once, element by element, is part of its reader's loop.
Matrix products and elementary functions are those of ``native/kernels.h``; convolutions are written in
:mod:`pl_rl.codegen.convolutions`.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx

from pl_rl.codegen import convolutions
from pl_rl.codegen.convolutions import CONVOLUTIONS, Convolution
from pl_rl.codegen.loops import (
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
from pl_rl.errors import CompilationError

aten = torch.ops.aten
INCLUDE = '#include "kernels.h"'
ALIGNMENT = 64

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
CLAMPS = {aten.clamp.default, aten.clamp.Tensor}
SMALL = {torch.uint8, torch.bool}
"""Types that C++ computes with as larger ones, in which nothing overflows."""
SUMS = {aten.sum.default, aten.sum.dim_IntList, aten.mean.default, aten.mean.dim}
EXTREMES = {aten.amax.default: "maximum", aten.amin.default: "minimum"}
PRODUCTS = {aten.mm.default, aten.addmm.default, aten.bmm.default}
FEW, LONG = 8, 512
"""Rows of a left matrix, and their length, that packing the right one is not worth its while for."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A function in C++: ``run(arguments, results, block)``, all of them pointers.

    It returns 0, or 1 where it stops before an index that lies outside of what it indexes.

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
            self._new_buffer(node.meta["val"], f"arguments[{i}]")
        for node in self.nodes:
            if node.op == "get_attr":
                self._constant(node)
            elif node.op == "call_function":
                self._node(node)
        for i, node in enumerate(self.results):
            self._result(node, f"results[{i}]")
        block_size = self._share_memory()
        declared = [
            f"{type_name(buffer.dtype)}* const {buffer.name} = ({type_name(buffer.dtype)}*)({buffer.place});"
            for buffer in self.buffers
        ]
        steps = [f"  {line}" for step in self.steps for line in ["{", *(f"  {line}" for line in step), "}"]]
        head = 'extern "C" int run(void* const* arguments, void* const* results, char* block) {'
        panel = f"float* const panel = (float*)(block + {block_size});"
        convolves = any(node.target in CONVOLUTIONS for node in self.nodes)
        lines = [
            convolutions.INCLUDE if convolves else INCLUDE,
            *self.constants,
            head,
            *(f"  {line}" for line in [*declared, panel]),
            *steps,
            "  return 0;",
            "}",
        ]
        return Source("\n".join([*lines, ""]), block_size + PANEL_BYTES)

    def _node(self, node: Node) -> None:
        """Write a node, unless it is a view or becomes part of its reader."""
        tensors = [value for value in _values(node) if isinstance(value, Tensor)]
        if tensors and all(_storage(value) in self.by_storage for value in tensors):
            return  # a view
        if node.target is aten.convolution_backward.default:
            self._convolve_backward(node)
            self._end_step()
            return
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
        result = self._new_buffer(node.meta["val"])
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
        self._end_step()

    def _end_step(self) -> None:
        """What is written from here on uses its buffers later."""
        self.steps.append(self.lines)
        self.lines = []

    # Buffers ----------------------------------------------------------------------------------------------------------

    def _new_buffer(self, value: Tensor, place: str | None = None) -> Buffer:
        buffer = self._room(_extent(value), value.dtype, place)
        self.by_storage[_storage(value)] = buffer
        return buffer

    def _room(self, size: int, dtype: torch.dtype = torch.float32, place: str | None = None) -> Buffer:
        """A buffer that the current step writes."""
        type_name(dtype)
        step = len(self.steps)
        buffer = Buffer(f"b{len(self.buffers)}", dtype, size, step, step, place)
        self.buffers.append(buffer)
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
        numbers = ", ".join(literal(number, tensor.dtype) for number in tensor.flatten().tolist())
        self._new_buffer(node.meta["val"], f"(void*){name}")
        self.constants.append(f"CONSTANT {type_name(tensor.dtype)} {name}[] = {{{numbers}}};")

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
        self._end_step()

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
        if readers and all(_reads_as_image(reader, node) for reader in readers):
            return True  # and computed again where gradients are
        (reader, *others) = readers
        value = node.meta["val"]
        if others or sum(1 for read in _tensors([reader.args, reader.kwargs]) if read is node) > 1:
            return False
        if reader.target in SUMS or reader.target in EXTREMES:
            return True
        if reader.target is aten.convolution_backward.default:
            return reader.args[0] is node
        return reader.target in ELEMENTWISE and reader.meta["val"].shape == value.shape

    def _pointwise(self, node: Node) -> Expression | None:
        """A node's element as an expression, if each is computed from elements at the same place alone."""
        target, value, args = node.target, node.meta["val"], list(node.args)
        if target in CONSTANTS:
            return Operation(literal(args[CONSTANTS[target]], value.dtype))
        if target not in ELEMENTWISE:
            return None
        overload_packet = getattr(target, "overloadpacket", None)
        if target is aten.where.self:
            condition = self._operand(args[0], value.shape, torch.bool)
            chosen = [self._operand(arg, value.shape, value.dtype) for arg in args[1:]]
            return Operation("({0} ? {1} : {2})", (condition, *chosen))
        if target in CLAMPS:
            given = dict(zip(["min", "max"], args[1:], strict=False)) | node.kwargs
            expression = self._operand(args[0], value.shape, value.dtype)
            for name, bound in [("maximum", given.get("min")), ("minimum", given.get("max"))]:
                if bound is not None:
                    bound = self._operand(bound, value.shape, value.dtype)
                    expression = Operation(f"{name}({{0}}, {{1}})", (expression, bound))
            return expression
        if target is aten.pow.Tensor_Scalar:
            power = f"__builtin_powf({{0}}, {literal(args[1], torch.float32)})"
            if not value.dtype.is_floating_point:
                power = f"({type_name(value.dtype)})power({{0}}, {args[1]})"
            template = POWERS.get(args[1], power)
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
                factor = literal(node.kwargs["alpha"], dtype)
                template = template.replace("{1}", f"{factor} * {{1}}")
            if dtype in SMALL:
                template = f"({type_name(dtype)}){template}"
        if dtype.is_floating_point is False and "__builtin" in template:
            raise _unsupported(node)
        return Operation(template, tuple(self._operand(arg, value.shape, dtype) for arg in args))

    def _operand(self, argument: Any, shape: Sequence[int], dtype: torch.dtype) -> Expression:
        """An operand's element in a loop over ``shape``, as a ``dtype``."""
        if not isinstance(argument, fx.Node):
            return Operation(literal(argument, dtype))
        expression = self.inlined.get(argument)
        if expression is None:
            expression = _element(argument, self._buffer_of(argument), len(shape))
        else:
            for element in elements_of(expression):
                element.buffer.last_use = len(self.steps)
        if argument.meta["val"].dtype == dtype:
            return expression
        through = ""
        if dtype == torch.uint8 and argument.meta["val"].dtype.is_floating_point:
            through = "(int64)"  # as in PyTorch; C++ says nothing of numbers outside of [0, 256)
        return Operation(f"(({type_name(dtype)}){through}{{0}})", (expression,))

    def _gathered(self, node: Node) -> Expression:
        """One element of the first argument along a dimension, at each place of the index."""
        source, dim, index = node.args[:3]
        element = _element(source, self._buffer_of(source))
        return self._indexed(element, source, dim, index)

    def _indexed(self, element: Element, indexed: Node, dim: int, index: Node) -> Element:
        """An element of a tensor at the places that an index names, all of which are looked at first."""
        shape = index.meta["val"].shape
        at = self._operand(index, shape, torch.int64)
        size = indexed.meta["val"].shape[dim]
        loop = Loop([at], by_stride(index.meta["val"].stride()), shape)
        self.lines += [
            "{",
            "  int outside = 0;",
            *(f"  {line}" for line in loop.around([f"outside |= (size){loop.text(at)} >= {size};"], "")),
            "  if (outside) return 1;",
            "}",
        ]
        return _at_index(element, dim, at)

    # Loops ------------------------------------------------------------------------------------------------------------

    def _assign(self, target: Element, expression: Expression, shape: Sequence[int], operator: str = "=") -> None:
        """A loop over a shape that writes an expression."""
        loop = Loop([target, expression], by_stride(target.strides), shape)
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
        ctype = type_name(reduced_value.dtype)
        if node.target in EXTREMES:
            start = _bounds(reduced_value.dtype)[node.target is aten.amin.default]
            update = f"{{0}} = {EXTREMES[node.target]}({{0}}, {{1}});"
            pragma = ""
        else:
            start, update, pragma = "0", "{0} += {1};", "#pragma omp simd reduction(+ : sum)"
        mean = f" / {count}" if node.target in (aten.mean.default, aten.mean.dim) else ""
        along = [element.strides for element in elements_of(expression)]
        if kept and all(strides[kept[-1]] == 1 or strides[reduced[-1]] != 1 for strides in along):
            # Rows are added to rows, rather than each column added up by itself.
            self._assign(target, Operation(start), [1 if dim in reduced else n for dim, n in enumerate(value.shape)])
            loop = Loop([target, expression], [*reduced, *kept], value.shape, [set(reduced), set(kept)])
            added = update.format(loop.text(target), loop.text(expression))
            self.lines += loop.around([added], "#pragma GCC ivdep")
            if mean:
                total = Operation(f"{{0}}{mean}", (target,))
                self._assign(target, total, [1 if dim in reduced else n for dim, n in enumerate(value.shape)])
            return
        loop = Loop([target, expression], [*kept, *reduced], value.shape, [set(kept), set(reduced)])
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
        target = self._indexed(whole, node, dim, index)
        self._assign(whole, self._operand(base, value.shape, result.dtype), value.shape)
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
        if k == 0:
            nothing = self._operand(start[0] if start else 0.0, value.shape, value.dtype)
            self._assign(_element(node, result), nothing, value.shape)
            return
        if start:
            bias = _element(start[0], self._buffer_of(start[0]), 2)
            added = ", ".join([f"{bias.buffer.name} + {bias.offset}", *map(str, bias.strides)])
        for batch in range(value.shape[0] if value.dim() == 3 else 1):
            begins = [
                f"{side.buffer.name} + {side.offset + (batch * side.strides[0] if value.dim() == 3 else 0)}"
                for side in sides
            ]
            place = f"{result.name} + {batch * m * n}"
            (a_row, a_column), (b_row, b_column) = (side.strides[-2:] for side in sides)
            if m <= FEW and k >= LONG and a_column == b_row == 1:
                operands = f"{begins[0]}, {a_row}, {begins[1]}, {b_column}"
                self.lines.append(f"multiply_few({m}, {n}, {k}, {operands}, {added}, {place});")
                continue
            operands = f"{begins[0]}, {a_row}, {a_column}, {begins[1]}, {b_row}, {b_column}"
            self.lines.append(f"multiply({m}, {n}, {k}, {operands}, {added}, {place}, panel);")

    # Convolutions -----------------------------------------------------------------------------------------------------

    def _convolve(self, node: Node, result: Buffer) -> None:
        sizes = Convolution.of(node)
        weight, bias = self._pointer(node.args[1]), node.args[2] and self._pointer(node.args[2])
        room, packed = self._room(sizes.room).name, self._room(sizes.packed).name
        begin, each, image = self._image(node.args[0], sizes.padding)
        before, inside = sizes.forward(image, weight, bias, result.name, room, packed)
        self._for_each_image(node.args[0], [*begin, *before], [*each, *inside])

    def _convolve_backward(self, node: Node) -> None:
        sizes = Convolution.of(node)
        image, weight, bias = (None if value is None else self._new_buffer(value).name for value in _values(node))
        begin, each, gradient = self._image(node.args[0])
        parts = [[begin, each, []]]
        if weight is not None:
            begin, each, images = self._image(node.args[1], sizes.padding)
            room, packed = self._room(sizes.room).name, self._room(sizes.packed).name
            parts += [[begin, each, []], sizes.weight_gradient(gradient, images, weight, room, packed)]
        if image is not None:
            room, packed = self._room(sizes.backward_room).name, self._room(sizes.packed_backward).name
            parts.append(sizes.image_gradient(gradient, self._pointer(node.args[2]), image, room, packed))
        if bias is not None:
            parts.append(sizes.bias_gradient(gradient, bias))
        before, inside, after = (list(itertools.chain(*lines)) for lines in zip(*parts, strict=True))
        self._for_each_image(node.args[0], [f"typedef {sizes.name} C;", *before], inside)
        self.lines += after

    def _for_each_image(self, node: Node, before: Sequence[str], inside: Sequence[str]) -> None:
        self.lines += [
            *before,
            f"for (int i0 = 0; i0 < {node.meta['val'].shape[0]}; i0++) {{",
            *(f"  {line}" for line in inside),
            "}",
        ]

    def _image(self, node: Node, padding: tuple[int, int] = (0, 0)) -> tuple[list[str], list[str], str]:
        """Lines before a loop over images ``i0``, lines inside of it, and then where the image is, with its padding."""
        value = node.meta["val"]
        _, channels, high, wide = value.shape
        if node not in self.inlined and not any(padding):
            return [], [], f"{self._pointer(node)} + i0 * {channels * high * wide}"
        padded_high, padded_wide = high + 2 * padding[0], wide + 2 * padding[1]
        size = channels * padded_high * padded_wide
        image = self._room(size)
        strides = (0, padded_high * padded_wide, padded_wide, 1)
        target = Element(image, padding[0] * padded_wide + padding[1], strides)
        expression = self._operand(node, value.shape, torch.float32)
        loop = Loop([target, expression], [0, 1, 2, 3], value.shape, [{0}, {1, 2, 3}])
        written = [f"{loop.text(target)} = {loop.text(expression)};"]
        zeros = [f"for (int i = 0; i < {size}; i++) {image.name}[i] = 0;"] if any(padding) else []
        return zeros, loop.around(written, "#pragma GCC ivdep", {1, 2, 3}), image.name

    def _pointer(self, node: Node) -> str:
        return f"{self._buffer_of(node).name} + {node.meta['val'].storage_offset()}"


HANDLERS: dict[Any, Callable[[_Generator, Node, Buffer], None]] = {
    aten.argmax.default: _Generator._argmax,
    aten.var.correction: _Generator._variance,
    aten.cat.default: _Generator._cat,
    aten.slice_scatter.default: _Generator._slice_scatter,
    aten.select_scatter.default: _Generator._select_scatter,
    aten.scatter.src: _Generator._scatter,
    aten.scatter.value: _Generator._scatter,
    aten.scatter_add.default: _Generator._scatter,
    aten.convolution.default: _Generator._convolve,
}
ELEMENTWISE = {
    *AS_RESULT,
    *(getattr(packet, name) for packet in AS_COMMON for name in packet.overloads() if "out" not in name),
    aten.where.self,
    *CLAMPS,
    aten.pow.Tensor_Scalar,
    aten.gather.default,
}
ELEMENT_READERS = {*ELEMENTWISE, *SUMS, *EXTREMES, *HANDLERS, *CONVOLUTIONS} - {aten.gather.default}
PANEL_BYTES = 4 * 256 * 32
"""``DEPTH * 2 * LANES`` floats of ``native/kernels.h``."""


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


def _reads_as_image(reader: Node, node: Node) -> bool:
    """Whether a reader is a convolution whose images a node is, and nothing else of it."""
    place = CONVOLUTIONS.get(reader.target)
    return place is not None and [i for i, argument in enumerate(reader.args) if argument is node] == [place]


def _reduced_dims(node: Node, dims: int) -> list[int]:
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if given is None or given == []:
        return list(range(dims))
    return sorted({dim % max(1, dims) for dim in (given if isinstance(given, Sequence) else [given])})


def _extent(value: Tensor) -> int:
    """Elements from the first to the last, in memory."""
    if value.numel() == 0:
        return 0
    return sum((n - 1) * stride for n, stride in zip(value.shape, value.stride(), strict=True)) + 1


def _common_type(arguments: Sequence[Any]) -> torch.dtype:
    """In which numbers are compared."""
    types = [arg.meta["val"].dtype if isinstance(arg, fx.Node) else torch.tensor(arg).dtype for arg in arguments]
    return reduce(torch.promote_types, types)


def _bounds(dtype: torch.dtype) -> tuple[str, str]:
    """The least and the largest number of a type, in C++."""
    if dtype.is_floating_point:
        return literal(-math.inf, dtype), literal(math.inf, dtype)
    if dtype == torch.bool:
        return literal(0, dtype), literal(1, dtype)
    return literal(torch.iinfo(dtype).min, dtype), literal(torch.iinfo(dtype).max, dtype)


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
