"""Functions as machine code: the same function, compiled once, or a reason why not."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pl_rl import compilation
from pl_rl.compilation import CompilationError, Library, compile_function


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


def test_it_is_compiled_once(cache, monkeypatch):
    inputs = example()
    first = compile_function(gradient, inputs)(*inputs)
    assert [path.suffix for path in cache.iterdir()] == [".so"]

    def again(*_):
        raise AssertionError

    monkeypatch.setattr(compilation, "_Compiler", again)
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


def normalises(x):
    return (torch.nn.functional.batch_norm(x.view(3, 1), torch.zeros(1), torch.ones(1), training=True),)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (branches, "cannot be traced"),
        (hides, "cannot be traced"),
        (draws, "draws random numbers"),
        (changes, "changes its own state"),
        (normalises, "changes its own state"),
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
    monkeypatch.setattr(compilation, "FLAGS", ["-no-such-flag"])
    with pytest.raises(CompilationError, match=r"compiling failed: .*no-such-flag"):
        compile_function(gradient, example())
    assert list(cache.iterdir()) == []


def test_a_broken_file_in_the_cache_is_named(cache):
    cache.mkdir(parents=True)
    path = cache / f"{compilation._key('source')}.so"
    path.write_bytes(b"not a library")
    with pytest.raises(CompilationError, match=f"{path} cannot be loaded; delete it"):
        Library("source").load()


def test_a_cache_that_cannot_be_written_is_a_reason(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(CompilationError, match=r"no cache folder can be made: .*cache"):
        compile_function(gradient, example())
