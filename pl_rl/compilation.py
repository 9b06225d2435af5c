"""Functions of tensors as machine code: traced once, written as C++, compiled, kept on disk, called without Python.

A small network's update is a few hundred operations of a few microseconds each, most of it spent on the way from
Python to the operation. As one function that knows all shapes it is a single call, of little more than its matrix
products. What is compiled for a machine is kept in ``$XDG_CACHE_HOME/pl_rl`` (``~/.cache/pl_rl``), named by its source:
the first run of a network pays a few seconds, and a run that is resumed gets the same bits.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import core_aten_decompositions, get_decompositions
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from pl_rl import codegen
from pl_rl.errors import CompilationError

NATIVE = Path(__file__).parent / "native"
FLAGS = [
    *("-std=c++17", "-shared", "-fPIC", "-march=native"),
    *("-O2", "-ftree-vectorize", "-fvect-cost-model=dynamic", "-fopenmp-simd"),
    # Nobody reads errno or floating-point exceptions; what the numbers are stays as written.
    *("-fno-math-errno", "-fno-trapping-math"),
]
ALSO_DECOMPOSED = [getattr(torch.ops.aten, name) for name in ("_log_softmax", "_softmax", "elu", "gelu", "leaky_relu")]
NOT_DECOMPOSED = [torch.ops.aten.slice_scatter.default, torch.ops.aten.select_scatter.default]


class Library:
    """A shared library that is being compiled, or was before.

    Args:
        source: In C++, without what it includes from ``native/``.

    Raises:
        CompilationError: If there is no compiler or no folder to keep it in.
    """

    def __init__(self, source: str) -> None:
        self._path = _cache_folder() / f"{_key(source)}.so"
        self._compiler = None if self._path.exists() else _Compiler(source, self._path)

    def load(self) -> ctypes.CDLL:
        """The library, once it is there.

        Raises:
            CompilationError: If it cannot be compiled or loaded.
        """
        if self._compiler is not None:
            self._compiler.finish()
            self._compiler = None
        try:
            return ctypes.CDLL(str(self._path))
        except OSError as error:
            raise CompilationError(f"{self._path} cannot be loaded; delete it to compile it again: {error}") from error


class _Compiler:
    """A compiler's process, whose library appears at ``path`` whole or not at all."""

    def __init__(self, source: str, path: Path) -> None:
        self._path = path
        self._folder = tempfile.TemporaryDirectory(dir=path.parent)
        written = Path(self._folder.name, "source.cpp")
        written.write_text(source)
        self._library = written.with_suffix(".so")
        command = [_command(), *FLAGS, f"-I{NATIVE}", "-o", str(self._library), str(written)]
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        weakref.finalize(self, _end, self._process)  # a run that is asked to leave does not wait for it

    def finish(self) -> None:
        """Wait for it.

        Raises:
            CompilationError: With the first error.
        """
        with self._folder:
            _, output = self._process.communicate()
            if self._process.returncode:
                errors = [line for line in output.splitlines() if "error" in line] or [output.strip() or "no reason"]
                raise CompilationError(f"compiling failed: {errors[0]}")
            self._library.replace(self._path)


def _end(compiler: subprocess.Popen[str]) -> None:
    """Leave no process behind, nor those that it started."""
    if compiler.poll() is None:
        os.killpg(compiler.pid, signal.SIGKILL)
        compiler.wait()


class Compiled:
    """A compiled function of tensors; several threads may call it at once, each with an instance of its own.

    Making one starts the compiler, or finds what it made before; several can be compiled side by side.

    Args:
        function: Takes and returns tensors; may use autograd inside, and branch on nothing but shapes.
        example: Arguments of the shapes that it will be called with.
        instances: How many threads will call it at once.

    Attributes:
        results: Tensors of the shapes and types that it returns.

    Raises:
        CompilationError: If it cannot be compiled, here or at all.
    """

    def __init__(
        self, function: Callable[..., Sequence[Tensor]], example: Sequence[Tensor], instances: int = 1
    ) -> None:
        if find_compiler() is None:
            raise CompilationError("no C++ compiler was found on this machine")
        # Each in memory of its own, from its beginning, as ``generate`` takes for granted.
        example = [tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in example]
        graph = _trace(function, example)
        source = codegen.generate(graph)
        self._expected = [(tensor.shape, tensor.dtype) for tensor in example]
        returned: Any = graph.graph.output_node().args[0]
        self.results = [torch.empty(node.meta["val"].shape, dtype=node.meta["val"].dtype) for node in returned]
        self._library = Library(source.text)
        self._run: Any = None
        self._blocks = [torch.empty(source.block_size, dtype=torch.uint8) for _ in range(instances)]

    def load(self) -> "Compiled":
        """Wait until it can be called.

        Raises:
            CompilationError: If the compiler fails.
        """
        self._run = self._library.load().run
        self._run.argtypes, self._run.restype = [ctypes.c_void_p] * 3, None
        return self

    def bind(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], instance: int = 0) -> "Call":
        """The function as a call without arguments, from tensors to tensors, all of them contiguous."""
        # Machine code would read and write past the end of anything else.
        assert [(tensor.shape, tensor.dtype) for tensor in inputs] == self._expected
        assert [tensor.shape for tensor in outputs] == [result.shape for result in self.results]
        assert [tensor.dtype for tensor in outputs] == [result.dtype for result in self.results]
        assert all(tensor.is_contiguous() for tensor in [*inputs, *outputs])
        return Call(self._run, inputs, outputs, self._blocks[instance])

    def __call__(self, *inputs: Tensor, instance: int = 0) -> list[Tensor]:
        """The function's outputs, without gradients."""
        outputs = [torch.empty_like(result) for result in self.results]
        self.bind([tensor.contiguous() for tensor in inputs], outputs, instance)()
        return outputs


