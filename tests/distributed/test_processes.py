"""A run has the same bits with any number of processes, and goes on with another number of them."""

import errno
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import lightning as L
import pytest
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities import rank_zero_only

import pl_rl
import tests.faulty_environments
import tests.uncertain_environments  # noqa: F401  (registers environments)
from pl_rl.callbacks import RunCheckpoint
from pl_rl.checkpoints.format import read_checkpoint
from pl_rl.distributed import processes
from pl_rl.distributed.shards import Shards
from pl_rl.envs.processors import cores
from pl_rl.errors import RunFailure
from pl_rl.signals import Interruption
from pl_rl.tools.verification import compare_runs
from tests.distributed.support import in_processes
from tests.resume.test_resume import RUN, account, last_of, run_of, train
from tests.support import counters_in

SHARDED = {"shards": 4, "num_envs": 8, "compile_update": False}
BOTH_NORMS = {"env": "Pendulum-v1", "norm_obs": True, "norm_reward": True, "target_kl": 0.01}
RECOMPUTED = {"env": "Pendulum-v1", "norm_obs": True, "norm_value": True, "recompute_adv": True}


def train_in(world, root, until, ckpt_path=None, **settings):
    """As :func:`train`, in some processes; the faults of each, in words."""

    def fit(rank):
        torch.set_num_threads(1)
        train(root, until, ckpt_path, trainer_class=trainer_of(world), **{**SHARDED, **settings})

    if world == 1:
        train(root, until, ckpt_path, **{**SHARDED, **settings})
        return [None]
    return in_processes(world, fit)


def trainer_of(world):
    return lambda **settings: pl_rl.Trainer(**settings, devices=world)


def differences(one, other):
    return {name: text for name, text in compare_runs(run_of(one), run_of(other)).items() if text is not None}


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"env": "CartPole-v1"},
        {"env": "CartPole-v1", "compile_update": True},
        BOTH_NORMS,
        {**BOTH_NORMS, "compile_update": True},
        RECOMPUTED,
        {"env": pl_rl.EnvConfig("Acrobot-v1", "async"), "anneal_lr": True, "clip_vloss": True},
        {"env": "PlRlTest/Pictures-v0", "network": pl_rl.CNNActorCritic, "eval_freq": 0},
    ],
    ids=lambda settings: "-".join(str(getattr(value, "id", value)) for value in settings.values()),
)
@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_run_has_the_same_bits_with_any_number_of_processes(tmp_path, settings, world):
    train_in(1, tmp_path / "one", 4, **settings)
    assert train_in(world, tmp_path / "several", 4, **settings) == [None] * world
    assert differences(tmp_path / "one", tmp_path / "several") == {}
    assert not run_of(tmp_path / "several", version=1).exists()


@pytest.mark.slow
@pytest.mark.parametrize("settings", [BOTH_NORMS, RECOMPUTED], ids=["", "recomputed"])
def test_exchanged_gradients_and_rollouts_give_the_same_bits(tmp_path, settings, monkeypatch):
    for pays in (False, True):
        monkeypatch.setattr("pl_rl.compiled.learner.pooling_pays", lambda *_, pays=pays: pays)
        assert train_in(2, tmp_path / str(pays), 4, **settings) == [None] * 2
    assert differences(tmp_path / "False", tmp_path / "True") == {}


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(tmp_path, capfd):
    train_in(1, tmp_path / "whole", 6, **BOTH_NORMS)
    train_in(1, tmp_path / "parts", 2, **BOTH_NORMS)
    for until, world, told in [(4, 4, "1 -> 4"), (5, 2, "4 -> 2"), (6, 1, "2 -> 1")]:
        capfd.readouterr()
        assert train_in(world, tmp_path / "parts", until, last_of(tmp_path / "parts"), **BOTH_NORMS) == [None] * world
        out = capfd.readouterr().out
        assert out.count("Continued in") == 1 and f"processes: {told}\n  fidelity: exact" in out
    assert differences(tmp_path / "whole", tmp_path / "parts") == {}
    assert not run_of(tmp_path / "parts", version=1).exists()


