"""A run that is asked to leave does so within seconds, wherever it is, and nothing is lost."""

import asyncio
import errno
import os
import pkgutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Timer
from torch.func import functional_call

import pl_rl
from pl_rl.callbacks import RunCheckpoint
from pl_rl.compiled.flops import count_flops
from pl_rl.compiled.tracing import trace
from pl_rl.errors import Interrupted
from pl_rl.signals import Interruption
from pl_rl.tools.verification import compare_runs
from tests.resume.test_resume import RUN, differences, last_of, run_of, train
from tests.support import SMALL, counters_in, is_running, same_bits

STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129, signal.SIGUSR1: 138}


@pytest.fixture(autouse=True)
def _eager(monkeypatch):
    monkeypatch.setitem(RUN, "compile_update", False)


@pytest.fixture(autouse=True)
def _interrupted_as_in_a_terminal():
    """A process in the background of a shell without job control begins with SIGINT ignored."""
    set_handler = signal.signal  # which a test replaces
    before = set_handler(signal.SIGINT, signal.default_int_handler)
    yield
    set_handler(signal.SIGINT, before)


@pytest.fixture
def long(monkeypatch):
    """Every iteration counts as long."""
    monkeypatch.setattr("pl_rl.callbacks.stop_on_signal.LONG_SECONDS", 0.0)


def rarely():
    return [RunCheckpoint(last_every_n_iterations=100)]


class SignalAt(L.Callback):
    """Sends this process a signal at the end of an iteration's collecting."""

    def __init__(self, iteration, *signums):
        self.iteration, self.signums = iteration, signums

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if pl_module.iteration == self.iteration:
            for signum in self.signums:
                os.kill(os.getpid(), signum)


@pytest.fixture(autouse=True)
def _without_nohup(set_handler=signal.signal):
    """Whoever runs the tests may have been told to ignore it, which is inherited."""
    before = set_handler(signal.SIGHUP, signal.SIG_DFL)
    yield
    set_handler(signal.SIGHUP, before)


def interrupted(root, signum, callback, **settings):
    with pytest.raises(SystemExit) as end:
        train(root, 10, callbacks=[callback, *rarely()], **settings)
    assert end.value.code == STATUS[signum]


@pytest.mark.slow
@pytest.mark.parametrize("signum", STATUS)
def test_a_short_iteration_is_finished_and_saved(tmp_path, signum, capfd):
    train(tmp_path / "whole", 10, callbacks=rarely())
    before = {number: signal.getsignal(number) for number in STATUS}
    interrupted(tmp_path / "parts", signum, SignalAt(4, signum))
    assert {number: signal.getsignal(number) for number in STATUS} == before
    assert counters_in(last_of(tmp_path / "parts"))["iteration"] == 5
    out, err = capfd.readouterr()
    assert f"Stopped by {signum.name} at iteration 5, env_steps 320; saved parts/lightning_logs" in out
    assert f"{signum.name}: stopping after this iteration; once more stops at once" in err
    train(tmp_path / "parts", 10, "last", callbacks=rarely())
    assert differences(tmp_path / "whole", tmp_path / "parts") == {}


@pytest.mark.slow
def test_a_long_iteration_is_left_and_done_again(tmp_path, long, capfd):
    train(tmp_path / "whole", 10, callbacks=rarely())
    interrupted(tmp_path / "parts", signal.SIGTERM, SignalAt(4, signal.SIGTERM))
    assert counters_in(last_of(tmp_path / "parts"))["iteration"] == 4
    assert "SIGTERM: stopping now" in capfd.readouterr().err
    train(tmp_path / "parts", 10, "last", callbacks=rarely())
    assert differences(tmp_path / "whole", tmp_path / "parts") == {}


@pytest.mark.slow
@pytest.mark.parametrize("iteration", [0, 2])
def test_no_copy_is_kept_of_what_has_just_been_saved(tmp_path, long, iteration):
    train(tmp_path / "whole", 10)
    with pytest.raises(SystemExit):
        train(tmp_path / "parts", 10, callbacks=[SignalAt(iteration, signal.SIGTERM), RunCheckpoint(2)])
    assert counters_in(last_of(tmp_path / "parts"))["iteration"] == iteration
    train(tmp_path / "parts", 10, "last")
    assert differences(tmp_path / "whole", tmp_path / "parts") == {}


