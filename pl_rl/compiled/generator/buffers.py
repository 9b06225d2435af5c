"""Memory allocation: arguments, results, constants, and one scratch block for all temporaries.

A buffer is known by the storage of its fake tensor. Views share the storage of their base, so they find its buffer.
"""

from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx

from pl_rl.compiled.generator.loops import Buffer, Node, literal, type_name
from pl_rl.compiled.generator.nodes import extent, storage_of

ALIGNMENT = 64


class Buffers:
    """The buffers of a function that is written step by step; a step is the unit of their lifetimes.

    Args:
        graph: Its nodes have fake tensors.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph
        self.by_storage: dict[int, Buffer] = {}
        self.buffers: list[Buffer] = []
        self.steps: list[list[str]] = []
        self.lines: list[str] = []
        self.constants: list[str] = []

    def end_step(self) -> None:
        """Close the current step and begin the next."""
        self.steps.append(self.lines)
        self.lines = []

    def new_buffer(self, value: Tensor, place: str | None = None) -> Buffer:
        """The buffer of a tensor that the current step writes."""
        buffer = self.scratch(extent(value), value.dtype, place)
        self.by_storage[storage_of(value)] = buffer
        return buffer

    def scratch(self, size: int, dtype: torch.dtype = torch.float32, place: str | None = None) -> Buffer:
        """A buffer of ``size`` elements that the current step writes and no tensor of the graph has."""
        type_name(dtype)
        step = len(self.steps)
        buffer = Buffer(f"b{len(self.buffers)}", dtype, size, step, step, place)
        self.buffers.append(buffer)
        return buffer

    def buffer_of(self, node: Any) -> Buffer:
        """The buffer of a tensor that the current step reads."""
        buffer = self.by_storage[storage_of(node.meta["val"])]
        buffer.last_use = len(self.steps)
        return buffer

    def constant(self, node: Node) -> None:
        """Write a tensor that is part of the graph as a global array."""
        tensor: Any = reduce(getattr, str(node.target).split("."), self.graph)
        node.meta.setdefault("val", tensor)
        name = f"constant{len(self.constants)}"
        numbers = ", ".join(literal(number, tensor.dtype) for number in tensor.flatten().tolist())
        self.new_buffer(node.meta["val"], f"(void*){name}")
        self.constants.append(f"CONSTANT {type_name(tensor.dtype)} {name}[] = {{{numbers}}};")

    def share_memory(self) -> int:
        """Place the temporaries in the scratch block, first fit by lifetime; returns the bytes of the block."""
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
