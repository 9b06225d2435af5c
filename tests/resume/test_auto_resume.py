"""The same command again and again; one process in a run directory; SLURM's queue."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import pl_rl
from pl_rl import cli
from pl_rl.algorithm.rollout import RolloutCollector
from pl_rl.runs.lock import locked
from pl_rl.tools.verification import compare_runs
from tests.resume.test_resume import run_of, train
from tests.support import SMALL, counters_in, fit, small_ppo
from tests.test_signals import begin, finish

RUN = Path("lightning_logs/version_0")
LAST = RUN / "checkpoints" / "last.ckpt"


@pytest.fixture(autouse=True)
def _config():
    Path("small.yaml").write_text(yaml.safe_dump({"model": {**SMALL, "env": {"id": SMALL["env"]}}}))


def go(*args, auto=True):
    """The exit status of ``fit`` with a small configuration."""
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.log_every_n_steps", "1"]
    try:
        cli.main(["fit", "--config", "small.yaml", *args, *quiet, *(["--auto_resume"] if auto else [])])
    except SystemExit as end:
        return end.code or 0
    return 0


def runs():
    return sorted(path.name for path in Path("lightning_logs").iterdir())


def stamps():
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in RUN.rglob("*")}


def change(**settings):
    config = yaml.safe_load(Path("small.yaml").read_text())
    config["model"] |= settings
    Path("small.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.slow
def test_a_time_limit_asks_for_the_command_again_until_the_run_is_finished(monkeypatch):
    collect = RolloutCollector.collect
    monkeypatch.setattr(RolloutCollector, "collect", lambda self: time.sleep(0.25) or collect(self))
    statuses = [75]
    while statuses[-1] == 75:
        statuses.append(go("--trainer.max_time", "00:00:00:01"))
        assert counters_in(LAST)["iteration"] >= len(statuses) - 1
    assert statuses == [75] * (len(statuses) - 1) + [0] and len(statuses) > 2
    assert counters_in(LAST)["env_steps"] == SMALL["total_env_steps"]


def test_the_same_command_begins_continues_and_is_finished(capsys, monkeypatch, tmp_path):
    (tmp_path / "whole").mkdir()
    go("--trainer.default_root_dir", "whole", auto=False)
    stop = pl_rl.PPO.training_step

    def stop_in_the_middle(model, rollout, batch_idx):
        stop(model, rollout, batch_idx)
        if model.iteration in (3, 6):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(pl_rl.PPO, "training_step", stop_in_the_middle)
    assert [go(), go(), go()] == [143, 143, 0]
    out = capsys.readouterr().out
    assert out.count("this command began no run under lightning_logs yet, so it begins one") == 1
    assert out.count("Continued in lightning_logs/version_0.") == 2
    assert out.count("fidelity: exact") == 2
    assert runs() == ["version_0"]
    before = stamps()
    assert go() == 0
    assert "lightning_logs/version_0 is finished: total_env_steps=512 reached" in capsys.readouterr().out
    assert before == stamps()
    assert [name for name, text in compare_runs(tmp_path / "whole" / RUN, RUN).items() if text] == []


@pytest.mark.slow
@pytest.mark.parametrize("value", [["true"], ["True"], []])
def test_it_may_be_said_with_a_value(value):
    """As the help shows it."""
    assert go("--trainer.max_epochs", "1", auto=False) == 0
    assert go("--trainer.max_epochs", "1", "--auto_resume", *value, auto=False) == 0
    assert runs() == ["version_0"]
    assert go("--trainer.max_epochs", "1", "--auto_resume", "false", auto=False) == 0
    assert runs() == ["version_0", "version_1"]


def test_another_command_is_another_run():
    assert [go(), go("--seed_everything", "1"), go("--seed_everything", "1")] == [0, 0, 0]
    assert runs() == ["version_0", "version_1"]


@pytest.mark.slow
def test_a_changed_configuration_is_listed_as_in_any_resume(capsys):
    go()
    change(total_env_steps=640, clip_coef=0.1)
    capsys.readouterr()
    assert go() == 0
    out = capsys.readouterr().out
    assert "changed: clip_coef: 0.2 -> 0.1" in out and "changed: total_env_steps: 512 -> 640" in out
    assert counters_in(LAST)["env_steps"] == 640


@pytest.mark.slow
def test_a_run_that_was_begun_without_it_is_continued_too():
    go(auto=False)
    change(total_env_steps=640)
    go()
    assert runs() == ["version_0"] and counters_in(LAST)["env_steps"] == 640


@pytest.mark.slow
def test_a_run_that_died_before_its_first_checkpoint_is_said(capsys):
    go()
    for path in LAST.parent.iterdir():
        path.unlink()
    assert go() == 0
    assert "lightning_logs/version_0 ended before its first checkpoint, so a new run begins" in capsys.readouterr().out
    assert runs() == ["version_0", "version_1"]


def die(*args, **kwargs):
    raise SystemExit(137)


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", ["callbacks.run_checkpoint.RunCheckpoint.on_train_start", "checkpoints.saving._rotate"]
)
@pytest.mark.parametrize("logger", ["TensorBoardLogger", "CSVLogger"])
def test_runs_that_die_before_their_first_checkpoint_leave_nothing_behind(moment, logger, monkeypatch, capsys):
    change_logger = ["--trainer.logger", logger, "--trainer.logger.save_dir", "."]
    with monkeypatch.context() as patch:
        patch.setattr(f"pl_rl.{moment}", die)
        assert [go(*change_logger) for _ in range(3)] == [137] * 3
    assert runs() == ["version_0"]
    assert go(*change_logger) == 0
    assert runs() == ["version_0"] and LAST.is_file()
    assert "version_0 ended before its first checkpoint, so it begins again" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["notes.txt", "checkpoints/notes.txt", "metrics.csv", "linked.yaml"])
def test_a_run_with_anything_else_in_it_is_left_behind(name, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("pl_rl.callbacks.run_checkpoint.RunCheckpoint.on_train_start", die)
        go()
    path = RUN / name
    path.parent.mkdir(exist_ok=True)
    if name == "linked.yaml":
        path.symlink_to("config.yaml")
    else:
        path.write_text("step,loss\n5,1.0\n")
    before = stamps()
    go()
    assert runs() == ["version_0", "version_1"] and stamps() == before


@pytest.mark.slow
def test_a_run_without_a_sound_checkpoint_is_never_begun_again(capsys):
    go()
    for path in LAST.parent.iterdir():
        path.write_bytes(path.read_bytes()[:500])
    assert go() == 2
    assert "version_0 has no sound checkpoint: last.ckpt (it is cut short)" in capsys.readouterr().err
    assert runs() == ["version_0"]


@pytest.mark.slow
def test_a_branch_is_begun_once_and_then_continued():
    go(auto=False)
    change(total_env_steps=640)
    for _ in range(2):
        assert go("--ckpt_path", "lightning_logs/version_0/checkpoints/last.ckpt", "--branch") == 0
        change(total_env_steps=768)
    assert runs() == ["version_0", "version_1"]
    assert counters_in("lightning_logs/version_1/checkpoints/last.ckpt")["env_steps"] == 768


@pytest.fixture
def script(monkeypatch):
    """Begin as a new process does, with the words that began it."""

    def begin(*argv):
        monkeypatch.setattr(sys, "argv", list(argv))
        monkeypatch.setattr(pl_rl.Trainer, "_ended", 0)

    return begin


@pytest.mark.slow
def test_a_script_can_do_it_too(tmp_path, script):
    script("train.py", "--fast")
    train(tmp_path, 3)
    script("train.py", "--fast")
    model, _ = train(tmp_path, 5, auto_resume=True)
    assert model.iteration == 5 and not run_of(tmp_path, version=1).exists()
    script("other.py")
    train(tmp_path, 2, auto_resume=True)
    assert run_of(tmp_path, version=1).exists()


@pytest.mark.slow
@pytest.mark.parametrize("queued_again", [False, True])
def test_each_run_of_a_scripts_loop_goes_on_where_it_was(tmp_path, script, monkeypatch, capsys, queued_again):
    script("train.py")
    for seed, until in enumerate([4, 3]):  # the second is interrupted, the third not begun
        train(tmp_path, until, seed=seed, auto_resume=not queued_again)
    script("train.py")
    if queued_again:
        monkeypatch.setenv("SLURM_JOB_ID", "1")
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    trained = [train(tmp_path, 4, seed=seed, auto_resume=not queued_again)[0] for seed in range(3)]
    assert [(model.iteration, model.run_seed) for model in trained] == [(4, 0), (4, 1), (4, 2)]
    assert sorted(path.name for path in (tmp_path / "lightning_logs").iterdir()) == [f"version_{i}" for i in range(3)]


# --- one process in a directory --------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from pl_rl.runs.lock import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(warm_server):
    """A process that holds the lock of the run."""
    RUN.mkdir(parents=True, exist_ok=True)
    with warm_server.popen([sys.executable, "-c", HOLD, str(RUN)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


@pytest.mark.slow
def test_a_second_process_is_refused_and_told_of_the_first(holder, capsys):
    with pytest.raises(pl_rl.UsageError, match=rf"version_0' is in use by process {holder.pid} on .*, since 20.*wait"):
        locked(RUN).__enter__()
    holder.kill()
    holder.wait()
    assert (RUN / ".lock").exists()
    with locked(RUN):
        assert f"process {os.getpid()} on " in (RUN / ".lock").read_text()
    assert not (RUN / ".lock").exists()


@pytest.mark.slow
def test_no_file_of_a_run_in_use_is_touched(capsys, request):
    go(auto=False)
    holder = request.getfixturevalue("holder")
    before = stamps()
    for args in (["--ckpt_path", "last"], ["--auto_resume"]):
        change(total_env_steps=640)
        assert go(*args, auto=False) == 2
        assert f"is in use by process {holder.pid} on " in capsys.readouterr().err
    assert before == stamps()


@pytest.mark.slow
def test_a_file_system_without_locks_is_served_by_the_file_alone(holder, monkeypatch):
    def no_locks(*args):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("pl_rl.runs.lock.fcntl.lockf", no_locks)
    with pytest.raises(pl_rl.UsageError, match=f"in use by process {holder.pid} on "):
        locked(RUN).__enter__()
    holder.kill()
    holder.wait()
    with locked(RUN):
        pass
    (RUN / ".lock").write_text("process 1 on another.machine, since 2026-01-01\n")
    with pytest.raises(pl_rl.UsageError, match=r"in use by process 1 on another\.machine"):
        locked(RUN).__enter__()


def test_worker_processes_do_not_keep_the_lock(tmp_path):
    with locked(tmp_path / "run"):
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
    try:
        with locked(tmp_path / "run"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert not (tmp_path / "run").exists()


def test_a_directory_that_cannot_be_written_is_one_sentence(monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pl_rl.runs.lock.os.open", refuse)
    with pytest.raises(pl_rl.UsageError, match=r"version_0' cannot be written: Permission denied; .*default_root_dir"):
        locked(RUN).__enter__()


@pytest.mark.slow
def test_a_run_directory_that_is_deleted_while_the_run_writes_to_it_is_one_sentence(monkeypatch, capsys):
    step = pl_rl.PPO.training_step

    def delete(model, rollout, batch_idx):
        step(model, rollout, batch_idx)
        if model.iteration == 3:
            shutil.rmtree(RUN.rename("deleted"))  # at once, as a checkpoint may be being written there

    monkeypatch.setattr(pl_rl.PPO, "training_step", delete)
    assert go(auto=False) == 1
    err = capsys.readouterr().err
    assert "run directory 'lightning_logs/version_0' was deleted while the run wrote to it" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_plain_trainer_takes_no_lock(holder):
    fit(small_ppo())


# --- SLURM -----------------------------------------------------------------------------------------------------------

JOB = {
    "SLURM_JOB_ID": "4711",
    "SLURM_NTASKS": "1",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_NNODES": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_JOB_NAME": "train",
    "SLURM_NODELIST": "localhost",
}


SIGNAL = """
import os
from pl_rl import PPO
step = PPO.training_step
def training_step(self, *args):
    step(self, *args)
    self.iteration == 4 and os.kill(os.getpid(), 10)
