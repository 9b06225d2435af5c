"""The same C++ by Clang, and for ARM: compiled by a cross-compiler, run under emulation.

Each test needs tools that not every machine has, see ``.github/workflows/ci.yml``, and is skipped without.
"""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from pl_rl.compiled import compiler, function
from pl_rl.compiled.generator import generate
from pl_rl.compiled.rounding import MOST_ROUNDING, relative_error
from pl_rl.compiled.updates import CompiledUpdater
from tests.example_updates import COEFFICIENTS, make_minibatch, make_network, make_pixel_network, make_updates

pytestmark = pytest.mark.slow
CROSS, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
PROCESSORS = ["neoverse-n1", "cortex-a53"]  # four lanes of NEON each; the latter in order

# Reads the inputs from the first file, and writes the outputs to the second; then come the sizes of all in bytes.
MAIN = """
#include <cstdio>
#include <cstdlib>
extern "C" int run(const void* const*, void* const*, void*);
int main(int count, char** words) {
  int inputs = atoi(words[3]), outputs = count - 5 - inputs;
  FILE* given = fopen(words[1], "rb");
  void *read[inputs], *written[outputs];
  for (int i = 0; i < inputs; i++) {
    size_t size = atol(words[5 + i]);
    read[i] = aligned_alloc(64, (size + 64) / 64 * 64);
    if (fread(read[i], 1, size, given) != size) return 2;
  }
  for (int i = 0; i < outputs; i++) written[i] = aligned_alloc(64, (atol(words[5 + inputs + i]) + 64) / 64 * 64);
  if (run(read, written, aligned_alloc(64, (atol(words[4]) + 64) / 64 * 64))) return 3;
  FILE* told = fopen(words[2], "wb");
  for (int i = 0; i < outputs; i++) fwrite(written[i], 1, atol(words[5 + inputs + i]), told);
  return fclose(told);
}
"""


def needs(*tools):
    missing = [tool for tool in tools if shutil.which(tool) is None]
    return pytest.mark.skipif(bool(missing), reason=f"there is no {' and no '.join(missing)}")


def make(kind):
    """A compiled updater after a gradient, what that was computed from, and what PyTorch computes."""
    network = make_pixel_network() if kind == "pixels" else make_network(kind)
    minibatch = make_minibatch(network)
    updater = make_updates(CompiledUpdater, network, minibatch)
    with updater.iteration(COEFFICIENTS, None):
        updater.gradient(minibatch)
    given = [*updater._fields(minibatch), *updater._arguments]
    return updater, given, updater.eager_gradient(minibatch, COEFFICIENTS)


KINDS = ["discrete", "continuous", "pixels"]


@needs("clang++")
@pytest.mark.parametrize("kind", KINDS)
def test_clang_compiles_the_same_gradient(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "clang++")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    updater, _, expected = make(kind)
    assert "clang version" in updater.description
    assert relative_error(updater.flat_gradient(), expected) < MOST_ROUNDING


def size_of(tensor):
    return str(tensor.numel() * tensor.element_size())


@needs(CROSS, EMULATOR)
@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("kind", KINDS)
def test_arm_computes_the_same_gradient(kind, processor, tmp_path, monkeypatch):
    sources = []

    def note(graph):
        sources.append(generate(graph))
        return sources[-1]

    monkeypatch.setattr(function.codegen, "generate", note)
    updater, inputs, expected = make(kind)
    (source,) = sources
    _, outputs, _ = updater._calls[0]._tensors
    Path("main.cpp").write_text(MAIN)
    Path("source.cpp").write_text(source.text)
    Path("given").write_bytes(b"".join(tensor.numpy().tobytes() for tensor in inputs))
    flags = [flag for flag in compiler.FLAGS if flag not in ("-shared", compiler.THIS_PROCESSOR)]
    flags += [f"-mcpu={processor}", "-static", f"-I{compiler.KERNELS}", *compiler.OF_GCC]
    subprocess.run([CROSS, *flags, "-o", "program", "main.cpp", "source.cpp"], check=True)
    sizes = [*map(size_of, inputs), *map(size_of, outputs)]
    words = ["given", "told", str(len(inputs)), str(source.block_size), *sizes]
    subprocess.run([EMULATOR, "./program", *words], check=True)
    told = Path("told").read_bytes()
    gradient = torch.frombuffer(bytearray(told), dtype=torch.float32)[: len(expected)]
    assert relative_error(gradient, expected) < MOST_ROUNDING


@needs(CROSS)
def test_clipping_and_adam_compile_for_arm():
    flags = [flag for flag in compiler.FLAGS if flag not in ("-shared", compiler.THIS_PROCESSOR)]
    command = [CROSS, *flags, "-Wall", "-Werror", "-Wno-unused-function", "-c", str(compiler.KERNELS / "adam.cpp")]
    subprocess.run(command, check=True)
