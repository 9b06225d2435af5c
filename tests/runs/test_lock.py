"""Of those who start at the same moment one gets in, whatever the file system can do."""

import errno
import multiprocessing
import os
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from pl_rl.errors import UsageError
from pl_rl.runs import lock as run_lock
from pl_rl.runs.lock import locked

ROUNDS = 60


@pytest.fixture
def no_locks(monkeypatch):
    """A file system without locks, where to write takes its time."""

    def refuse(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    write = os.pwrite
    monkeypatch.setattr(run_lock.fcntl, "lockf", refuse)
    monkeypatch.setattr(run_lock.os, "pwrite", lambda *args: time.sleep(0.005) or write(*args))


def compete(barrier, folder, winners):
    """Try to train in each of many directories, all at the same moment; the winners hold until all have tried."""
    for number in range(ROUNDS):
        barrier.wait(60)
        try:
            with locked(Path(folder, str(number))):
                winners.put(number)
                barrier.wait(60)
        except UsageError:
            barrier.wait(60)


def dead_process():
    with subprocess.Popen(["true"]) as process:
        pass
    return process.pid


def count_winners(folder, left_behind, start, queue, barrier):
    for number in range(ROUNDS):
        (folder / str(number)).mkdir()
        if left_behind:
            line = f"process {dead_process()} on {socket.gethostname()}, since 2026-01-01\n"
            (folder / str(number) / ".lock").write_text(line)
    starters = [start(target=compete, args=(barrier, folder, queue)) for _ in range(3)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()
    won = [queue.get(timeout=10) for _ in range(ROUNDS)]
    assert queue.empty() and sorted(won) == list(range(ROUNDS))
    assert [path for path in folder.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("left_behind", [False, True], ids=["new", "a dead process's"])
def test_of_several_processes_one_gets_in_without_locks(tmp_path, no_locks, left_behind):
    fork = multiprocessing.get_context("fork")
    count_winners(tmp_path, left_behind, fork.Process, fork.Queue(), fork.Barrier(3))


@pytest.mark.parametrize("left_behind", [False, True], ids=["new", "a dead process's"])
def test_of_several_processes_one_gets_in(tmp_path, left_behind):
    fork = multiprocessing.get_context("fork")
    count_winners(tmp_path, left_behind, fork.Process, fork.Queue(), fork.Barrier(3))


@pytest.mark.parametrize("locks", [True, False])
def test_of_several_threads_one_gets_in(tmp_path, locks, request):
    if not locks:
        request.getfixturevalue("no_locks")
    count_winners(tmp_path, False, threading.Thread, multiprocessing.get_context("fork").Queue(), threading.Barrier(3))


@pytest.mark.parametrize("locks", [True, False])
def test_a_lock_file_that_is_a_file_of_the_users_too_is_not_written(tmp_path, locks, request):
    if not locks:
        request.getfixturevalue("no_locks")
    precious = tmp_path / "precious"
    precious.write_text(f"process {dead_process()} on {socket.gethostname()}, since 2026-01-01\nprecious\n")
    before = precious.read_text()
    (tmp_path / "run").mkdir()
    os.link(precious, tmp_path / "run" / ".lock")
    with locked(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").read_text().startswith(f"process {os.getpid()} ")
    assert precious.read_text() == before


def test_who_is_killed_while_taking_over_is_said(tmp_path, no_locks):
    for name in (".lock", ".lock.takeover"):
        (tmp_path / name).write_text(f"process {dead_process()} on {socket.gethostname()}, since 2026-01-01\n")
    with pytest.raises(UsageError, match=r"delete \S*\.lock and \S*\.lock\.takeover\)"):
        locked(tmp_path).__enter__()
    (tmp_path / ".lock.takeover").unlink()
    with locked(tmp_path):
        pass


def test_a_lock_that_has_no_name_in_it_yet_is_not_taken(tmp_path, no_locks):
    (tmp_path / ".lock").touch()
    with pytest.raises(UsageError, match="in use by another process"):
        locked(tmp_path).__enter__()
