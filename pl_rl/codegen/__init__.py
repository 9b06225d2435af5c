"""C++ source for graphs of ATen operations."""

from pl_rl.codegen.convolutions import DECOMPOSITIONS
from pl_rl.codegen.graphs import AS_RESULT, Source, generate

__all__ = ["AS_RESULT", "DECOMPOSITIONS", "Source", "generate"]