def test_one_shard_trains_as_if_there_were_none(tmp_path):
    train(tmp_path / "one", 3, env="CartPole-v1", shards=1, compile_update=False)
    state = read_checkpoint(last_of(tmp_path / "one"))["pl_rl"]
    assert "shards" not in state["collector"] and "processes" not in state


def test_a_sharded_run_is_resumed_exactly(tmp_path, capsys):
    train_in(1, tmp_path / "whole", 4)
    train_in(1, tmp_path / "parts", 2)
    train_in(1, tmp_path / "parts", 4, last_of(tmp_path / "parts"))
    assert account(capsys)[-1] == "fidelity: exact"
    assert differences(tmp_path / "whole", tmp_path / "parts") == {}


@pytest.mark.parametrize(
    ("settings", "world", "words"),
    [
        ({"shards": 3}, 1, "shards=3 is no power of two; use 2 or 4"),
        ({"shards": 16}, 1, "num_envs=8 is not divisible by shards=16; use --model.num_envs 16"),
        (
            {"shards": 8, "minibatch_size": 4},
            1,
            "minibatch_size=4 is not divisible by shards=8; use --model.minibatch_size 8",
        ),
        ({"shards": 1}, 2, "2 processes share out the shards .* --model.shards 2"),
        ({"shards": 4}, 3, "3 processes cannot share out shards=4 equally; use 2"),
    ],
)
def test_what_cannot_be_dealt_is_refused_before_anything_is_started(tmp_path, settings, world, words):
    with pytest.raises(pl_rl.UsageError, match=words):
        train(tmp_path, 1, trainer_class=trainer_of(world), **{**SHARDED, **settings})
    assert not list(tmp_path.iterdir())


def test_strategies_and_trainers_that_are_not_made_for_shards_are_refused(tmp_path):
    model = pl_rl.PPO(**{**RUN, **SHARDED})
    for trainer in [
        pl_rl.Trainer(accelerator="cpu", devices=2, strategy="ddp_fork", logger=False),
        L.Trainer(accelerator="cpu", devices=2, logger=False),
    ]:
        with pytest.raises(pl_rl.UsageError, match=r"strategy=DDPStrategy is not made for|need pl_rl\.Trainer"):
            model.check_trainer(trainer)


class SignalTo(L.Callback):
    """Sends one process a signal."""

    def __init__(self, rank, signum):
        self.rank, self.signum = rank, signum

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if pl_module.iteration == 2 and self.rank in (trainer.global_rank, None):
            os.kill(os.getpid(), self.signum)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "seconds", "iteration"),
    [(0, 60, 3), (1, 60, 3), (None, 60, 3), (None, 0, 2), (1, 0, 3)],
    ids=["first", "other", "all", "all, in a long iteration", "other, in a long iteration"],
)
def test_a_signal_to_any_process_ends_all(tmp_path, rank, seconds, iteration, capfd, monkeypatch):
    monkeypatch.setattr("pl_rl.callbacks.stop_on_signal.LONG_SECONDS", seconds)
    callbacks = [RunCheckpoint(last_every_n_iterations=100), SignalTo(rank, signal.SIGTERM)]
    assert train_in(2, tmp_path / "parts", 6, callbacks=callbacks) == ["Interrupted: 143"] * 2
    assert capfd.readouterr().out.count(f"Stopped by SIGTERM at iteration {iteration}") == 1
    assert train_in(2, tmp_path / "parts", 6, last_of(tmp_path / "parts")) == [None] * 2
    train_in(1, tmp_path / "whole", 6)
    assert differences(tmp_path / "whole", tmp_path / "parts") == {}


@pytest.mark.slow
def test_what_a_signal_to_the_first_process_ends_in_the_middle_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("pl_rl.callbacks.stop_on_signal.LONG_SECONDS", 0)
    callbacks = [RunCheckpoint(last_every_n_iterations=100), SignalTo(0, signal.SIGTERM)]
    assert train_in(2, tmp_path / "parts", 6, callbacks=callbacks)[0] == "Interrupted: 143"
    assert train_in(4, tmp_path / "parts", 4, last_of(tmp_path / "parts")) == [None] * 4
    train_in(1, tmp_path / "whole", 4)
    assert differences(tmp_path / "whole", tmp_path / "parts") == {}


