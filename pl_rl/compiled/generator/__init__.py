"""C++ source for graphs of ATen operations.

What belongs here: what writes source. What does not: compiling and calling it (``compiled/``).
"""

from pl_rl.compiled.generator.convolutions import DECOMPOSITIONS
from pl_rl.compiled.generator.graphs import Source, generate

__all__ = ["DECOMPOSITIONS", "Source", "generate"]
