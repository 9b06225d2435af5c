"""What the generator has no operation for is compiled by Inductor, in runs that are long enough, or by order."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import _inductor

from pl_rl import MLPActorCritic, RunFailure
from pl_rl.callbacks import RunCheckpoint
from pl_rl.compiled.inductor import CACHE, InductorCompiled
from pl_rl.errors import CompilationError
from tests.compiled.test_backend import GLOBAL, scale_globally, train
from tests.resume import test_resume
from tests.support import SMALL, same_bits

pytestmark = pytest.mark.slow  # it takes seconds to import, and ten or more to compile
LONG, SHORT = 10**6, 10**5  # env steps; of the latter the generator alone would compile


class Pooled(MLPActorCritic):
    """Takes the greatest of neighbouring features."""

    def __init__(self, *spaces):
        super().__init__(*spaces, actor_sizes=(8,), critic_sizes=(8,))

    def _act(self, features):
        scale = GLOBAL["training" if self.training else "evaluation"]
        return scale * super()._act(F.max_pool1d(features[:, None], 3, 1, 1)[:, 0])


def gradient(weights, inputs, numbers):
    weights = weights.detach().requires_grad_()
    pooled = F.max_pool1d(torch.tanh(inputs @ weights)[:, None], 3, 1, 1)[:, 0]
    loss = pooled.gather(1, numbers).square().mean()
    return torch.autograd.grad(loss, weights)[0], loss.detach()


def example():
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(4, (8, 2), generator=generator)
    return [torch.randn(4, 4, generator=generator), torch.randn(8, 4, generator=generator), numbers]


@pytest.fixture(scope="module")
def compiled():
    return InductorCompiled(gradient, example(), 2).load()


def test_it_is_the_function_at_whatever_address(compiled):
    weights, inputs, numbers = example()
    for given in ([weights, inputs, numbers], [weights + 1, inputs.clone(), numbers.clone()]):
        for output, expected in zip(compiled(*given), gradient(*given), strict=True):
            torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-7)
    outputs = [torch.empty_like(result) for result in compiled.results]
    call = compiled.bind([weights, inputs, numbers], outputs)
    call()
    before = outputs[0].clone()
    other = inputs + 1
    call.arguments[1] = other.data_ptr()
    call()
    torch.testing.assert_close(outputs[0], gradient(weights, other, numbers)[0], rtol=1e-5, atol=1e-7)
    assert not torch.equal(outputs[0], before)
    with pytest.raises(CompilationError, match="tensors are not as it was compiled for"):
        compiled.bind([weights, inputs[:4], numbers], outputs)


def test_threads_may_call_it_at_once(compiled):
    inputs = example()
    alone = compiled(*inputs)[0]
    with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        together = list(pool.map(lambda i: compiled(*inputs, instance=i % 2), range(100)))
    assert all(torch.equal(outputs[0], alone) for outputs in together)


def test_an_index_that_lies_outside_is_a_failure(compiled):
    weights, inputs, numbers = example()
    with pytest.raises(RunFailure, match=r"the network fails in compiled code: .*compile_update=false shows where"):
        compiled(weights, inputs, numbers + 4)


def test_a_run_is_compiled_by_it_and_learns_the_same(caplog):
    compiled, ways, _ = train(Pooled, compile_update=True)
    assert ways == ["compiled"] * 4
    assert compiled.numerics()["updates"].startswith("compiled by Inductor with ")
    told = [message for message in caplog.messages if message.startswith("Updates are")]
    assert len(told) == 1 and "compiled by Inductor: the network uses aten.max_pool2d_with_indices" in told[0]
    eager, _, _ = train(Pooled, compile_update=False)
    torch.testing.assert_close(compiled.state_dict(), eager.state_dict(), rtol=1e-3, atol=1e-4)
    assert not same_bits(compiled.state_dict(), train(Pooled, compile_update=False, max_epochs=3)[0].state_dict())


def test_a_short_run_is_left_eager(caplog):
    assert train(Pooled, max_epochs=1, total_env_steps=SHORT)[1] == ["eager"]
    assert "Updates are not compiled: the network uses aten.max_pool2d" in caplog.text


def test_a_long_run_is_compiled_by_it_and_resumed_exactly(tmp_path):
    settings = {**SMALL, "network": Pooled, "total_env_steps": LONG, "compile_update": None}

    def callbacks():
        return [RunCheckpoint(last_every_n_iterations=1)]

    test_resume.train(tmp_path / "whole", 4, callbacks=callbacks(), **settings)
    test_resume.train(tmp_path / "parts", 2, callbacks=callbacks(), **settings)
    model, _ = test_resume.train(tmp_path / "parts", 4, "last", callbacks=callbacks(), **settings)
    assert model.numerics()["updates"].startswith("compiled by Inductor")
    assert model._callbacks[0].losses == []
    assert test_resume.differences(tmp_path / "whole", tmp_path / "parts") == {}


def test_an_audit_finds_what_it_computes_wrongly(monkeypatch):
    monkeypatch.setattr("pl_rl.compiled.backend.ITERATIONS_BETWEEN_AUDITS", 1)
    for mode in GLOBAL:
        monkeypatch.setitem(GLOBAL, mode, 1.0)
    with pytest.raises(RunFailure, match=r"compiled updates are wrong in iteration 3: the gradient differs"):
        train(Pooled, change=scale_globally("training"), compile_update=True)


@pytest.fixture
def compiles_nothing(monkeypatch):
    """Notes where Inductor would keep what it compiles; what it does there may be replaced."""
    places = []

    def compile(graph, inputs):
        places.append(os.environ[CACHE])
        if len(places) in fails:
            raise OSError("file too short")
        return lambda *tensors: gradient(*tensors)

    fails = set()
    monkeypatch.setattr(_inductor, "compile", compile)
    return places, fails


def test_it_keeps_what_it_makes_where_nobody_else_can_write(compiles_nothing, tmp_path, monkeypatch):
    places, _ = compiles_nothing
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = str(tmp_path / "before")  # torch makes another absolute
    monkeypatch.setenv(CACHE, before)
    InductorCompiled(gradient, example())
    assert os.environ[CACHE] == before
    kept = tmp_path / "pl_rl"
    (place,) = map(Path, places)
    assert place.parent == kept and stat.S_IMODE(place.stat().st_mode) == 0o700
    place.chmod(0o770)
    InductorCompiled(gradient, example())
    other = Path(places[1])
    assert other.parent != kept and not other.exists()


def test_a_damaged_cache_is_passed_over(compiles_nothing):
    places, fails = compiles_nothing
    fails.add(1)
    InductorCompiled(gradient, example())
    assert len(places) == 2 and places[0] != places[1]
    fails |= {3, 4}
    with pytest.raises(CompilationError, match="Inductor does not compile it: OSError: file too short"):
        InductorCompiled(gradient, example())


def test_headers_of_others_are_refused(compiles_nothing, tmp_path, monkeypatch):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    theirs.chmod(0o777)
    monkeypatch.setattr("torch._inductor.runtime.cache_dir_utils.default_cache_dir", lambda: str(theirs))
    with pytest.raises(CompilationError, match=r"theirs can be written by others .* remove it, or set TMPDIR"):
        InductorCompiled(gradient, example())
    assert compiles_nothing[0] == []