class Call:
    """A compiled function with the addresses of its arguments and results.

    Attributes:
        arguments: Addresses of the inputs; others of the same shape and type may take their place.
        results: Addresses of the outputs, likewise.
    """

    def __init__(self, run: Any, inputs: Sequence[Tensor], outputs: Sequence[Tensor], block: Tensor) -> None:
        self.arguments = (ctypes.c_void_p * len(inputs))(*(tensor.data_ptr() for tensor in inputs))
        self.results = (ctypes.c_void_p * len(outputs))(*(tensor.data_ptr() for tensor in outputs))
        self._tensors = (inputs, outputs, block)  # kept alive
        self._run, self._addresses = run, (ctypes.byref(self.arguments), ctypes.byref(self.results), block.data_ptr())

    def __call__(self) -> None:
        """Compute; the interpreter's lock is let go of meanwhile."""
        self._run(*self._addresses)


def compile_function(
    function: Callable[..., Sequence[Tensor]], example: Sequence[Tensor], instances: int = 1
) -> Compiled:
    """Compile a function of CPU tensors for one set of shapes, or load what was compiled before.

    Arguments and errors are those of :class:`Compiled`.
    """
    return Compiled(function, example, instances).load()


@cache
def find_compiler() -> str | None:
    """Name and version of the C++ compiler, or ``None``."""
    if sys.platform != "linux" or shutil.which(_command()) is None:
        return None
    version = subprocess.run([_command(), "--version"], capture_output=True, text=True, check=False).stdout
    return version.partition("\n")[0] or None


def describe_machine_code() -> str:
    """What the bits of results depend on: the compiler, and a digest of what writes C++ and for which processor."""
    writer = [path.read_text() for path in sorted(Path(codegen.__file__).parent.glob("*.py"))]
    return f"compiled by {find_compiler()}, code {_digest([*writer, _included(), FLAGS, _processor()])[:8]}"


def _command() -> str:
    return os.environ.get("CXX", "g++")


def _trace(function: Callable[..., Sequence[Tensor]], example: Sequence[Tensor]) -> fx.GraphModule:
    """The function as a graph of core ATen operations that change nothing.

    Raises:
        CompilationError: If it cannot be one, or would not be the same function.
    """
    try:
        graph = make_fx(function, tracing_mode="fake")(*example)
    except Exception as error:
        raise CompilationError(f"the network cannot be traced: {_first_line(error)}") from error
    _check(graph)
    decompositions = {**core_aten_decompositions(), **get_decompositions(ALSO_DECOMPOSED)}
    decompositions[torch.ops.aten.native_layer_norm.default] = _layer_norm
    decompositions |= codegen.DECOMPOSITIONS
    for operation in NOT_DECOMPOSED:
        decompositions.pop(operation, None)
    try:
        functional = make_fx(functionalize(graph), tracing_mode="fake", decomposition_table=decompositions)(*example)
    except Exception as error:
        raise CompilationError(f"the network cannot be traced: {_first_line(error)}") from error
    functional.graph.eliminate_dead_code()
    for node in functional.graph.nodes:
        if node.target is torch.ops.aten.copy_.default:  # what is left of them changes an argument
            raise CompilationError("the network changes its own state")
    return functional


def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """By operations that there is source for; also the mean and the inverse of the standard deviation."""
    dims = list(range(-len(shape), 0))
    mean = x.mean(dims, keepdim=True)
    inverse = (x.var(dims, correction=0, keepdim=True) + eps).rsqrt()
    normal = (x - mean) * inverse
    scaled = normal if weight is None else normal * weight
    return scaled if bias is None else scaled + bias, mean, inverse


def _check(graph: fx.GraphModule) -> None:
    """Refuse what draws random numbers, and what changes its own state.

    Raises:
        CompilationError: With the operation.
    """
    for node in graph.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise CompilationError(f"the network draws random numbers ({node.target})")
        if "batch_norm" in str(node.target):
            raise CompilationError(f"the network changes its own state ({node.target})")


def _key(source: str) -> str:
    """Of all that decides what is compiled."""
    return _digest([source, _included(), FLAGS, find_compiler(), _processor()])[:32]


def _included() -> list[str]:
    return [path.read_text() for path in sorted(NATIVE.iterdir())]


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@cache
def _processor() -> str:
    """What the compiler is told to make full use of."""
    with Path("/proc/cpuinfo").open() as lines:
        return "".join(
            [platform.machine(), *sorted({line for line in lines if line.startswith(("model name", "flags"))})]
        )


def _cache_folder() -> Path:
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "pl_rl")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (OSError, RuntimeError) as error:  # the latter without a home
        raise CompilationError(f"no cache folder can be made: {error}") from error
    return folder


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