@pytest.mark.slow
def test_a_time_limit_ends_all_together(tmp_path, monkeypatch):
    monkeypatch.setattr("pl_rl.callbacks.stop_on_signal.LONG_SECONDS", 0)
    until_limit = [RunCheckpoint(last_every_n_iterations=100), Timer({"seconds": 2})]
    assert train_in(2, tmp_path / "parts", 100_000, callbacks=until_limit) == [None] * 2
    iteration = counters_in(last_of(tmp_path / "parts"))["iteration"]
    callbacks = [RunCheckpoint(last_every_n_iterations=100), Timer({"days": 1})]
    parts = last_of(tmp_path / "parts")
    assert train_in(2, tmp_path / "parts", iteration + 1, parts, callbacks=callbacks) == [None] * 2
    train_in(1, tmp_path / "whole", iteration + 1, callbacks=callbacks)
    assert {**differences(tmp_path / "whole", tmp_path / "parts"), "callbacks": ""} == {"callbacks": ""}


class FillDiskIn(L.Callback):
    """Leaves the first process no room for files."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if pl_module.iteration == 3 and trainer.is_global_zero:
            full = OSError(errno.ENOSPC, "No space left on device")
            patch("pl_rl.checkpoints.saving._write", side_effect=full).start()


@pytest.mark.slow
def test_a_full_disk_ends_all_with_the_checkpoint_before(tmp_path):
    callbacks = [RunCheckpoint(last_every_n_iterations=2), FillDiskIn()]
    failed, said = train_in(2, tmp_path, 6, callbacks=callbacks)
    assert failed == "OSError: [Errno 28] No space left on device"
    assert said.startswith("RunFailure: another process of the run has ended")
    assert counters_in(last_of(tmp_path))["iteration"] == 2


class FailIn(L.Callback):
    """Raises an exception in one process."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if pl_module.iteration == 2 and trainer.global_rank == 1:
            raise ValueError("of a user's callback")


@pytest.mark.slow
def test_an_exception_in_one_process_is_a_sentence_in_the_others(tmp_path):
    callbacks = [RunCheckpoint(last_every_n_iterations=1), FailIn()]
    said, failed = train_in(2, tmp_path, 6, callbacks=callbacks)
    assert failed == "ValueError: of a user's callback"
    assert said.startswith("RunFailure: another process of the run has ended") and "--ckpt_path last" in said
    assert read_checkpoint(last_of(tmp_path))["pl_rl"]["counters"]["iteration"] == 2


FAMILY = """
import os, signal, sys, time
from pathlib import Path
from types import SimpleNamespace
from pl_rl.distributed import processes
from pl_rl.signals import Interruption

trainer = SimpleNamespace(world_size=2, strategy=SimpleNamespace(launcher=None))
if os.fork():
    if sys.argv[1] == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    os.wait()
else:
    os.environ |= {processes.TOLD: "{}", "LOCAL_RANK": "1"}
    while sys.argv[1] == "stopped" and ") T" not in Path(f"/proc/{os.getppid()}/stat").read_text():
        time.sleep(0.1)
    failing = {"__name__": "torch.distributed.distributed_c10d"}
    with processes.ending_together(trainer, Interruption()):
        exec("raise RuntimeError('Application timeout caused pair closure')", failing)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="Linux tells who is stopped")
@pytest.mark.parametrize(("state", "status"), [("stopped", -signal.SIGKILL), ("running", 0)])
def test_a_first_process_that_is_stopped_for_ever_is_killed_by_those_that_it_has_started(state, status, warm_server):
    done = warm_server.run([sys.executable, "-c", FAMILY, state], timeout=300)
    assert done.returncode == status
    assert "RunFailure: another process of the run has ended, or does not answer" in done.stderr


class ChangeWeightsIn(L.Callback):
    """Flips a bit of one process's weights."""

    def on_train_epoch_end(self, trainer, pl_module):
        if pl_module.iteration == 2 and trainer.global_rank == 1:
            with torch.no_grad():
                next(pl_module.network.parameters()).view(-1)[0].view(torch.int32).bitwise_xor_(1)


@pytest.mark.slow
def test_other_weights_in_one_process_end_the_run(tmp_path):
    callbacks = [RunCheckpoint(last_every_n_iterations=1), ChangeWeightsIn()]
    for said in train_in(2, tmp_path, 6, callbacks=callbacks):
        assert said.startswith("RunFailure: weights differ between processes: [")


