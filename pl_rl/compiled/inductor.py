"""Functions of tensors by Inductor, PyTorch's own compiler, behind the interface of generated code.

It knows operations that the generator does not (pooling, grouped convolutions, attention). Where both can be had it
takes ten times as long or longer to compile, and what it makes is slower; so it comes second.
"""

import ctypes
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from pl_rl.compiled import code_cache, tracing
from pl_rl.compiled.comments import strip_python
from pl_rl.compiled.compiler import find_compiler, processor
from pl_rl.compiled.function import Call, Compiled, digest
from pl_rl.compiled.generator.nodes import extent
from pl_rl.errors import CompilationError, RunFailure

CACHE = "TORCHINDUCTOR_CACHE_DIR"
SETTINGS: dict[str, Any] = {
    "compile_threads": 1,  # in this process: workers would stay as long as it does
    # Threads of ours work on chunks of a minibatch; with its own, the order of sums depended on their number.
    "cpp.threads": 1,
    # What is chosen by measuring may be another choice next time.
    "max_autotune": False,
    "max_autotune_gemm": False,
    "max_autotune_pointwise": False,
    "fx_graph_remote_cache": False,
}


class InductorCompiled(Compiled):
    """A function that Inductor compiles, while the constructor waits; arguments and errors are those of its base.

    Its calls allocate their results and copy them, and hold the GIL in part.
    """

    def _compile(self, graph: fx.GraphModule, example: Sequence[Tensor], instances: int) -> None:
        from torch import _inductor  # takes seconds
        from torch._inductor import config
        from torch._inductor.runtime.cache_dir_utils import default_cache_dir

        with config.patch(SETTINGS), torch.no_grad(), tempfile.TemporaryDirectory() as private:
            _check(Path(default_cache_dir()))
            places = [Path(private)]
            try:
                places.insert(0, _folder())
            except code_cache.NotKept as error:
                code_cache.say(f"Machine code is compiled for this run alone: {error}.")
            for place in places:  # a power failure may have left half a file in the first
                try:
                    with _environment(CACHE, str(place)), warnings.catch_warnings(action="ignore"):
                        self._run = _inductor.compile(graph, list(example))
                    return
                except Exception as error:
                    reason = error
        raise CompilationError(f"Inductor does not compile it: {tracing.first_line(reason)}") from reason

    def load(self) -> "InductorCompiled":
        """Nothing is left to do."""
        return self

    @classmethod
    def describe(cls, *callers: Path) -> str:
        """As of its base; the version of torch is told elsewhere."""
        texts = [strip_python(path.read_text()) for path in (Path(tracing.__file__), Path(__file__), *callers)]
        return f"compiled by Inductor with {find_compiler()}, code {digest([*texts, processor()])[:8]}"

    def _call(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], instance: int) -> Call:
        return InductorCall(self._run, inputs, outputs, torch.empty(0))


class InductorCall(Call):
    """As generated code, it reads and writes at addresses."""

    def __init__(
        self, run: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], outputs: Sequence[Tensor], block: Tensor
    ) -> None:
        super().__init__(run, inputs, outputs, block)
        self._inputs, self._outputs = (
            [_At(tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors] for tensors in (inputs, outputs)
        )

    def __call__(self) -> None:
        """Compute.

        Raises:
            RunFailure: If it fails, as with the index of a gather out of bounds.
        """
        given = [at(address) for at, address in zip(self._inputs, self.arguments, strict=True)]
        try:
            with torch.no_grad():
                computed = self._run(*given)
        except RuntimeError as error:
            raise RunFailure(
                f"the network fails in compiled code: {tracing.first_line(error)}; mend it, compile_update=false shows "
                "where"
            ) from error
        for at, address, result in zip(self._outputs, self.results, computed, strict=True):
            at(address).copy_(result)


class _At:
    """Tensors of one layout, at addresses."""

    def __init__(self, shape: torch.Size, strides: Sequence[int], dtype: torch.dtype) -> None:
        self._shape, self._strides, self._dtype = shape, strides, dtype
        like = torch.empty_strided(shape, strides, dtype=dtype, device="meta")
        self._memory = ctypes.c_byte * (extent(like) * dtype.itemsize)
        self._last: tuple[int | None, Tensor] = None, torch.empty(shape, dtype=dtype)

    def __call__(self, address: int | None) -> Tensor:
        """The tensor there; parameters stay where they are, so the last one is kept."""
        if address != self._last[0] and address is not None and ctypes.sizeof(self._memory):
            flat = torch.frombuffer(self._memory.from_address(address), dtype=self._dtype)
            self._last = address, flat.as_strided(self._shape, self._strides)
        return self._last[1]


def _folder() -> Path:
    """Where Inductor keeps what it makes, and executes it unseen; by itself it would do so in ``/tmp``.

    The compiler is part of the name, as Inductor does not look at its version.

    Raises:
        NotKept: If there is none that is the user's alone.
    """
    path = code_cache.folder() / f"inductor-{digest([find_compiler(), processor()])[:16]}"
    if fault := _fault(path):
        raise code_cache.NotKept(fault)
    return path


def _check(temporary: Path) -> None:
    """Refuse to let Inductor execute what others have written.

    Args:
        temporary: The folder that its precompiled headers lie in, whatever it is told.

    Raises:
        CompilationError: If they can write there.
    """
    if fault := _fault(temporary):
        raise CompilationError(f"{fault}, where Inductor keeps headers; remove it, or set TMPDIR to a folder of yours")


def _fault(path: Path) -> str | None:
    """Why a folder, which is made if there is none, is not the user's alone, in words; ``None`` if it is."""
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        return code_cache.others_can_change(path.absolute())
    except OSError as error:
        return str(error)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
