"""Code generator: from a graph of ATen operations to one C++ function.

``graphs`` walks the graph (its docstring has a worked example), ``elements`` fuses pointwise operations into loops,
``buffers`` allocates memory, ``loops`` writes loop nests and expressions, ``convolutions`` writes calls of the
convolution kernels. ``operations`` is the table of what is supported, ``nodes`` reads shapes and types of nodes.

What belongs here: what writes source. What does not: tracing, compiling and calling it (``compiled/``).
"""

from pl_rl.compiled.generator.convolutions import DECOMPOSITIONS
from pl_rl.compiled.generator.graphs import Source, generate, takes_dot_products

__all__ = ["DECOMPOSITIONS", "Source", "generate", "takes_dot_products"]