@pytest.mark.slow
@pytest.mark.parametrize("vectorization", ["native", "async"])
@pytest.mark.parametrize("where", ["collect", "step", "evaluate", "save", "measure_logs"])
def test_an_iteration_can_be_left_anywhere(tmp_path, long, where, vectorization, monkeypatch):
    """In the midst of stepping environments, of an update, of an evaluation, of saving, of writing the log."""
    settings = {"env": pl_rl.EnvConfig("CartPole-v1", vectorization), "eval_freq": 8}
    places = {
        "collect": "pl_rl.algorithm.rollout.EpisodeStatistics.add",
        "step": "pl_rl.algorithm.updates.EagerUpdater.step",
        "evaluate": "pl_rl.algorithm.evaluation.to_numpy",
        "save": "pl_rl.checkpoints.saving._rotate",
        "measure_logs": "pl_rl.callbacks.run_directory.measure_logs",
    }

    def every_second():
        return [RunCheckpoint(last_every_n_iterations=2)]

    train(tmp_path / "whole", 10, callbacks=every_second(), **settings)
    calls = []

    moment = {"collect": 16 * 6 + 5, "step": 4 * 6 + 2, "evaluate": 60, "save": 4, "measure_logs": 4}[where]
    original = pkgutil.resolve_name(places[where])

    def with_signal(*args, **kwargs):
        calls.append(1)
        if len(calls) == moment:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    with monkeypatch.context() as place, pytest.raises(SystemExit) as end:
        place.setattr(places[where], with_signal)
        train(tmp_path / "parts", 10, callbacks=every_second(), **settings)
    assert end.value.code == 143 and len(calls) >= moment
    train(tmp_path / "parts", 10, "last", callbacks=every_second(), **settings)
    assert differences(tmp_path / "whole", tmp_path / "parts") == {}


def test_a_signal_before_training_leaves_at_once(tmp_path, capsys):
    class Start(L.Callback):
        def on_fit_start(self, trainer, pl_module):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as end:
        train(tmp_path, 10, callbacks=[Start(), *rarely()])
    assert end.value.code == 143
    assert "Stopped by SIGTERM before training began." in capsys.readouterr().out


def test_a_signal_when_the_run_is_over_still_ends_the_process(tmp_path):
    class End(L.Callback):
        def on_train_end(self, trainer, pl_module):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as end:
        train(tmp_path, 3, callbacks=[End(), *rarely()])
    assert end.value.code == 143
    assert counters_in(last_of(tmp_path))["iteration"] == 3


def test_without_run_checkpoint_signals_are_lightnings(tmp_path):
    before = signal.getsignal(signal.SIGINT)

    class Look(L.Callback):
        def on_train_start(self, trainer, pl_module):
            assert signal.getsignal(signal.SIGINT) is before

    train(tmp_path, 1, callbacks=[Look()])


def test_other_threads_train_without_signals(tmp_path):
    failures = []

    def work():
        try:
            train(tmp_path, 2)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == [] and counters_in(last_of(tmp_path))["iteration"] == 2


@pytest.mark.slow
def test_only_long_iterations_are_copied(tmp_path, monkeypatch):
    copies = []
    monkeypatch.setattr("pl_rl.callbacks.stop_on_signal._copy_of_state", lambda trainer: copies.append(1) or b"")
    train(tmp_path / "short", 6, callbacks=rarely())
    assert copies == []
    monkeypatch.setattr("pl_rl.callbacks.stop_on_signal.LONG_SECONDS", 0.0)
    train(tmp_path / "long", 6, callbacks=rarely())
    assert len(copies) == 6


@pytest.mark.slow
def test_an_iteration_that_a_long_evaluation_may_follow_counts_as_long(tmp_path, monkeypatch):
    copies = []
    monkeypatch.setattr("pl_rl.callbacks.stop_on_signal.LONG_SECONDS", 0.5)
    monkeypatch.setattr(
        "pl_rl.callbacks.stop_on_signal._copy_of_state", lambda trainer: copies.append(trainer.current_epoch) or b""
    )
    play = pl_rl.PPO.play
    monkeypatch.setattr(pl_rl.PPO, "play", lambda model, stream: time.sleep(0.6) or play(model, stream))
    train(tmp_path, 8, callbacks=rarely(), eval_freq=16)
    assert copies == [6]  # the first evaluation, after iteration 4 of epochs 0 to 3, tells how long they take


