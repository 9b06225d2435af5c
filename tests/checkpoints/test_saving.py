"""Checkpoint files are whole or not there."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import pl_rl
from pl_rl.checkpoints import saving as checkpoint_io
from pl_rl.checkpoints.format import load_sound
from pl_rl.checkpoints.saving import DurableCheckpointIO
from pl_rl.runs.directory import find_checkpoint
from tests.resume.test_resume import last_of
from tests.test_signals import train


def test_a_checkpoint_comes_back(tmp_path):
    path = tmp_path / "new" / "a.ckpt"
    DurableCheckpointIO().save_checkpoint({"a": torch.arange(3)}, path)
    assert torch.equal(DurableCheckpointIO().load_checkpoint(path)["a"], torch.arange(3))
    assert [file.name for file in path.parent.iterdir()] == ["a.ckpt"]


def test_a_failed_save_raises_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.ckpt"
    DurableCheckpointIO().save_checkpoint({"a": 1}, path)
    with pytest.raises(Exception, match="pickle"):
        DurableCheckpointIO().save_checkpoint({"a": lambda: None}, path)
    assert DurableCheckpointIO().load_checkpoint(path) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize("name", ["last.ckpt", "previous.ckpt"])
def test_a_folder_in_the_place_of_a_checkpoint_is_named(tmp_path, name):
    path = tmp_path / "last.ckpt"
    if name != path.name:
        DurableCheckpointIO().save_checkpoint({"a": 1}, path)
    (tmp_path / name).mkdir()
    with pytest.raises(pl_rl.RunFailure, match=rf"{name} is a folder.*; move it away, then continue"):
        DurableCheckpointIO().save_checkpoint({"a": 2}, path)
    assert name == path.name or DurableCheckpointIO().load_checkpoint(path) == {"a": 1}


def test_what_a_killed_save_leaves_is_never_taken_for_a_checkpoint(tmp_path):
    folder = tmp_path / "lightning_logs" / "version_0" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / ".last.ckpt.partial").write_bytes(b"half")
    with pytest.raises(pl_rl.UsageError, match=r"has no last\.ckpt"):
        find_checkpoint("last")


@pytest.mark.slow
def test_a_kill_during_a_save_leaves_a_whole_file(tmp_path, warm_server):
    script = """
import sys, torch
from pl_rl.checkpoints.saving import DurableCheckpointIO
number = 0
while True:
    DurableCheckpointIO().save_checkpoint({"number": number, "a": torch.full((500_000,), float(number))}, sys.argv[1])
    number += 1
    print(number, flush=True)
