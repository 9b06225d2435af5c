"""Whoever starts the processes of a run: the same bits, one directory, one sentence at an end, nobody left."""

import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from pl_rl.tools.verification import compare_runs
from tests import warm
from tests.resume.test_resume import last_of, run_of
from tests.support import counters_in, is_running

pytestmark = pytest.mark.slow
FIT = [
    *("-m", "pl_rl", "fit", "--config", "cartpole.yaml", "--model.shards", "4", "--model.compile_update", "false"),
    *("--model.eval_freq", "20", "--model.eval_episodes", "4", "--trainer.log_every_n_steps", "1"),
    *("--trainer.enable_progress_bar", "false", "--checkpoint.last_every_n_iterations", "2"),
]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def start(warm_server):
    """Starts a run; its processes are forked, unless all that its launcher starts shall be new."""

    def begin(root, until, *options, launcher=(), env=None, start_new_session=False, new=False):
        command = [sys.executable, *launcher, *FIT, "--trainer.default_root_dir", str(root)]
        popen = partial(warm_server.popen, family=not new)
        return (subprocess.Popen if new and launcher else popen)(
            [*command, "--trainer.max_epochs", str(until), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **(env or {})},
            start_new_session=start_new_session,
        )

    return begin


@pytest.fixture
def alone(tmp_path, start):
    """Trains a run by a single process until an iteration, in the folder "alone"."""

    def train(until):
        process = start(tmp_path / "alone", until)
        out, _ = process.communicate(timeout=600)
        assert process.returncode == 0, out

    return train


def differences(one, other):
    return {name: text for name, text in compare_runs(run_of(one), run_of(other)).items() if text is not None}


def slurm_task(rank, port):
    job = {
        "JOB_ID": 4711, "JOB_NAME": "train", "STEP_ID": 0, "NTASKS": 2, "NTASKS_PER_NODE": 2, "NNODES": 1,
        "PROCID": rank, "LOCALID": rank, "NODEID": 0, "NODELIST": "localhost",
    }  # fmt: skip
    return {**{f"SLURM_{name}": str(value) for name, value in job.items()}, "MASTER_PORT": str(port)}


def test_every_launcher_trains_the_same_bits(tmp_path, start):
    port = free_port()
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    started = {
        "alone": [start(tmp_path / "alone", 3)],
        "lightning": [start(tmp_path / "lightning", 3, "--trainer.devices", "2", new=True)],
        "torchrun": [start(tmp_path / "torchrun", 3, launcher=torchrun, new=True)],
        "slurm": [start(tmp_path / "slurm", 3, env=slurm_task(rank, port)) for rank in (0, 1)],
    }
    for name, processes in started.items():
        for process in processes:
            out, _ = process.communicate(timeout=600)
            assert process.returncode == 0, out
        assert differences(tmp_path / "alone", tmp_path / name) == {}
        assert not run_of(tmp_path / name, version=1).exists()


def wait_for_iteration(root, iteration, process):
    while not (last_of(root).is_file() and counters_in(last_of(root))["iteration"] >= iteration):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.2)


def killed(start, root, signum, of_child):
    """A run of two processes, of which one gets a signal; its status, output and child."""
    process = start(root, 100_000, "--trainer.devices", "2")
    wait_for_iteration(root, 3, process)
    (child,) = _children(process.pid)
    os.kill(child if of_child else process.pid, signum)
    out, _ = process.communicate(timeout=300)
    for _ in range(100):
        if not is_running(child):
            break
        time.sleep(0.2)
    return process.returncode, out, child


@pytest.mark.parametrize("machines", [1, 2])
def test_torchrun_starts_killed_processes_again_and_the_run_goes_on(tmp_path, machines, start, alone):
    """Two machines are two agents that meet at an address of this one."""
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--local-addr", "127.0.0.1"]
    options = [*meeting, "--nnodes", str(machines), "--nproc-per-node", str(2 // machines), "--max-restarts", "3"]
    agents = [
        start(
            tmp_path / "run",
            60,
            "--auto_resume",
            launcher=("-m", "torch.distributed.run", *options, "--rdzv-conf", f"is_host={int(number == 0)}"),
            env={"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        )
        for number in range(machines)
    ]
    wait_for_iteration(tmp_path / "run", 3, agents[0])
    os.kill(_children(agents[-1].pid)[-1], signal.SIGKILL)
    outputs = [agent.communicate(timeout=500)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0] * machines, outputs
    assert "fidelity: exact" in "".join(outputs)
    alone(60)
    assert differences(tmp_path / "alone", tmp_path / "run") == {}
    assert not run_of(tmp_path / "run", version=1).exists()


def test_ctrl_c_in_a_terminal_ends_all_saved(tmp_path, start):
    process = start(tmp_path, 100_000, "--trainer.devices", "2", start_new_session=True)
    wait_for_iteration(tmp_path, 3, process)
    (child,) = _children(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 130 and out.count("Stopped by SIGINT at iteration") == 1, out
    assert "Traceback" not in out and "error:" not in out
    assert not is_running(child)


def _children(pid):
    """Those that a run has; the tests' own is no part of it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if Path(f"/proc/{child}/comm").read_text().strip() != warm.STARTER]


@pytest.mark.parametrize(
    ("signum", "of_child", "status", "words"),
    [
        (signal.SIGKILL, True, 1, "error: process 1 was ended by SIGKILL; go on from the last checkpoint"),
        (signal.SIGKILL, False, -9, "error: another process of the run has ended"),
        (signal.SIGSTOP, True, 1, "error: process 1 did not answer, and was killed; go on from the last checkpoint"),
        (signal.SIGSTOP, False, -9, "error: another process of the run has ended"),
        (signal.SIGTERM, True, 143, "Stopped by SIGTERM at iteration"),
    ],
    ids=["killed", "first-killed", "stopped", "first-stopped", "terminated"],
)
def test_a_run_whose_process_dies_leaves_nobody_and_goes_on(tmp_path, signum, of_child, status, words, start, alone):
    ended, out, child = killed(start, tmp_path / "run", signum, of_child)
    assert ended == status and out.count(words) == 1 and "Traceback" not in out, out
    assert not is_running(child)
    iteration = counters_in(last_of(tmp_path / "run"))["iteration"]
    resumed = start(tmp_path / "run", iteration + 2, "--ckpt_path", "last", "--trainer.devices", "2")
    alone(iteration + 2)
    out, _ = resumed.communicate(timeout=600)
    assert resumed.returncode == 0, out
    assert differences(tmp_path / "alone", tmp_path / "run") == {}
