"""Environments that fail: one sentence with the environment, the step and the value; nothing hangs, nothing is left."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import tests.faulty_environments as faulty
from pl_rl import EnvConfig, RunFailure, UsageError
from pl_rl.algorithm import evaluation as evaluation_module
from pl_rl.callbacks import RunCheckpoint
from pl_rl.cli import main
from pl_rl.envs import make_vector_env
from pl_rl.errors import Interrupted
from tests.support import counters_in, fit, is_running, same_bits, small_ppo

LAST = Path("lightning_logs/version_0/checkpoints/last.ckpt")

ANYWHERE = {
    "raises": r"raised ZeroDivisionError: the pole is infinitely long \(given the action [01]\)",
    "nan reward": "gave the reward nan",
    "infinite observation": "gave an observation whose number 1 of 3 is inf",
    "wrong shape": r"gave an observation of shape \(1,\) and type float32, where its space has \(3,\) and float32",
    "wrong type": r"gave an observation of shape \(3,\) and type complex64, where its space has \(3,\) and float32",
    "raises in a reset": r"raised RuntimeError: no way back \(in the reset after an episode\)",
    "leaves": r"ended the process by sys.exit\(0\) \(given the action [01]\)",
    "leaves in words": r"ended the process by sys.exit\('the window was closed'\) \(given the action [01]\)",
    "cancelled": r"raised GeneratorExit: cancelled \(given the action [01]\)",
    "no reward": r"gave the reward None, where a number is needed \(given the action [01]\)",
    "two rewards": r"gave a reward of shape \(2,\), where a number is needed \(given the action [01]\)",
}
IN_WORKERS = {
    "killed": r"lost its worker process \d+, which was killed by SIGKILL \(has memory run out\?\)",
    "exits": r"lost its worker process \d+, which ended with status 3",
    "hangs": r"did not come to the end of a step in 1 s; if it is only slow, raise env.timeout",
}


def model(fault, vectorization, **settings):
    kwargs = {"fault": fault, "at": 23}
    return small_ppo(env=EnvConfig("PlRlTest/Faulty-v0", vectorization, kwargs, timeout=0.5), **settings)


def no_child_is_left():
    return not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("vectorization", "fault", "sentence"),
    [(v, fault, sentence) for v in ("sync", "async") for fault, sentence in ANYWHERE.items()]
    + [("async", fault, sentence) for fault, sentence in IN_WORKERS.items()],
)
def test_a_failing_environment_ends_the_run_before_anything_is_learnt_from_it(vectorization, fault, sentence, tmp_path):
    """In the second of the iterations, which have 16 steps each."""
    agent = model(fault, vectorization)
    weights = []
    agent.on_train_epoch_end = lambda: weights.append({k: v.clone() for k, v in agent.state_dict().items()})
    began = time.monotonic()
    with pytest.raises(RunFailure, match=sentence) as caught:
        fit(
            agent,
            callbacks=[RunCheckpoint(last_every_n_iterations=1)],
            default_root_dir=tmp_path,
            enable_checkpointing=True,
        )
    assert time.monotonic() - began < 60
    assert re.match(r"environment [0-3] (gave|raised|lost|did|ended) ", str(caught.value))
    assert ", at its step 23 (iteration 2); the last good checkpoint is " in str(caught.value)
    last = tmp_path / LAST
    assert str(LAST) in str(caught.value)
    assert counters_in(last)["iteration"] == 1
    assert len(weights) == 1 and same_bits(weights[0], agent.state_dict())
    assert no_child_is_left()
    notes = "".join(getattr(caught.value, "__notes__", []))
    assert ("faulty_environments.py" in notes) == fault.startswith(("raises", "cancelled"))


@pytest.mark.slow
def test_the_index_is_that_of_the_environment():
    for vectorization in ("sync", "async"):
        for seed in (4, 5):
            env = make_vector_env(EnvConfig("PlRlTest/Faulty-v0", vectorization, {"fault": "raises", "at": 1}), 4)
            env.reset(seed=seed)
            with pytest.raises(RunFailure, match=f"environment {1 if seed == 4 else 0} raised"):
                env.step(np.zeros(4, np.int64))
            env.close()


@pytest.mark.parametrize("fault", ["raises", "nan reward", "infinite observation", "leaves"])
def test_a_failing_evaluation_says_that_it_was_one(fault):
    agent = small_ppo(env=EnvConfig("PlRlTest/Faulty-v0", kwargs={"fault": fault}), eval_freq=8)
    with pytest.raises(
        RunFailure, match=rf"environment \d (raised|gave|ended) .*, at step {faulty.FAULT_AT} of an evaluation"
    ):
        fit(agent)


def test_an_evaluation_of_endless_episodes_ends(monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(evaluation_module, "LONGEST_EPISODE", 50)
    agent = small_ppo(env=EnvConfig("PlRlTest/Endless-v0"), eval_freq=1000, eval_episodes=6, eval_num_envs=2)
    trainer = fit(agent)
    (episodes,) = trainer.predict(agent)
    assert episodes.lengths == [50, 50]
    sentence = (
        "cut 2 episode(s) that had not ended after 50 steps, the first of environment 0 at a return of 50.0; give"
    )
    assert sentence in caplog.text


def test_an_episode_without_an_end_is_told_once(monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr("pl_rl.agent.LONGEST_EPISODE", 50)
    fit(small_ppo(env=EnvConfig("PlRlTest/Endless-v0"), total_env_steps=4 * 16 * 8))
    told = [line for line in caplog.messages if "not ended its episode" in line]
    assert len(told) == 1
    sentence = "Environment 0 has not ended its episode after 64 steps (iteration 4), at a return of 64.0: "
    assert told[0].startswith(sentence) and told[0].endswith("max_episode_steps\": N}'.")


@pytest.mark.slow
def test_the_command_line_says_it_in_its_last_line_after_the_traceback(capsys):
    run = [
        *("--model.env.id", "tests.faulty_environments:PlRlTest/Faulty-v0", "--model.env.vectorization", "async"),
        *("--model.env.kwargs", '{"fault": "raises", "at": 23}', "--model.num_envs", "4", "--model.num_steps", "16"),
        *("--model.minibatch_size", "32", "--model.eval_freq", "0", "--trainer.enable_progress_bar", "false"),
    ]
    with pytest.raises(SystemExit) as end:
        main(["fit", *run])
    *before, last = capsys.readouterr().err.strip().splitlines()
    assert end.value.code == 1
    assert re.match(
        r"error: environment \d raised ZeroDivisionError: .*, at its step 23 \(iteration 2\); the last good", last
    )
    assert any("tests/faulty_environments.py" in line for line in before)
    assert no_child_is_left()


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Interrupted(signal.SIGTERM)])
@pytest.mark.parametrize("doing", ["reset", "step", "close", "replay"])
def test_what_a_signal_raises_while_an_environment_is_at_work_ends_the_run(doing, stop, monkeypatch):
    env = make_vector_env(EnvConfig("PlRlTest/Endless-v0", "sync"), 2)
    env.reset(seed=0)
    env.step(np.zeros(2, np.int64))

    def interrupted(*args, **kwargs):
        raise stop

    with monkeypatch.context() as patch, pytest.raises(type(stop)) as caught:
        patch.setattr(faulty.Endless, "step" if doing == "replay" else doing, interrupted, raising=False)
        match doing:
            case "replay":
                env.set_attr("replay", list(env.get_attr("replay")))
            case "step":
                env.step(np.zeros(2, np.int64))
            case _:
                getattr(env, doing)()
    assert caught.value is stop


def test_an_environment_that_ends_the_process_while_it_is_made_is_refused():
    with pytest.raises(UsageError, match=r"Unmakeable-v0' .* cannot be made: it ended the process by sys.exit\('no di"):
        make_vector_env(EnvConfig("PlRlTest/Unmakeable-v0"), 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "sentence"),
    [("RuntimeError", "raised RuntimeError: the simulator is gone"), ("exit", r"ended the process by sys.exit\(0\)")],
)
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_an_environment_that_cannot_be_closed_ends_a_run_that_has_saved_all(vectorization, error, sentence, tmp_path):
    agent = small_ppo(env=EnvConfig("PlRlTest/Unclosable-v0", vectorization, {"error": error}))
    saving = {"callbacks": [RunCheckpoint()], "default_root_dir": tmp_path, "enable_checkpointing": True}
    with pytest.raises(RunFailure, match=rf"^environment 0 {sentence} \(while it was closed\)"):
        fit(agent, **saving)
    assert counters_in(tmp_path / LAST)["iteration"] == 8
    assert no_child_is_left()


def test_an_evaluation_names_an_environment_that_cannot_be_closed():
    agent = small_ppo(env=EnvConfig("PlRlTest/Unclosable-v0"), eval_freq=8)
    with pytest.raises(
        RunFailure, match=r"^environment 0 raised RuntimeError: the simulator is gone \(while it was clo"
    ):
        fit(agent)


def test_an_environment_that_cannot_be_closed_hides_no_earlier_error():
    config = EnvConfig("PlRlTest/Unclosable-v0", kwargs={"fault": "raises"})
    network = small_ppo(env=config).network
    with pytest.raises(RunFailure, match="raised ZeroDivisionError: the pole is infinitely long") as caught:
        evaluation_module.evaluate(network, config, 2, 2, seed=0)
    assert "Afterwards environment 0 raised RuntimeError: the simulator is gone (while it was closed)." in "\n".join(
        caught.value.__notes__
    )


def test_an_environment_that_can_never_be_closed_is_named_before_anything_is_begun(monkeypatch):
    monkeypatch.setattr(faulty.Endless, "close", lambda env: 1 / 0, raising=False)
    with pytest.raises(
        RunFailure, match=r"environment 'PlRlTest/Endless-v0' raised ZeroDivisionError: .* it was closed"
    ):
        small_ppo(env=EnvConfig("PlRlTest/Endless-v0"))


def test_a_worker_that_is_killed_from_outside_is_named():
    env = make_vector_env(EnvConfig("PlRlTest/Endless-v0", "async"), 2)
    env.reset(seed=0)
    victim = multiprocessing.active_children()[0]
    os.kill(victim.pid, signal.SIGKILL)
    with pytest.raises(RunFailure, match=rf"lost its worker process {victim.pid}, which was killed by SIGKILL"):
        for _ in range(3):
            env.step(np.zeros(2, np.int64))
    env.close()
    assert no_child_is_left()


@pytest.mark.slow
@pytest.mark.parametrize("state", ["idle", "stuck"])
def test_no_worker_outlives_a_parent_that_was_killed(state, warm_server):
    code = (
        "import numpy as np, multiprocessing, time, tests.faulty_environments\n"
        "from pl_rl import EnvConfig\n"
        "from pl_rl.envs import make_vector_env\n"
        "config = EnvConfig('PlRlTest/Faulty-v0', 'async', {'fault': 'hangs', 'at': 1})\n"
        "env = make_vector_env(config, 2)\n"
        "env.reset(seed=0)\n"
        "print(*(child.pid for child in multiprocessing.active_children()), flush=True)\n"
        + ("env.step(np.zeros(2, np.int64))" if state == "stuck" else "time.sleep(600)")
    )
    root = Path(faulty.__file__).parents[1]
    parent = warm_server.popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert pids
    time.sleep(0.5)
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 10
    while any(is_running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_running(pid) for pid in pids)


def test_workers_leave_signals_to_their_parent():
    env = make_vector_env(EnvConfig("PlRlTest/Endless-v0", "async"), 2)
    env.reset(seed=0)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGTERM)
        os.kill(child.pid, signal.SIGINT)
    for _ in range(3):
        env.step(np.zeros(2, np.int64))
    env.close()
    assert no_child_is_left()
