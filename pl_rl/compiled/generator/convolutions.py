"""Calls of the 2-D convolution kernels of ``kernels/convolutions.h``, one image at a time."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pl_rl.compiled.generator.loops import Node
from pl_rl.errors import CompilationError

aten = torch.ops.aten
INCLUDE = '#include "convolutions.h"'
CONVOLUTIONS = {aten.convolution.default: 0, aten.convolution_backward.default: 1}
"""The position of the images among their arguments."""
MOST_LANES = 16
"""Floats of the widest vector of ``kernels/kernels.h``."""


def _contiguous(images: Tensor, weight: Tensor, *rest: Any) -> Any:
    """A decomposition that makes the operands contiguous."""
    if images.is_contiguous() and weight.is_contiguous():
        return NotImplemented
    return aten.convolution(images.contiguous(), weight.contiguous(), *rest)


def _contiguous_backward(gradient: Tensor, images: Tensor, weight: Tensor, *rest: Any) -> Any:
    """The same for the backward pass."""
    if gradient.is_contiguous() and images.is_contiguous() and weight.is_contiguous():
        return NotImplemented
    return aten.convolution_backward(gradient.contiguous(), images.contiguous(), weight.contiguous(), *rest)


DECOMPOSITIONS = {
    aten.convolution.default: _contiguous,
    aten.convolution_backward.default: _contiguous_backward,
}


@dataclasses.dataclass(frozen=True)
class Convolution:
    """The sizes of a convolution; pairs are (height, width)."""

    channels: int
    size: tuple[int, int]
    """Of an image, without padding."""
    filters: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    @classmethod
    def of(cls, node: Node) -> "Convolution":
        """The sizes of a node.

        Raises:
            CompilationError: If such a convolution is not supported.
        """
        backward = node.target is aten.convolution_backward.default
        images, weight = (argument.meta["val"] for argument in node.args[CONVOLUTIONS[node.target] :][:2])
        stride, padding, dilation, transposed, _, groups = node.args[4:10] if backward else node.args[3:9]
        for name, given, only in [
            ("dimensions", images.dim() - 2, 2),
            ("transposed", transposed, False),
            ("dilation", max(dilation), 1),
            ("groups", groups, 1),
        ]:
            if given != only:
                raise CompilationError(
                    f"the network uses {node.target} with {name}={given}, and compiled updates are made for {only}"
                )
        value = node.meta["val"]
        tensors = [argument.meta["val"] for argument in node.args if isinstance(argument, fx.Node)]
        tensors += [result for result in (value if backward else [value]) if result is not None]
        if any(not tensor.is_contiguous() or tensor.dtype != torch.float32 for tensor in tensors):
            raise CompilationError(f"the network uses {node.target} with other than contiguous tensors of float32")
        filters, channels, *kernel = weight.shape
        return cls(channels, _pair(images.shape[2:]), filters, _pair(kernel), _pair(stride), _pair(padding))

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width of an image with its padding."""
        return self.size[0] + 2 * self.padding[0], self.size[1] + 2 * self.padding[1]

    @property
    def image_size(self) -> int:
        """Floats of an image."""
        return self.channels * math.prod(self.size)

    @property
    def result_size(self) -> int:
        """Floats of the result of one image."""
        return self.filters * self._pixels

    @property
    def _pixels(self) -> int:
        sizes = zip(self.padded, self.kernel, self.stride, strict=True)
        return math.prod((size - kernel) // stride + 1 for size, kernel, stride in sizes)

    @property
    def name(self) -> str:
        """The instance of the C++ template."""
        numbers = (self.channels, *self.padded, self.filters, *self.kernel, *self.stride)
        return f"Convolution<{', '.join(map(str, numbers))}>"

    @property
    def scratch(self) -> int:
        """Floats of the result of one image with filters innermost (HWC), padded to whole vectors."""
        return self._pixels * _whole_vectors(self.filters)

    @property
    def packed(self) -> int:
        """Floats of the packed filters of the forward pass, padded to whole vectors."""
        return self.channels * math.prod(self.kernel) * _whole_vectors(self.filters)

    @property
    def packed_backward(self) -> int:
        """Floats of the packed filters of the gradient of images, padded to whole vectors."""
        return self.kernel[0] * _whole_vectors(self.kernel[1] * self.channels) * self.filters

    @property
    def backward_scratch(self) -> int:
        """Floats of the gradient of one padded image with channels innermost, and a vector more."""
        return self.channels * math.prod(self.padded) + MOST_LANES

    def forward(
        self, images: str, weight: str, bias: str | None, result: str, scratch: str, packed: str
    ) -> tuple[list[str], list[str]]:
        """Lines before the loop over images ``i0`` and inside it.

        Args:
            images: The current image; like all arguments that follow a C++ expression for a pointer.
            weight: The filters.
            bias: Of each filter, if they have one.
            result: The results of all images.
            scratch: Memory for :attr:`scratch` floats.
            packed: Memory for :attr:`packed` floats.
        """
        before = [f"typedef {self.name} C;", "float bias[C::WIDTH] = {};", f"C::pack_forward({weight}, {packed});"]
        if bias is not None:
            before.append(f"for (int i = 0; i < {self.filters}; i++) bias[i] = ({bias})[i];")
        return before, [f"C::forward({images}, {packed}, bias, {result} + i0 * {self.result_size}, {scratch});"]

    def weight_gradient(self, gradient: str, images: str, result: str, scratch: str, packed: str) -> list[list[str]]:
        """Lines before the loop over images ``i0``, inside it and after it, for the gradient of the filters."""
        return [
            [*_zeros(scratch, self.scratch), *_zeros(packed, self.packed)],
            [
                f"transpose({gradient}, {self.filters}, C::PIXELS, C::PIXELS, {scratch}, C::WIDTH);",
                f"C::weight_gradient({images}, {scratch}, {packed});",
            ],
            [f"transpose({packed}, C::FILTER, {self.filters}, C::WIDTH, {result}, C::FILTER);"],
        ]

    def image_gradient(self, gradient: str, weight: str, result: str, scratch: str, packed: str) -> list[list[str]]:
        """Lines before the loop over images ``i0``, inside it and after it, for the gradient of the unpadded images."""
        (high, wide), (top, left) = self.size, self.padding
        columns = self.channels
        to = f"{result} + i0 * {self.image_size}"
        if left:
            begin = f"{scratch} + ((i + {top}) * {self.padded[1]} + {left}) * {columns}"
            unpad = f"transpose({begin}, {wide}, {columns}, {columns}, {to} + i * {wide}, {high * wide});"
            unpad = f"for (int i = 0; i < {high}; i++) {unpad}"
        else:
            begin = f"{scratch} + {top * wide * columns}"
            unpad = f"transpose({begin}, {high * wide}, {columns}, {columns}, {to}, {high * wide});"
        return [
            [f"C::pack_backward({weight}, {packed});"],
            [f"C::image_gradient({gradient}, {packed}, {scratch});", unpad],
            [],
        ]

    def bias_gradient(self, gradient: str, result: str) -> list[list[str]]:
        """Lines before the loop over images ``i0``, inside it and after it, for the gradient of the bias."""
        return [_zeros(result, self.filters), [f"C::bias_gradient({gradient}, {result});"], []]


def _zeros(place: str, size: int) -> list[str]:
    return [f"for (int i = 0; i < {size}; i++) ({place})[i] = 0;"]


def _whole_vectors(numbers: int) -> int:
    return -(-numbers // MOST_LANES) * MOST_LANES


def _pair(numbers: Sequence[int]) -> tuple[int, int]:
    high, wide = numbers
    return high, wide