"""
    path = tmp_path / "a.ckpt"
    for moment in range(4):
        with warm_server.popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE) as process:
            for _ in range(3):
                process.stdout.readline()
            # Never seen shorter, so whatever the moment of a kill, it is whole.
            until = time.monotonic() + 1
            while time.monotonic() < until:
                assert path.stat().st_size > 4 * 500_000
            time.sleep(0.003 * moment)
            process.send_signal(signal.SIGKILL)
        saved = torch.load(path, weights_only=True)
        assert torch.equal(saved["a"], torch.full((500_000,), float(saved["number"])))


# --- two are kept, and what is written is read back ------------------------------------------------------------------


def save(path, **content):
    durable = DurableCheckpointIO()
    durable.save_checkpoint(content, path)
    durable.teardown()


def test_the_last_but_one_is_kept(tmp_path):
    for number in range(3):
        save(tmp_path / "last.ckpt", number=number)
    assert [load_sound(tmp_path / name)["number"] for name in ("last.ckpt", "previous.ckpt")] == [2, 1]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]


def test_the_last_but_one_is_kept_on_file_systems_without_links(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", failing(errno.EPERM))
    test_the_last_but_one_is_kept(tmp_path)


def failing(number):
    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("function", ["fsync", "link", "posix_fadvise"])
def test_whatever_fails_in_a_save_two_sound_files_are_left(tmp_path, monkeypatch, function):
    for number in range(2):
        save(tmp_path / "last.ckpt", number=number)
    with monkeypatch.context() as fault:
        fault.setattr(os, function, failing(errno.ENOSPC))
        fault.setattr(Path, "replace", failing(errno.ENOSPC))
        with pytest.raises(pl_rl.RunFailure, match=r"last\.ckpt' cannot be written: No space left on device; .* still"):
            save(tmp_path / "last.ckpt", number=2)
    assert [load_sound(tmp_path / name)["number"] for name in ("last.ckpt", "previous.ckpt")] == [1, 0]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]


def test_what_the_disk_garbles_never_takes_the_place_of_a_sound_file(tmp_path, monkeypatch):
    save(tmp_path / "last.ckpt", number=1)
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read_bytes(path)[:-300])
    with pytest.raises(pl_rl.RunFailure, match="cannot be read back, as it is cut short"):
        save(tmp_path / "last.ckpt", number=2)
    monkeypatch.undo()
    assert load_sound(tmp_path / "last.ckpt") == {"number": 1}


def test_a_bit_that_the_disk_turns_over_is_found(tmp_path, monkeypatch):
    save(tmp_path / "last.ckpt", number=1)
    read_bytes = Path.read_bytes

    def turned_over(path):
        content = bytearray(read_bytes(path))
        content[len(content) // 2] ^= 1
        return bytes(content)

    monkeypatch.setattr(Path, "read_bytes", turned_over)
    with pytest.raises(pl_rl.RunFailure, match="cannot be read back, as its checksum is wrong"):
        save(tmp_path / "last.ckpt", number=2)
    monkeypatch.undo()
    assert load_sound(tmp_path / "last.ckpt") == {"number": 1}


@pytest.mark.parametrize("vectorization", ["native", "async"])
def test_what_a_run_saves_is_known_to_load_without_opening_it(tmp_path, vectorization, monkeypatch):
    """PyTorch's reader takes ten times as long as comparing the bytes."""
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_io, "load_sound", None)
        train(tmp_path, 3, env=pl_rl.EnvConfig("CartPole-v1", vectorization), eval_freq=2, norm_reward=True)
    assert load_sound(last_of(tmp_path))["pl_rl"]["counters"]["iteration"] == 3


def test_what_could_not_be_resumed_is_refused_when_it_is_saved(tmp_path):
    with pytest.raises(pl_rl.RunFailure, match=r"holds more than plain data.*keep what callbacks and modules save to"):
        save(tmp_path / "last.ckpt", number=np.float64(1))
    assert list(tmp_path.iterdir()) == []


# --- large files are written in the background -----------------------------------------------------------------------


@pytest.fixture
def large(monkeypatch):
    monkeypatch.setattr("pl_rl.checkpoints.saving.LARGE", 1000)


def test_a_large_state_is_copied_before_it_is_written(tmp_path, large, monkeypatch):
    started, go_on = threading.Event(), threading.Event()

    def slow_write(*args):
        started.set()
        go_on.wait(10)
        write(*args)

    write = checkpoint_io._write
    monkeypatch.setattr(checkpoint_io, "_write", slow_write)
    durable, state = DurableCheckpointIO(), {"a": torch.zeros(1000), "b": [1]}
    durable.save_checkpoint(state, tmp_path / "last.ckpt")
    assert started.wait(10) and not (tmp_path / "last.ckpt").exists()
    state["a"] += 1
    state["b"].append(2)
    go_on.set()
    durable.teardown()
    saved = load_sound(tmp_path / "last.ckpt")
    assert torch.equal(saved["a"], torch.zeros(1000)) and saved["b"] == [1]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("checkpoint")]


def test_what_is_being_written_is_waited_for_to_be_read(tmp_path, large, monkeypatch):
    write = checkpoint_io._write
    monkeypatch.setattr(checkpoint_io, "_write", lambda *args: time.sleep(0.2) or write(*args))
    durable = DurableCheckpointIO()
    for number in (1, 2):
        durable.save_checkpoint({"a": torch.zeros(1000), "number": number}, tmp_path / "last.ckpt")
        assert durable.load_checkpoint(tmp_path / "last.ckpt", weights_only=True)["number"] == number
    durable.teardown()


