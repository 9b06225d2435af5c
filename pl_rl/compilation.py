"""Functions of tensors as machine code: traced once, compiled ahead of time, kept on disk, called without Python.

A small network's update is a few hundred operations of a few microseconds each, most of it spent on the way from
Python to the operation. Compiled by TorchInductor
(https://docs.pytorch.org/docs/stable/torch.compiler_aot_inductor.html) the same work is one call. What is compiled for
a machine is kept in ``$XDG_CACHE_HOME/pl_rl`` (``~/.cache/pl_rl``): the first run of a network pays for all, and a run
that is resumed gets the same bits.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

LINEAR = torch.ops.mkldnn._linear_pointwise.default if torch.backends.mkldnn.is_available() else None
# Below this many multiplications MKL is as fast as oneDNN or faster.
ONEDNN_FROM = 2**20

OPTIONS = {
    # Parallel loops would combine their parts in an order of their own; see Compiled for what is done instead.
    "cpp.threads": 1,
    # The processor's flags are enough; trying each of them out takes as long as compiling.
    "cpp.vec_isa_ok": True,
    # What calls the kernels is not worth optimising, and reading its headers once not worth preparing.
    "aot_inductor.compile_wrapper_opt_level": "O0",
    "cpp_cache_precompile_headers": False,
    # Its rewrites are made for inference, with weights that are constants.
    "pattern_matcher": False,
}


class CompilationError(Exception):
    """Why a function cannot be compiled, in words."""


class Compiled:
    """A compiled function of tensors; several threads may call it at once, each with an instance of its own.

    The library's C interface is called directly, as ctypes lets go of the interpreter lock meanwhile and torch's own
    loader does not.

    Args:
        path: The shared library.
        num_outputs: Tensors that it returns.
        instances: How many threads may call it.
    """

    def __init__(self, path: Path, num_outputs: int, instances: int = 1) -> None:
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            raise CompilationError(f"{path} cannot be loaded; delete it to compile it again: {error}") from error
        self._run = library.AOTInductorModelContainerRun
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        self._run.argtypes = [pointer, pointer, size, pointer, size, pointer, pointer]
        self._num_outputs = num_outputs
        self._containers = []
        for _ in range(instances):
            container = ctypes.c_void_p()
            if library.AOTInductorModelContainerCreateWithDevice(ctypes.byref(container), size(1), b"cpu", None):
                raise CompilationError(f"{path} cannot be used; delete it to compile it again")
            self._containers.append(container)

    def __call__(self, *inputs: Tensor, instance: int = 0) -> list[Tensor]:
        """The function's outputs, without gradients."""
        handles = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(list(inputs))
        given = (ctypes.c_void_p * len(inputs))(*[_address(handle, None) for handle in handles])
        returned = (ctypes.c_void_p * self._num_outputs)()
        failed = self._run(self._containers[instance], given, len(inputs), returned, self._num_outputs, None, None)
        if failed:
            raise RuntimeError("a compiled function failed; what torch says of it stands above")
        capsules = [_capsule(handle, None, None) for handle in returned]
        return torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs(capsules)


_address = ctypes.pythonapi.PyCapsule_GetPointer
_address.restype, _address.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_capsule = ctypes.pythonapi.PyCapsule_New
_capsule.restype, _capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


def compile_function(
    function: Callable[..., Sequence[Tensor]], example: Sequence[Tensor], instances: int = 1
) -> Compiled:
    """Compile a function of CPU tensors for one set of shapes, or load what was compiled before.

    Args:
        function: Takes and returns tensors; may use autograd inside, and branch on nothing but shapes.
        example: Arguments of the shapes that it will be called with.
        instances: How many threads will call it at once.

    Raises:
        CompilationError: If it cannot be compiled, here or at all.
    """
    compiler = find_compiler()
    if compiler is None:
        raise CompilationError("no C++ compiler was found on this machine")
    try:
        graph = make_fx(function, tracing_mode="fake")(*example)
    except Exception as error:
        raise CompilationError(f"the network cannot be traced: {_first_line(error)}") from error
    _check(graph, example)
    _use_onednn(graph)
    graph.recompile()
    for node in graph.graph.nodes:
        node.meta.clear()  # of the trace, in whose mode constants cannot be compiled
    num_outputs = len(cast(Sequence[Any], graph.graph.output_node().args[0]))
    path = _cache_folder() / f"{_key(graph, example, compiler)}.so"
    if not path.exists():
        rank_zero_info("Compiling the updates of this network, which takes some seconds, once on this machine.")
        _compile(graph, example, path)
    return Compiled(path, num_outputs, instances)


