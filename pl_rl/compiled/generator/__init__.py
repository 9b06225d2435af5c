"""C++ source for graphs of ATen operations."""

from pl_rl.compiled.generator.convolutions import DECOMPOSITIONS
from pl_rl.compiled.generator.graphs import Source, generate

__all__ = ["DECOMPOSITIONS", "Source", "generate"]
