"""Walks a graph of ATen operations, as ``make_fx`` records it for fixed shapes, and writes one C++ function.

Memory: each storage is a *buffer*, that is an argument, a result, a constant, or a part of one scratch block that
buffers share whose lifetimes do not overlap. A view copies nothing: it is a buffer with other strides.

Loop fusion: a pointwise operation whose result is read once is inlined into the loop of its reader.

For example, ``(x @ w).tanh()`` for ``x`` of ``[8, 3]`` and ``w`` of ``[3, 5]`` is recorded as::

    mm = aten.mm.default(x, w)
    tanh = aten.tanh.default(mm)

Walking it, ``mm`` gets a buffer of 8 * 5 floats in the scratch block and a call of a kernel, ``tanh`` one that the
caller gave, as it is the result, and a loop. What the product is packed into follows the scratch block::

    #include "kernels.h"
    extern "C" int run(void* const* arguments, void* const* results, char* block) {
      float* const b0 = (float*)(arguments[0]);
      float* const b1 = (float*)(arguments[1]);
      float* const b2 = (float*)(block + 0);
      float* const b3 = (float*)(results[0]);
      float* const panel = (float*)(block + 192);
      {
        multiply(8, 5, 3, b0 + 0, 3, 1, b1 + 0, 5, 1, 0, 0, 0, b2 + 0, panel);
      }
      {
        #pragma GCC ivdep
        for (int i0 = 0; i0 < 40; i0++) {
          b3[i0] = tanh_of(b2[i0]);
        }
      }
      return 0;
    }

``2 * (x @ w).tanh()`` has no loop more: ``tanh`` is fused into that of ``mul``, which computes
``(tanh_of(b2[i0]) * 0x1.0000000000000p+1f)``. And ``x @ w.t()``, for ``w`` of ``[5, 3]``, reads ``b1 + 0, 1, 3``: the
same memory by other strides.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pl_rl.compiled.generator import convolutions
from pl_rl.compiled.generator.convolutions import CONVOLUTIONS, Convolution
from pl_rl.compiled.generator.elements import Elements
from pl_rl.compiled.generator.loops import Buffer, Element, Loop, Node, type_name
from pl_rl.compiled.generator.nodes import element_of, nodes_in, storage_of, unsupported, values_of
from pl_rl.compiled.generator.operations import EXTREMES, PRODUCTS, SUMS

aten = torch.ops.aten
INCLUDE = '#include "kernels.h"'
FEW, LONG = 8, 512
"""For at most FEW rows and an inner size of at least LONG, dot products beat packing the right matrix."""
PANEL_BYTES = 4 * 256 * 32
"""The packed panel of a right matrix: ``DEPTH * 2 * LANES`` floats of ``kernels/kernels.h``, at most."""


def takes_dot_products(rows: int, inner: int) -> bool:
    """Whether a product of so many rows and with this inner size reads a right matrix whose columns are contiguous."""
    return rows <= FEW and inner >= LONG


@dataclasses.dataclass(frozen=True)
class Source:
    """A C++ function ``int run(void* const* arguments, void* const* results, char* block)``.

    It returns 0, or 1 if the index of a gather or scatter is out of bounds; it stops before it uses that.

    Attributes:
        text: The source.
        block_size: Bytes of scratch memory that ``block`` must have.
    """

    text: str
    block_size: int


def generate(graph: fx.GraphModule) -> Source:
    """C++ source of a graph.

    Args:
        graph: Functional, in core ATen operations, its nodes with fake tensors.

    Raises:
        CompilationError: For an operation or a type that is not supported.
    """
    return _Generator(graph).source()


class _Generator(Elements):
    """Walks the nodes of a graph once, in order."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.nodes = list(graph.graph.nodes)
        self.results = list(nodes_in(graph.graph.output_node().args[0]))

    def source(self) -> Source:
        """Write all nodes, then allocate memory; the declarations of buffers come out first."""
        arguments = [node for node in self.nodes if node.op == "placeholder"]
        for i, node in enumerate(arguments):
            self.new_buffer(node.meta["val"], f"arguments[{i}]")
        for node in self.nodes:
            if node.op == "get_attr":
                self.constant(node)
            elif node.op == "call_function":
                self._node(node)
        for i, node in enumerate(self.results):
            self._result(node, f"results[{i}]")
        block_size = self.share_memory()
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
        """Write a node, unless it is a view or fused into its reader."""
        tensors = [value for value in values_of(node) if isinstance(value, Tensor)]
        if tensors and all(storage_of(value) in self.by_storage for value in tensors):
            return  # a view
        if node.target is aten.convolution_backward.default:
            self._convolve_backward(node)
            self.end_step()
            return
        if len(tensors) != 1 or not isinstance(node.meta["val"], Tensor):
            raise unsupported(node)
        if node.target in (aten.view.default, aten._unsafe_view.default):
            if not node.args[0].meta["val"].is_contiguous():
                raise unsupported(node)
            self.by_storage[storage_of(tensors[0])] = self.buffer_of(node.args[0])
            return
        expression = self.pointwise(node)
        if expression is not None and self.is_fused(node):
            self.inlined[node] = expression
            return
        result = self.new_buffer(node.meta["val"])
        if expression is not None:
            self.assign(element_of(node, result), expression, node.meta["val"].shape)
        elif node.target in SUMS or node.target in EXTREMES:
            self.reduce(node, result)
        elif node.target in PRODUCTS:
            self._multiply(node, result)
        elif handler := HANDLERS.get(node.target):
            handler(self, node, result)
        else:
            raise unsupported(node)
        self.end_step()

    def _result(self, node: Node, place: str) -> None:
        """Let a result be computed where the caller wants it, or copy it there."""
        value = node.meta["val"]
        buffer = self.buffer_of(node)
        if buffer.place is None and value.is_contiguous() and value.numel() == buffer.size:
            buffer.place = place
            return
        result = Buffer(f"b{len(self.buffers)}", value.dtype, value.numel(), place=place)
        self.buffers.append(result)
        strides = tuple(torch.empty(value.shape, device="meta").stride())
        self.assign(Element(result, 0, strides), element_of(node, buffer), value.shape)
        self.end_step()

    def _cat(self, node: Node, result: Buffer) -> None:
        tensors, dim = node.args[0], node.args[1] if len(node.args) > 1 else 0
        whole = element_of(node, result)
        dim %= len(whole.strides)
        begin = 0
        for tensor in tensors:
            value = tensor.meta["val"]
            part = dataclasses.replace(whole, offset=begin * whole.strides[dim])
            if value.numel():
                self.assign(part, self.operand(tensor, value.shape, result.dtype), value.shape)
                begin += value.shape[dim]

    def _slice_scatter(self, node: Node, result: Buffer) -> None:
        base, source = node.args[:2]
        given: list[Any] = list(node.args[2:])
        dim, begin, _, step = given + [0, None, None, 1][len(given) :]
        value, shape = node.meta["val"], source.meta["val"].shape
        whole = element_of(node, result)
        self.assign(whole, self.operand(base, value.shape, result.dtype), value.shape)
        strides = list(whole.strides)
        first = min(max(0, begin + value.shape[dim] if begin < 0 else begin), value.shape[dim]) if begin else 0
        offset = first * strides[dim]
        strides[dim] *= step
        self.assign(Element(result, offset, tuple(strides)), self.operand(source, shape, result.dtype), shape)

    def _select_scatter(self, node: Node, result: Buffer) -> None:
        base, source, dim, index = node.args
        whole, value = element_of(node, result), node.meta["val"]
        dim %= value.dim()
        index %= value.shape[dim]
        self.assign(whole, self.operand(base, value.shape, result.dtype), value.shape)
        strides = list(whole.strides)
        offset = index * strides.pop(dim)
        shape = source.meta["val"].shape
        self.assign(Element(result, offset, tuple(strides)), self.operand(source, shape, result.dtype), shape)

    def _scatter(self, node: Node, result: Buffer) -> None:
        """Sequential, as an index may name a place twice."""
        base, dim, index, source = node.args[:4]
        whole, value = element_of(node, result), node.meta["val"]
        shape = index.meta["val"].shape
        target = self.indexed_element(whole, node, dim, index)
        self.assign(whole, self.operand(base, value.shape, result.dtype), value.shape)
        operator = "+=" if node.target is aten.scatter_add.default else "="
        self.assign(target, self.operand(source, shape, result.dtype), shape, operator)

    def _multiply(self, node: Node, result: Buffer) -> None:
        *start, left, right = node.args[-3:] if node.target is aten.addmm.default else node.args
        value = node.meta["val"]
        if node.kwargs or not value.is_contiguous() or value.dtype != torch.float32:
            raise unsupported(node)
        sides = [element_of(side, self.buffer_of(side)) for side in (left, right)]
        m, n = value.shape[-2:]
        k = left.meta["val"].shape[-1]
        added = "0, 0, 0"
        if k == 0:
            nothing = self.operand(start[0] if start else 0.0, value.shape, value.dtype)
            self.assign(element_of(node, result), nothing, value.shape)
            return
        if start:
            bias = element_of(start[0], self.buffer_of(start[0]), 2)
            added = ", ".join([f"{bias.buffer.name} + {bias.offset}", *map(str, bias.strides)])
        for batch in range(value.shape[0] if value.dim() == 3 else 1):
            begins = [
                f"{side.buffer.name} + {side.offset + (batch * side.strides[0] if value.dim() == 3 else 0)}"
                for side in sides
            ]
            place = f"{result.name} + {batch * m * n}"
            (a_row, a_column), (b_row, b_column) = (side.strides[-2:] for side in sides)
            if takes_dot_products(m, k) and a_column == b_row == 1:
                operands = f"{begins[0]}, {a_row}, {begins[1]}, {b_column}"
                self.lines.append(f"multiply_few({m}, {n}, {k}, {operands}, {added}, {place});")
                continue
            operands = f"{begins[0]}, {a_row}, {a_column}, {begins[1]}, {b_row}, {b_column}"
            self.lines.append(f"multiply({m}, {n}, {k}, {operands}, {added}, {place}, panel);")

    # Convolutions -----------------------------------------------------------------------------------------------------

    def _convolve(self, node: Node, result: Buffer) -> None:
        sizes = Convolution.of(node)
        weight, bias = self._pointer(node.args[1]), node.args[2] and self._pointer(node.args[2])
        scratch, packed = self.scratch(sizes.scratch).name, self.scratch(sizes.packed).name
        begin, each, image = self._image(node.args[0], sizes.padding)
        before, inside = sizes.forward(image, weight, bias, result.name, scratch, packed)
        self._for_each_image(node.args[0], [*begin, *before], [*each, *inside])

    def _convolve_backward(self, node: Node) -> None:
        sizes = Convolution.of(node)
        image, weight, bias = (None if value is None else self.new_buffer(value).name for value in values_of(node))
        begin, each, gradient = self._image(node.args[0])
        parts = [[begin, each, []]]
        if weight is not None:
            begin, each, images = self._image(node.args[1], sizes.padding)
            scratch, packed = self.scratch(sizes.scratch).name, self.scratch(sizes.packed).name
            parts += [[begin, each, []], sizes.weight_gradient(gradient, images, weight, scratch, packed)]
        if image is not None:
            scratch, packed = self.scratch(sizes.backward_scratch).name, self.scratch(sizes.packed_backward).name
            parts.append(sizes.image_gradient(gradient, self._pointer(node.args[2]), image, scratch, packed))
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
        """Lines before the loop over images ``i0``, lines inside it, and a pointer to the padded image."""
        value = node.meta["val"]
        _, channels, high, wide = value.shape
        if node not in self.inlined and not any(padding):
            return [], [], f"{self._pointer(node)} + i0 * {channels * high * wide}"
        padded_high, padded_wide = high + 2 * padding[0], wide + 2 * padding[1]
        size = channels * padded_high * padded_wide
        image = self.scratch(size)
        strides = (0, padded_high * padded_wide, padded_wide, 1)
        target = Element(image, padding[0] * padded_wide + padding[1], strides)
        expression = self.operand(node, value.shape, torch.float32)
        loop = Loop([target, expression], [0, 1, 2, 3], value.shape, [{0}, {1, 2, 3}])
        written = [f"{loop.text(target)} = {loop.text(expression)};"]
        zeros = [f"for (int i = 0; i < {size}; i++) {image.name}[i] = 0;"] if any(padding) else []
        return zeros, loop.around(written, "#pragma GCC ivdep", {1, 2, 3}), image.name

    def _pointer(self, node: Node) -> str:
        return f"{self.buffer_of(node).name} + {node.meta['val'].storage_offset()}"


HANDLERS: dict[Any, Callable[[_Generator, Node, Buffer], None]] = {
    aten.argmax.default: _Generator.argmax,
    aten.var.correction: _Generator.variance,
    aten.cat.default: _Generator._cat,
    aten.slice_scatter.default: _Generator._slice_scatter,
    aten.select_scatter.default: _Generator._select_scatter,
    aten.scatter.src: _Generator._scatter,
    aten.scatter.value: _Generator._scatter,
    aten.scatter_add.default: _Generator._scatter,
    aten.convolution.default: _Generator._convolve,
}