PPO.training_step = training_step
"""


@pytest.mark.slow
@pytest.mark.parametrize("array", [False, True])
def test_a_slurm_job_is_queued_again_and_goes_on(tmp_path, array, warm_server):
    """The job's own signal; a ``scontrol`` that only notes what it was asked; the environment of the second start."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    job = {**JOB, "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
    if array:
        job |= {"SLURM_ARRAY_JOB_ID": "4700", "SLURM_ARRAY_TASK_ID": "3"}
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    assert finish(begin(warm_server, tmp_path / "whole"))[0] == 0
    status, out, err = finish(begin(warm_server, tmp_path / "parts", slow=SIGNAL, env=job))
    assert status == 138, err
    number = "4700_3" if array else "4711"
    assert (tmp_path / "asked").read_text() == f"requeue {number}\n"
    assert f"SLURM job {number} is queued again." in out
    status, out, err = finish(begin(warm_server, tmp_path / "parts", env={**job, "SLURM_RESTART_COUNT": "1"}))
    assert status == 0, err
    assert re.search(r"at: iteration 4, ", out) and "fidelity: exact" in out
    parts = run_of(tmp_path / "parts")
    assert [name for name, text in compare_runs(run_of(tmp_path / "whole"), parts).items() if text] == []
    assert counters_in(parts / "checkpoints" / "last.ckpt")["iteration"] == 10