@cache
def find_compiler() -> str | None:
    """Name and version of the C++ compiler that torch would use, or ``None``."""
    if sys.platform != "linux":
        return None
    command = os.environ.get("CXX", "g++")
    if shutil.which(command) is None:
        return None
    version = subprocess.run([command, "--version"], capture_output=True, text=True, check=False).stdout
    return version.partition("\n")[0] or None


def _check(graph: fx.GraphModule, example: Sequence[Tensor]) -> None:
    """Refuse what would not be the same function when compiled.

    Raises:
        CompilationError: With the reason.
    """
    for node in graph.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise CompilationError(f"the network draws random numbers ({node.target})")
        if "batch_norm" in str(node.target):
            raise CompilationError(f"the network changes its own state ({node.target})")
    inputs = [tensor.clone() for tensor in example]
    versions = [tensor._version for tensor in inputs]
    graph(*inputs)
    if versions != [tensor._version for tensor in inputs]:
        raise CompilationError("the network changes its own state")


def _use_onednn(graph: fx.GraphModule) -> None:
    """Give large matrix products to oneDNN.

    Torch multiplies float32 matrices with MKL, which leaves the wide registers of other makers' processors unused.
    """
    if LINEAR is None:
        return
    addmm, mm = torch.ops.aten.addmm.default, torch.ops.aten.mm.default
    for node in list(graph.graph.nodes):
        if node.target is addmm and not node.kwargs:
            bias, left, right = node.args
        elif node.target is mm:
            bias, (left, right) = None, node.args
        else:
            continue
        rows, inner = left.meta["val"].shape
        if rows * inner * right.meta["val"].shape[1] < ONEDNN_FROM or left.meta["val"].dtype != torch.float32:
            continue
        with graph.graph.inserting_before(node):
            weight = graph.graph.call_function(torch.ops.aten.t.default, (right,))
            product = graph.graph.call_function(LINEAR, (left, weight, bias, "none", [], ""))
        product.meta = node.meta
        node.replace_all_uses_with(product)
        graph.graph.erase_node(node)


def _key(graph: fx.GraphModule, example: Sequence[Tensor], compiler: str) -> str:
    """Of all that decides what is compiled."""
    constants = [(name, tensor.shape, tensor.flatten().tolist()) for name, tensor in graph.named_buffers()]
    inputs = [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in example]
    parts = [graph.code, constants, inputs, OPTIONS, torch.__version__, compiler, _processor()]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


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


def _compile(graph: fx.GraphModule, example: Sequence[Tensor], path: Path) -> None:
    """Compile a graph into a shared library, which appears at ``path`` whole or not at all."""
    from torch._inductor import aot_compile
    from torch._inductor.lowering import add_needs_realized_inputs, lowerings

    try:
        with warnings.catch_warnings(), torch.no_grad(), patch.dict(lowerings):
            warnings.simplefilter("ignore")
            if LINEAR is not None:
                # Inductor's own way takes for granted that weights are constants.
                add_needs_realized_inputs(LINEAR)
                lowerings[LINEAR] = _lower_linear
            library = cast(str, aot_compile(graph, tuple(example), options=OPTIONS))
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            Path(shutil.copy(library, folder)).replace(path)
    except Exception as error:
        raise CompilationError(f"compiling failed: {_first_line(error)}") from error


def _lower_linear(left: Any, weight: Any, bias: Any, attr: str, scalars: list[Any], algorithm: str) -> Any:
    from torch._inductor.ir import TensorBox
    from torch._inductor.mkldnn_ir import LinearUnary

    return TensorBox.create(LinearUnary.create(left, weight, bias, attr, scalars, algorithm))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
