"""C++ source for graphs of ATen operations."""

from pl_rl.codegen.convolutions import DECOMPOSITIONS
from pl_rl.codegen.graphs import Source, generate

__all__ = ["DECOMPOSITIONS", "Source", "generate"]
