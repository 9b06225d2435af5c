"""C++ source for graphs of ATen operations."""

from pl_rl.codegen.convolutions import DECOMPOSITIONS
from pl_rl.codegen.graphs import Source, generate
from pl_rl.codegen.operations import AS_RESULT

__all__ = ["AS_RESULT", "DECOMPOSITIONS", "Source", "generate"]
