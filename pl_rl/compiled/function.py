"""Functions of tensors as machine code: traced once, written as C++, compiled, cached on disk, called by ctypes.

A small network's update is a few hundred operations of a few microseconds each, most of it dispatch overhead. As one
function of fixed shapes it is a single call that costs little more than its matrix products. The compiled library is
cached on disk (:mod:`pl_rl.compiled.code_cache`), by a digest of its source: the first run of a network on a machine
waits a few seconds, and a resumed run gets the same bits.
"""

import ctypes
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, fx

from pl_rl.compiled import code_cache, compiler, tracing
from pl_rl.compiled import generator as codegen
from pl_rl.compiled.comments import strip_cpp, strip_python
from pl_rl.compiled.compiler import Compiler, find_compiler
from pl_rl.errors import CompilationError, RunFailure, UnsupportedOperation

__all__ = ["Compiled", "Library", "compile_function", "describe_machine_code", "digest"]


class Library:
    """A shared library: from the cache, or being compiled in the background.

    Args:
        source: In C++; it may include files of ``kernels/``.

    Raises:
        CompilationError: If there is no compiler, or it cannot be started.
    """

    def __init__(self, source: str) -> None:
        _check_compiler()
        compiler.remove_leftovers()
        self._key = _key(source)
        kept = code_cache.read(self._key)
        self._loaded = None if kept is None else _load(kept)
        self._compiler = None if self._loaded is not None else Compiler(source)

    def load(self) -> ctypes.CDLL:
        """Wait for the library and load it.

        Raises:
            CompilationError: If it cannot be compiled or loaded.
        """
        if self._compiler is not None:
            library = self._compiler.finish()
            self._compiler, self._loaded = None, _load(library)
            if self._loaded is not None:
                code_cache.keep(self._key, library)
        if self._loaded is None:
            raise CompilationError("what the compiler made cannot be loaded")
        return self._loaded


def _check_compiler() -> None:
    """Refuse a machine without a compiler.

    Raises:
        CompilationError: If there is none.
    """
    if find_compiler() is None:
        raise CompilationError("no C++ compiler was found on this machine")


def _load(library: bytes) -> ctypes.CDLL | None:
    """Load a library; ``None`` if it does not fit this system, as in a home directory that several systems share."""
    try:
        return code_cache.load(library)
    except OSError as error:
        code_cache.say(f"Machine code cannot be loaded: {error}.")
        return None


class Compiled:
    """A compiled function of tensors. Several threads may call it at once, each with an instance of its own.

    The constructor starts the compiler, unless the cache has the library; several functions compile in parallel.

    Args:
        function: Takes and returns tensors; may use autograd inside, and branch on nothing but shapes.
        example: Arguments of the shapes, types and strides that it will be called with.
        instances: How many threads will call it at once; each has scratch memory of its own.

    Attributes:
        results: Tensors of the shapes and types that it returns.

    Raises:
        CompilationError: If it cannot be compiled, here or at all.
    """

    def __init__(
        self, function: Callable[..., Sequence[Tensor]], example: Sequence[Tensor], instances: int = 1
    ) -> None:
        _check_compiler()  # before the trace, which takes longer
        # ``generate`` assumes that each argument has a storage of its own, and offset 0.
        example = [tensor.detach().clone() for tensor in example]
        graph = tracing.trace(function, example)
        self._expected = [_layout(tensor) for tensor in example]
        returned: Any = graph.graph.output_node().args[0]
        self.results = [torch.empty(node.meta["val"].shape, dtype=node.meta["val"].dtype) for node in returned]
        self._run: Any = None
        self._compile(graph, example, instances)

    def _compile(self, graph: fx.GraphModule, example: Sequence[Tensor], instances: int) -> None:
        try:
            source = codegen.generate(graph)
        except CompilationError as error:
            raise UnsupportedOperation(str(error)) from error
        except Exception as error:
            raise CompilationError(f"there is no source for the network: {tracing.first_line(error)}") from error
        self._library = Library(source.text)
        self._blocks = [torch.empty(source.block_size, dtype=torch.uint8) for _ in range(instances)]

    def load(self) -> Self:
        """Wait for the compiler, and load the function.

        Raises:
            CompilationError: If the compiler fails.
        """
        self._run = self._library.load().run
        self._run.argtypes, self._run.restype = [ctypes.c_void_p] * 3, ctypes.c_int
        return self

    def bind(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], instance: int = 0) -> "Call":
        """Bind the function to tensors that it reads and writes.

        Args:
            inputs: Of the shapes, types and strides of the example.
            outputs: Of those of ``results``.
            instance: Whose scratch memory it uses.

        Raises:
            CompilationError: If one has another shape, type or strides, as memory past its end would be accessed.
        """
        given = [_layout(tensor) for tensor in [*inputs, *outputs]]
        expected = [*self._expected, *(_layout(result) for result in self.results)]
        if given != expected:
            other = [pair for pair in zip(given, expected, strict=False) if pair[0] != pair[1]]
            told = "{} instead of {}".format(*other[0]) if other else f"{len(given)} instead of {len(expected)} of them"
            raise CompilationError(f"tensors are not as it was compiled for (shape, type, strides): {told}")
        return self._call(inputs, outputs, instance)

    @classmethod
    def describe(cls, *callers: Path) -> str:
        """See :func:`describe_machine_code`."""
        return describe_machine_code(*callers)

    def _call(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], instance: int) -> "Call":
        return Call(self._run, inputs, outputs, self._blocks[instance])

    def __call__(self, *inputs: Tensor, instance: int = 0) -> list[Tensor]:
        """The function's outputs, without gradients."""
        outputs = [torch.empty_like(result) for result in self.results]
        self.bind(inputs, outputs, instance)()
        return outputs


