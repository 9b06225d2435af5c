"""Checkpoint files are whole or not there."""

import signal
import subprocess
import sys
import time

import pytest
import torch

import pl_rl
from pl_rl.checkpoint_io import DurableCheckpointIO
from pl_rl.runs import find_checkpoint


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


def test_what_a_killed_save_leaves_is_never_taken_for_a_checkpoint(tmp_path):
    folder = tmp_path / "lightning_logs" / "version_0" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / ".last.ckpt.partial").write_bytes(b"half")
    with pytest.raises(pl_rl.UsageError, match=r"has no last\.ckpt"):
        find_checkpoint("last")


@pytest.mark.slow
def test_a_kill_during_a_save_leaves_a_whole_file(tmp_path):
    script = """
import sys, torch
from pl_rl.checkpoint_io import DurableCheckpointIO
number = 0
while True:
    DurableCheckpointIO().save_checkpoint({"number": number, "a": torch.full((500_000,), float(number))}, sys.argv[1])
    number += 1
    print(number, flush=True)
"""
    path = tmp_path / "a.ckpt"
    for moment in range(4):
        with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True) as process:
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