def test_what_fails_in_the_background_is_said_by_the_next_save_or_at_the_end(tmp_path, large, monkeypatch):
    for finish in (
        lambda durable: durable.save_checkpoint({"a": 1}, tmp_path / "b.ckpt"),
        DurableCheckpointIO.teardown,
    ):
        durable = DurableCheckpointIO()
        with monkeypatch.context() as fault:
            fault.setattr(os, "fsync", failing(errno.ENOSPC))
            durable.save_checkpoint({"a": torch.zeros(1000)}, tmp_path / "last.ckpt")
            durable._pending[0].exception(10)
        with pytest.raises(pl_rl.RunFailure, match="No space left on device"):
            finish(durable)
        durable.teardown()
    assert list(tmp_path.iterdir()) == []


def test_an_old_file_goes_only_after_its_successor_is_safe(tmp_path, large, monkeypatch):
    save(tmp_path / "old.ckpt", number=1)
    durable = DurableCheckpointIO()
    go_on = threading.Event()
    write = checkpoint_io._write

    def slow_write(*args):
        go_on.wait(10)
        write(*args)

    with monkeypatch.context() as fault:
        fault.setattr(checkpoint_io, "_write", slow_write)
        fault.setattr(os, "fsync", failing(errno.ENOSPC))
        durable.save_checkpoint({"a": torch.zeros(1000)}, tmp_path / "new.ckpt")
        durable.remove_checkpoint(tmp_path / "old.ckpt")
        go_on.set()
        with pytest.raises(pl_rl.RunFailure):
            durable.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["old.ckpt"]
    durable.save_checkpoint({"a": torch.zeros(1000)}, tmp_path / "new.ckpt")
    durable.remove_checkpoint(tmp_path / "old.ckpt")
    durable.teardown()
    assert [path.name for path in tmp_path.iterdir()] == ["new.ckpt"]


# --- damage is found -------------------------------------------------------------------------------------------------


def test_a_sound_file_is_read_by_torch_alone_mapped_or_not(tmp_path):
    save(tmp_path / "last.ckpt", a=torch.arange(5))
    for mapped in (False, True):
        assert torch.equal(torch.load(tmp_path / "last.ckpt", weights_only=True, mmap=mapped)["a"], torch.arange(5))


@pytest.mark.slow
def test_every_flipped_bit_is_found(tmp_path):
    path = tmp_path / "last.ckpt"
    save(path, a=torch.arange(5))
    content = path.read_bytes()
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(pl_rl.UsageError, match="no checkpoint, or a damaged one"):
            load_sound(path)


@pytest.mark.slow
def test_every_cut_is_found(tmp_path):
    path = tmp_path / "last.ckpt"
    save(path, a=torch.arange(5))
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(pl_rl.UsageError, match="no checkpoint, or a damaged one"):
            load_sound(path)
    path.write_bytes(content + b"x")
    with pytest.raises(pl_rl.UsageError, match="no checkpoint, or a damaged one"):
        load_sound(path)


def test_urls_and_open_files_are_checked_as_paths_are(tmp_path):
    torch.save({"number": 1}, tmp_path / "sound.ckpt")
    content = bytearray((tmp_path / "sound.ckpt").read_bytes())
    content[len(content) // 2] ^= 1
    broken, text = tmp_path / "broken.ckpt", tmp_path / "text.ckpt"
    broken.write_bytes(content)
    text.write_text("no checkpoint")
    for path in (broken, text, tmp_path / "absent.ckpt"):
        with pytest.raises(pl_rl.UsageError, match="is no checkpoint, or a damaged one"):
            pl_rl.PPO.load_from_checkpoint(f"file://{path}")
        if path.exists():
            with path.open("rb") as file, pytest.raises(pl_rl.UsageError, match="is no checkpoint, or a damaged one"):
                pl_rl.PPO.load_from_checkpoint(file)
    with pytest.raises(pl_rl.UsageError, match="is not a checkpoint of pl_rl"):
        pl_rl.PPO.load_from_checkpoint(f"file://{tmp_path / 'sound.ckpt'}")