# --- max_time --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
def test_a_time_limit_ends_a_long_iteration_and_the_model_is_what_was_saved(tmp_path, long, capsys):
    class Slow(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if pl_module.iteration == 3:
                time.sleep(60)

    train(tmp_path / "whole", 6, callbacks=rarely())
    L.seed_everything(0, verbose=False)
    model = pl_rl.PPO(**RUN)
    trainer = pl_rl.Trainer(
        accelerator="cpu", default_root_dir=tmp_path / "parts", max_epochs=6, max_time={"seconds": 3},
        callbacks=[Slow(), *rarely()], enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    started = time.monotonic()
    trainer.fit(model)
    assert time.monotonic() - started < 30
    assert "Stopped by max_time at iteration 3" in capsys.readouterr().out
    saved = torch.load(last_of(tmp_path / "parts"), weights_only=True)
    assert model.iteration == saved["pl_rl"]["counters"]["iteration"] == 3
    assert same_bits(model.state_dict(), saved["state_dict"])
    train(tmp_path / "parts", 6, "last", callbacks=rarely())
    assert differences(tmp_path / "whole", tmp_path / "parts") == {}


def test_a_time_limit_in_another_thread_ends_the_run_after_its_iteration(tmp_path, long):
    class Slow(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            time.sleep(0.4)

    reached, alarms = [], []
    before = signal.signal(signal.SIGALRM, lambda signum, frame: alarms.append(signum))
    try:
        work = {"callbacks": [Timer({"seconds": 1}), Slow(), *rarely()], "total_env_steps": 64 * 20}
        thread = threading.Thread(target=lambda: reached.append(train(tmp_path, 100, **work)[0].iteration))
        thread.start()
        while thread.is_alive():
            thread.join(0.1)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert alarms == [] and 0 < reached[0] < 20
    assert counters_in(last_of(tmp_path))["iteration"] == reached[0]


@pytest.mark.parametrize("limit", [[], [Timer({"hours": 1})]], ids=["none", "an hour"])
def test_the_applications_own_alarm_still_rings(tmp_path, long, limit):
    alarms = []
    before = signal.signal(signal.SIGALRM, lambda signum, frame: alarms.append(signum))
    try:
        signal.setitimer(signal.ITIMER_REAL, 600, 30)
        train(tmp_path, 3, callbacks=[*limit, *rarely()])
        left, interval = signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert alarms == [] and 500 < left < 600 and interval == 30


@pytest.mark.slow
def test_each_process_has_the_whole_time_limit(tmp_path):
    class Slow(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            time.sleep(0.3)

    reached = []
    for ckpt_path in (None, "last"):
        train(tmp_path, 100, ckpt_path, callbacks=[Timer({"seconds": 1}), Slow(), *rarely()])
        reached.append(counters_in(last_of(tmp_path))["iteration"])
    assert 0 < reached[0] < reached[1]


# --- the handler -----------------------------------------------------------------------------------------------------


def test_the_time_limit_of_a_short_iteration_is_left_to_lightning():
    interruption = Interruption()
    with interruption.listening([signal.SIGALRM]):
        interruption.safe_to_raise = False
        os.kill(os.getpid(), signal.SIGALRM)
        interruption.leave()
        interruption.safe_to_raise = True
        with pytest.raises(Interrupted) as end:
            os.kill(os.getpid(), signal.SIGALRM)
    assert end.value.code == 0 and end.value.name == "max_time"


def test_an_event_loops_handlers_are_put_back(tmp_path):
    async def application():
        came = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, came.set)
        train(tmp_path, 2, callbacks=rarely())
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(came.wait(), 10)

    asyncio.run(application())


def test_a_hangup_that_is_ignored_stays_ignored():
    """As nohup asks."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption().listening():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_handler_that_is_not_pythons_is_left_alone(monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda signum: None)
    monkeypatch.setattr(signal, "signal", lambda signum, handler: pytest.fail(f"{signum} is handled"))
    with Interruption().listening():
        pass


def test_a_terminal_that_is_gone_does_not_hide_a_signal(monkeypatch):
    def gone(descriptor, text):
        raise OSError(errno.EIO, "Input/output error")

    interruption = Interruption()
    monkeypatch.setattr("pl_rl.signals.os.write", gone)
    with interruption.listening(), pytest.raises(Interrupted) as end:
        os.kill(os.getpid(), signal.SIGHUP)
    assert end.value.code == 129


class Untimely(torch.nn.Module):
    """Sends this process signals while it is traced."""

    traced = 0  # of the class, as changes of a module are undone
    sequence_length = None

    def __init__(self, *signums):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.signums = signums

    def forward(self, obs):
        output = obs.sum() * self.weight
        for signum in self.signums:
            os.kill(os.getpid(), signum)
        Untimely.traced += 1
        return output, output.detach()


def count(network):
    count_flops(network, torch.ones(2))


def record(network):
    def function(obs, weight):
        return functional_call(network, {"weight": weight}, (obs,))

    trace(function, [torch.ones(2), torch.ones(())])


@pytest.mark.parametrize("work", [count, record])
def test_a_signal_waits_for_the_end_of_a_trace(work):
    """PyTorch aborts the process if a dispatch mode is entered or left while a handler raises, which is seldom."""
    network, traced = Untimely(signal.SIGINT), Untimely.traced
    with pytest.raises(KeyboardInterrupt):
        work(network)
    assert Untimely.traced == traced + 1
    with Interruption().listening(), pytest.raises(Interrupted) as end:
        work(network)
    assert end.value.code == 130 and Untimely.traced == traced + 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_signal_does_not_wait_for_the_end_of_a_trace(monkeypatch):
    died = []
    monkeypatch.setattr("pl_rl.signals._die", died.append)
    with pytest.raises(KeyboardInterrupt):
        count(Untimely(signal.SIGINT, signal.SIGINT))
    assert died == [signal.SIGINT]


# --- whole processes -------------------------------------------------------------------------------------------------

SCRIPT = """
import sys, time
from pl_rl import cli
from pl_rl.algorithm.rollout import RolloutCollector
{slow}
cli.main(sys.argv[1:])
"""
SLOW = """
collect = RolloutCollector.collect
RolloutCollector.collect = lambda self: time.sleep({seconds}) or collect(self)
"""


@pytest.fixture(scope="module")
def start(warm_server):
    """Begins a process of its own in a folder."""
    return partial(begin, warm_server)


def begin(server, folder, *args, slow="", env=None, group=False):
    small = [f"--model.{name}={value}" for name, value in SMALL.items() if name not in ("total_env_steps", "eval_freq")]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1", "--model.eval_freq=8"]
    begin = [*small, "--model.eval_episodes=2", "--model.eval_num_envs=2", "--model.total_env_steps=640"]
    command = [sys.executable, "-c", SCRIPT.format(slow=slow), "fit", *(args or [*quiet, *begin])]
    root = str(Path(__file__).parents[1])
    return server.popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=group,
        env={**os.environ, "PYTHONPATH": root, **(env or {})},
    )  # fmt: skip


def finish(process):
    """The exit status and what was printed."""
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def wait_for_training(folder, seconds):
    """Until the checkpoint of iteration 0 is there and some time has passed."""
    until = time.monotonic() + 120
    while not (folder / "lightning_logs/version_0/checkpoints/last.ckpt").is_file():
        assert time.monotonic() < until
        time.sleep(0.02)
    time.sleep(seconds)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, start):
    """A run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    assert finish(start(folder))[0] == 0
    return run_of(folder)


@pytest.mark.slow
@pytest.mark.parametrize("signum", STATUS)
def test_a_process_in_the_middle_of_a_long_rollout_leaves_within_seconds(tmp_path, whole, signum, start):
    process = start(tmp_path, slow=SLOW.format(seconds=20))
    wait_for_training(tmp_path, 1)
    process.send_signal(signum)
    started = time.monotonic()
    status, out, err = finish(process)
    assert time.monotonic() - started < 10
    assert status == STATUS[signum], err
    assert "go on: python -m pl_rl fit --ckpt_path lightning_logs/version_0/checkpoints/last.ckpt" in out
    assert finish(start(tmp_path, "--ckpt_path=last", "--trainer.enable_progress_bar=false"))[0] == 0
    assert [name for name, text in compare_runs(whole, run_of(tmp_path)).items() if text] == []


SLOW_COMPILER = """#!/bin/sh
if [ "$1" = --version ]; then echo slow 1.0; exit; fi
sleep 600 & echo $! > child.tmp; mv child.tmp child
wait
"""


@pytest.mark.slow
@pytest.mark.parametrize("group", [False, True])
def test_a_signal_while_the_update_is_compiled_ends_the_compiler_too(tmp_path, group, start):
    compiler = tmp_path / "slow-compiler"
    compiler.write_text(SLOW_COMPILER)
    compiler.chmod(0o755)
    env = {"CXX": str(compiler), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    args = ["--model.env.id=CartPole-v1", "--model.compile_update=true", "--trainer.enable_progress_bar=false"]
    process = start(tmp_path, *args, env=env, group=True)
    until = time.monotonic() + 120
    while not (tmp_path / "child").is_file():
        assert time.monotonic() < until and process.poll() is None, finish(process)
        time.sleep(0.02)
    (os.killpg if group else os.kill)(process.pid, signal.SIGINT)
    status, out, err = finish(process)
    assert status == 130, err
    assert "Stopped by SIGINT before training began." in out
    assert not is_running(int((tmp_path / "child").read_text()))
    assert [path.name for path in (tmp_path / "cache" / "pl_rl").iterdir() if path.is_dir()] == []


@pytest.mark.slow
def test_a_second_signal_ends_the_process_at_once_with_the_last_checkpoint_intact(tmp_path, whole, start):
    slow = SLOW.format(seconds=0.4)  # short enough to be finished
    process = start(tmp_path, slow=slow)
    wait_for_training(tmp_path, 1)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == -signal.SIGTERM
    assert finish(start(tmp_path, "--ckpt_path=last", "--trainer.enable_progress_bar=false"))[0] == 0
    assert [name for name, text in compare_runs(whole, run_of(tmp_path)).items() if text] == []


@pytest.fixture(scope="module")
def with_workers():
    """Arguments of a run whose environments have processes of their own."""
    small = [f"--model.{name}={value}" for name, value in SMALL.items() if name not in ("total_env_steps", "env")]
    env = ["--model.env.id=CartPole-v1", "--model.env.vectorization=async"]
    return [*env, *small, "--trainer.enable_progress_bar=false"]


@pytest.fixture(scope="module")
def whole_with_workers(tmp_path_factory, with_workers, start):
    """Such a run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    assert finish(start(folder, *with_workers, "--trainer.max_epochs=20"))[0] == 0
    return run_of(folder)


@pytest.mark.slow
@pytest.mark.parametrize("signum", STATUS)
def test_a_signal_to_worker_processes_too_harms_nothing(tmp_path, with_workers, whole_with_workers, signum, start):
    """As a terminal sends Ctrl-C, and SLURM its signals."""
    process = start(
        tmp_path, *with_workers, "--model.total_env_steps=1000000", slow=SLOW.format(seconds=0.2), group=True
    )
    wait_for_training(tmp_path, 1.5)
    os.killpg(process.pid, signum)
    status, _, err = finish(process)
    assert status == STATUS[signum], err
    assert "Traceback" not in err
    assert 0 < counters_in(last_of(tmp_path))["iteration"] < 20
    resumed = start(tmp_path, "--ckpt_path=last", "--trainer.max_epochs=20")
    assert finish(resumed)[0] == 0
    different = {name for name, text in compare_runs(whole_with_workers, run_of(tmp_path)).items() if text}
    assert different == set()


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("which", ["stdout", "both"])
def test_a_signal_after_the_output_is_gone_saves_and_has_its_status(tmp_path, signum, which, start):
    """As Ctrl-C behind ``| tee``, which it ends first, and as a terminal that is closed."""
    process = start(tmp_path, slow=SLOW.format(seconds=20))
    wait_for_training(tmp_path, 1)
    process.stdout.close()
    if which == "both":
        process.stderr.close()
    process.send_signal(signum)
    assert process.wait(60) == STATUS[signum]
    if which == "stdout":
        assert "Traceback" not in (err := process.stderr.read()) and "Exception ignored" not in err
        process.stderr.close()
    assert counters_in(last_of(tmp_path))["iteration"] == 0


@pytest.mark.slow
def test_training_goes_on_when_nobody_reads_its_output_any_more(tmp_path, start):
    """As behind ``| head -1``, and where it was closed from the beginning."""
    process = start(tmp_path)
    process.stdout.close()
    process.stderr.close()
    assert process.wait(120) == 0
    assert counters_in(last_of(tmp_path))["iteration"] == 10
