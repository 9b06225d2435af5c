"""Functions as machine code: the same function, compiled once, or a reason why not."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from pl_rl.compiled import compiler
from pl_rl.compiled import function as compilation
from pl_rl.compiled.function import compile_function
from pl_rl.errors import CompilationError, RunFailure
from tests.support import fit, small_ppo


def gradient(weights, inputs):
    """Of a small loss; and the loss."""
    weights = weights.detach().requires_grad_()
    loss = torch.tanh(inputs @ weights).square().mean()
    return torch.autograd.grad(loss, weights)[0], loss.detach()


def example(rows=8, columns=4):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(columns, columns, generator=generator), torch.randn(rows, columns, generator=generator)]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pl_rl"


@pytest.mark.parametrize("shape", [{}, {"rows": 512, "columns": 64}], ids=["small", "large"])
def test_a_compiled_function_is_the_function(shape):
    inputs = example(**shape)
    outputs = compile_function(gradient, inputs)(*inputs)
    for output, expected in zip(outputs, gradient(*inputs), strict=True):
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_it_is_compiled_once(cache, monkeypatch):
    inputs = example()
    first = compile_function(gradient, inputs)(*inputs)
    assert [path.suffix for path in cache.iterdir()] == [".so"]

    def again(*_):
        raise AssertionError

    monkeypatch.setattr(compilation, "Compiler", again)
    assert torch.equal(compile_function(gradient, inputs)(*inputs)[0], first[0])
    with pytest.raises(AssertionError):
        compile_function(gradient, example(rows=9))
    with pytest.raises(AssertionError):
        compile_function(lambda *arguments: gradient(*arguments)[:1], inputs)


def test_constants_inside_a_function_are_told_apart(cache):
    inputs = [torch.ones(3)]

    def multiply_by(value):
        return lambda x: (x * torch.tensor([value, value, value]),)

    for value in (2.0, 3.0):
        (output,) = compile_function(multiply_by(value), inputs)(*inputs)
        assert output.tolist() == [value] * 3


def test_threads_may_call_it_at_once():
    inputs = example(rows=512, columns=64)
    compiled = compile_function(gradient, inputs, instances=2)
    alone = compiled(*inputs)[0]
    with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        together = [pool.submit(compiled, *inputs, instance=i % 2) for i in range(2)]
        assert all(torch.equal(future.result()[0], alone) for future in together)


HIDDEN = torch.ones(3)


def hides(x):
    """A tensor that is neither parameter nor buffer might change unseen."""
    return (x + HIDDEN,)


def branches(x):
    return (x if x.sum() > 0 else -x,)


def draws(x):
    return (x + torch.rand(3),)


def changes(x):
    return (x.add_(1),)


def normalizes(x):
    return (torch.nn.functional.batch_norm(x.view(3, 1), torch.zeros(1), torch.ones(1), training=True),)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (branches, "cannot be traced"),
        (hides, "cannot be traced"),
        (draws, "draws random numbers"),
        (changes, "changes its own state"),
        (normalizes, "changes its own state"),
    ],
)
def test_what_would_become_another_function_is_refused(function, reason):
    argument = torch.ones(3)
    with pytest.raises(CompilationError, match=reason):
        compile_function(function, [argument])
    assert argument.tolist() == [1, 1, 1]


def test_without_a_compiler_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(compilation, "find_compiler", lambda: None)
    with pytest.raises(CompilationError, match=r"no C\+\+ compiler"):
        compile_function(gradient, example())


def test_a_compiler_that_does_not_work_is_a_reason(cache, monkeypatch):
    monkeypatch.setattr(compiler, "FLAGS", ["-no-such-flag"])
    with pytest.raises(CompilationError, match=r"compiling failed: .*no-such-flag"):
        compile_function(gradient, example())
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ([torch.ones(3, 4)], r"torch.Size\(\[3, 4\]\)|\(\(3, 4\), "),
        ([torch.ones(4, 3).double()], "torch.float64"),
        ([torch.ones(3, 4).t()], r"\[1, 4\]"),
        ([torch.ones(4, 6)[:, ::2]], r"\[6, 2\]"),
        ([torch.ones(4, 3), torch.ones(4, 3)], "3 instead of 2"),
    ],
)
def test_tensors_that_it_was_not_compiled_for_are_refused(other, told):
    compiled = compile_function(lambda x: (x + 1,), [torch.zeros(4, 3)])
    with pytest.raises(CompilationError, match=f"shape, type, strides.*({told})"):
        compiled(*other)


def test_tensors_of_all_strides_are_taken_as_they_lie():
    transposed, last = torch.arange(6.0).view(2, 3).t(), torch.arange(24.0).view(1, 2, 3, 4).permute(0, 3, 1, 2)
    compiled = compile_function(lambda x, y: (x * 2, y.sum(1)), [transposed, last])
    doubled, summed = compiled(transposed, last)
    assert torch.equal(doubled, transposed * 2)
    assert torch.equal(summed, last.sum(1))


ARRAY = np.ones(3, np.float32)


@pytest.mark.parametrize("take", [torch.from_numpy, torch.as_tensor, torch.tensor, torch.asarray, torch.from_dlpack])
def test_arrays_that_might_change_unseen_are_refused(take):
    with pytest.raises(CompilationError, match=r"NumPy array, which might change unseen; make it a buffer|be traced"):
        compile_function(lambda x: (x + take(ARRAY),), [torch.ones(3)])


def test_whatever_fails_in_writing_source_is_a_reason(monkeypatch):
    def fails(graph):
        raise KeyError("surprise")

    monkeypatch.setattr(compilation.codegen, "generate", fails)
    with pytest.raises(CompilationError, match="no source for the network: KeyError: 'surprise'"):
        compile_function(gradient, example())


def deep(x):
    for _ in range(1200):
        x = x + 1
    return (x,)


@pytest.mark.slow
def test_a_function_too_deep_to_be_written_is_refused():
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)  # Python's own, which libraries raise
    try:
        with pytest.raises(CompilationError, match="RecursionError"):
            compile_function(deep, [torch.ones(3)])
    finally:
        sys.setrecursionlimit(limit)


@pytest.mark.parametrize("bad", [5, -1, 2**40, -(2**62)])
def test_indices_that_lie_outside_are_a_failure_and_nothing_is_read_or_written_there(bad):
    def gathers_and_scatters(x, i, j):
        return x.gather(0, i), x.scatter(0, j, x), x.scatter(0, j, 7.0)

    x, good = torch.arange(5.0), torch.tensor([4, 0, 2])
    compiled = compile_function(gathers_and_scatters, [x, good, good])
    assert compiled(x, good, good)[0].tolist() == [4, 0, 2]
    for indices in ([torch.tensor([0, bad, 1]), good], [good, torch.tensor([0, 1, bad])]):
        with pytest.raises(RunFailure, match=r"a place outside of a tensor.*compile_update=false"):
            compiled(x, *indices)


@pytest.mark.slow
def test_a_compiler_that_is_killed_ends_a_run_that_asked_for_it(fake_compiler):
    fake_compiler("kill -KILL $$")
    with pytest.raises(RunFailure, match=r"compile_update=true: the compiler was killed by SIGKILL.*again"):
        fit(small_ppo(compile_update=True))
    model = small_ppo(compile_update=None, total_env_steps=10**6)
    trainer = fit(model, max_epochs=1)
    assert trainer.current_epoch == 1