def test_processes_of_a_machine_share_its_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(8))
    launcher = processes._Launcher(LightningEnvironment(), 4, 1)
    monkeypatch.setattr(launcher, "_call_children_scripts", lambda: None)
    assert (cores(), launcher.launch(cores), cores()) == (8, 2, 8)


@pytest.mark.parametrize(("machines", "own_store", "told"), [(2, "0", 1), (2, "1", 0), (1, "0", 0)])
def test_restarts_that_would_fail_are_told(monkeypatch, machines, own_store, told):
    said = []
    monkeypatch.setattr(processes, "rank_zero_info", said.append)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    monkeypatch.setenv("GROUP_WORLD_SIZE", str(machines))
    monkeypatch.setenv(processes.OWN_STORE, own_store)
    pl_rl.Trainer(accelerator="cpu", devices=2, logger=False, enable_checkpointing=False)
    assert [processes.OWN_STORE in sentence for sentence in said] == [True] * told


class OlderProcessorIn(L.Callback):
    """Lets one process believe that its processor knows fewer instructions."""

    def on_fit_start(self, trainer, pl_module):
        if trainer.global_rank == 1:
            patch("torch.backends.cpu.get_cpu_capability", return_value="DEFAULT").start()


@pytest.mark.slow
def test_processors_of_two_kinds_are_told_at_the_start(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("pl_rl.checkpoints.training_state.rank_zero_info", rank_zero_only(print))
    assert train_in(2, tmp_path, 1, callbacks=[RunCheckpoint(), OlderProcessorIn()]) == [None] * 2
    said = f"would end the run: processor {torch.backends.cpu.get_cpu_capability()} and DEFAULT; use machines"
    assert capfd.readouterr().out.count(said) == 1


def test_a_refusal_of_the_first_process_is_said_by_all(tmp_path):
    refused = "UsageError: the checkpoint"
    for said in train_in(2, tmp_path, 1, tmp_path / "missing.ckpt"):
        assert said.startswith("UsageError: ") and "missing.ckpt" in said, refused


def test_whatever_ends_the_first_process_is_told_the_others():
    said = in_processes(2, lambda rank: processes.led("answer", lambda: 1 / 0))
    assert said == ["ZeroDivisionError: division by zero", "UsageError: division by zero"]


@pytest.mark.parametrize(
    "error",
    [
        torch.distributed.DistStoreError("Timed out after 301 seconds waiting for clients. 1/2 clients joined."),
        RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer"),
        RuntimeError("Application timeout caused pair closure"),
    ],
)
def test_a_process_that_is_gone_before_the_run_begins_is_a_sentence(error, monkeypatch):
    def exchange(shards, value):
        exec("raise error", {"__name__": "torch.distributed.distributed_c10d", "error": error})

    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 1)
    monkeypatch.setattr("pl_rl.distributed.shards.Shards.of_first", exchange)
    with pytest.raises(RunFailure, match=r"another process .* does not answer; .*; start all of them again"):
        processes.led("start", dict)


class Silent:
    """An exchange with a process that does not answer."""

    def wait(self):
        raise RuntimeError("Application timeout caused pair closure")


OF_TWO = SimpleNamespace(world_size=2, strategy=SimpleNamespace(launcher=None))


def test_a_process_that_is_gone_while_gradients_are_summed_is_a_sentence(monkeypatch):
    monkeypatch.setattr("torch.distributed.P2POp", lambda *_: None)
    monkeypatch.setattr("torch.distributed.batch_isend_irecv", lambda _: [Silent()])
    with pytest.raises(RunFailure, match="does not answer"), processes.ending_together(OF_TWO, Interruption()):
        Shards(2, 0, 2).sum(torch.ones(1, 3))


@pytest.mark.parametrize("module", ["mine", "pl_rl.distributed.shards"])
def test_an_error_that_no_exchange_raises_is_as_it_was(module):
    with pytest.raises(RuntimeError, match="a peer of mine"), processes.ending_together(OF_TWO, Interruption()):
        exec("raise RuntimeError('gloo, nccl and a peer of mine')", {"__name__": module})
