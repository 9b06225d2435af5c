"""What every test shares: a folder of its own to work in, and one thread."""

import gc
import os
import subprocess
from types import SimpleNamespace

import hypothesis
import pytest

from pl_rl.imports import quick_imports

with quick_imports():
    import torch
    from xdist.scheduler import WorkStealingScheduling

    import tests.environments  # noqa: F401  (registers the small environments)
    from pl_rl.compiled import tracing
    from pl_rl.envs.processors import cores
    from tests.traces import Traces
    from tests.warm import Server

hypothesis.settings.register_profile("quick", max_examples=25, deadline=None, derandomize=True, database=None)
hypothesis.settings.register_profile("nightly", max_examples=1000, deadline=None)
hypothesis.settings.load_profile("quick")

SLOW_SECONDS = 1800
"""Until a slow test is taken for one that hangs."""


LONG = ("test_chaos", "test_launchers", "test_verification")
"""Files that take minutes, the second one mostly by waiting."""


def pytest_collection_modifyitems(config, items):
    _spread(items, getattr(config, "workerinput", {}).get("workercount", 1))
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))


def _spread(items, workers):
    """Let each worker of xdist begin with a long file, lest all others wait for one at the end."""
    long = {name: [item for item in items if f"/{name}.py" in item.nodeid] for name in LONG}
    items[:] = [item for item in items if not any(item in those for those in long.values())]
    share = (len(items) + sum(map(len, long.values()))) // workers
    for number, those in enumerate(long.values()):
        place = number % workers * share
        items[place:place] = those


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """One more than there are cores, as many tests wait for a process."""
    return cores() + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Neighbours, which share fixtures, stay together, and who is idle takes some from who is not."""
    return WorkStealingScheduling(config, log)


def pytest_collection():
    gc.disable()  # the modules of tests import more, and all of it stays


def pytest_collection_finish():
    gc.enable()
    gc.freeze()  # all that has been imported, which every collection would look through


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _own_environment():
    """What a library sets there, as MLflow its store and PyTorch its cache, is of this test alone."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before.items() - os.environ.items())


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk():
    """What a power cut would leave is nothing that a test could see."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)
        yield


@pytest.fixture(autouse=True, scope="session")
def _shared_traces():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracing, "trace", Traces(tracing.trace))
        yield


@pytest.fixture(scope="session")
def warm_server():
    """See ``tests.warm``."""
    server = Server()
    yield server
    server.close()


@pytest.fixture
def warm(warm_server, monkeypatch):
    """Runs that ``verify`` kills begin in processes in which everything has been imported."""

    def popen(command, **options):
        return warm_server.popen(command, family="--trainer.devices" in command, **options)

    in_place = SimpleNamespace(Popen=popen, PIPE=subprocess.PIPE)
    monkeypatch.setattr("pl_rl.tools.verification.subprocess", in_place)


@pytest.fixture
def fake_compiler(tmp_path, monkeypatch):
    """Makes ``$CXX`` a script that has a version, and for the rest does what it is told in shell."""
    path = tmp_path / "fake-compiler"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-of-fake-compiler"))
    monkeypatch.setenv("CXX", str(path))

    def does(commands, asked="echo fake 1.0; exit"):
        path.write_text(f'#!/bin/sh\nif [ "$1" = --version ]; then {asked}; fi\n{commands}\n')
        path.chmod(0o755)

    return does