class Call:
    """A compiled function, bound to the addresses of its arguments and results.

    Attributes:
        arguments: Addresses of the inputs; assign those of other tensors of the same shape, type and strides.
        results: Addresses of the outputs, likewise.
    """

    def __init__(self, run: Any, inputs: Sequence[Tensor], outputs: Sequence[Tensor], block: Tensor) -> None:
        self.arguments = (ctypes.c_void_p * len(inputs))(*(tensor.data_ptr() for tensor in inputs))
        self.results = (ctypes.c_void_p * len(outputs))(*(tensor.data_ptr() for tensor in outputs))
        self._tensors = (inputs, outputs, block)  # kept alive
        self._run, self._addresses = run, (ctypes.byref(self.arguments), ctypes.byref(self.results), block.data_ptr())

    def __call__(self) -> None:
        """Compute; ctypes releases the GIL meanwhile.

        Raises:
            RunFailure: If the index of a gather or scatter is out of bounds; it is not used.
        """
        if self._run(*self._addresses):
            raise RunFailure(
                "the network gathers from, or scatters to, a place outside of a tensor; mend the index, which "
                "compile_update=false shows in a traceback"
            )


class StepCalls:
    """A compiled function that is called for one step after another.

    Args:
        compiled: The function.
        moving: Its first arguments, of all steps ``[T, ...]``.
        fixed: Its other arguments.
        moving_results: Its first results, of all steps ``[T, ...]``.
        fixed_results: Its other results.
        instance: Whose scratch memory it uses.

    Attributes:
        call: Bound to the fixed tensors.
        count: ``T``.

    Raises:
        CompilationError: If a tensor is not as the function was compiled for.
    """

    def __init__(
        self,
        compiled: Compiled,
        moving: Sequence[Tensor],
        fixed: Sequence[Tensor],
        moving_results: Sequence[Tensor],
        fixed_results: Sequence[Tensor],
        instance: int = 0,
    ) -> None:
        first = [[steps[0] for steps in tensors] for tensors in (moving, moving_results)]
        self.call = compiled.bind([*first[0], *fixed], [*first[1], *fixed_results], instance)
        self.count = len(moving[0])
        self._read, self._written = (
            [(steps.data_ptr(), steps.stride(0) * steps.element_size()) for steps in tensors]
            for tensors in (moving, moving_results)
        )

    def __call__(self, t: int) -> None:
        """Compute step ``t``; the calls differ in addresses alone."""
        call = self.call
        for i, (address, size) in enumerate(self._read):
            call.arguments[i] = address + t * size
        for i, (address, size) in enumerate(self._written):
            call.results[i] = address + t * size
        call()


def compile_function(
    function: Callable[..., Sequence[Tensor]], example: Sequence[Tensor], instances: int = 1
) -> Compiled:
    """Compile a function of CPU tensors for one set of shapes, or load it from the cache.

    Arguments and errors are those of :class:`Compiled`.
    """
    return Compiled(function, example, instances).load()


def describe_machine_code(*callers: Path) -> str:
    """What the bits of results depend on: the compiler, and a digest of generator, kernels, flags and processor.

    Comments and docstrings do not count.

    Args:
        callers: Files that decide on bits, too, by what they compile.
    """
    writers = [Path(tracing.__file__), *sorted(Path(codegen.__file__).parent.glob("*.py")), *callers]
    parts = [*(strip_python(path.read_text()) for path in writers), _included(), compiler.flags(), compiler.processor()]
    return f"compiled by {find_compiler()}, code {digest(parts)[:8]}"


def _key(source: str) -> str:
    """The cache key: a digest of all that decides what is compiled."""
    return digest([source, _included(), compiler.flags(), find_compiler(), compiler.processor()])[:32]


def _included() -> list[str]:
    return [strip_cpp(path.read_text()) for path in sorted(compiler.KERNELS.iterdir())]


def digest(parts: list[Any]) -> str:
    """The SHA-256 of what parts print as, in hexadecimal digits."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    """Shape, type, and the strides of dimensions with more than one element."""
    strides = [stride for stride, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1]
    return tuple(tensor.shape), tensor.dtype, strides if tensor.numel() else []
