"""``verify`` proves what holds, and finds what does not."""

import json
import math
import sys
from itertools import product

import pytest
import torch

import tests.uncertain_environments as uncertain
from pl_rl.cli import main
from pl_rl.tools import verification
from pl_rl.tools.verification import first_difference

SMALL_RUN = [
    *("--model.num_envs", "4", "--model.num_steps", "32", "--model.minibatch_size", "64"),
    *("--model.update_epochs", "2", "--model.eval_freq", "8", "--model.eval_episodes", "2"),
]


def verify(*args):
    """Exit status of the verb."""
    try:
        main(["verify", *args])
    except SystemExit as end:
        return end.code
    return 0


def test_differences_are_found_at_zero_tolerance():
    one = {"a": [1, {"b": torch.ones(2)}], "c": math.nan}
    assert first_difference(one, {"a": [1, {"b": torch.ones(2)}], "c": math.nan}) is None
    assert first_difference(one, {"a": [1, {"b": torch.ones(2) + 1e-7}], "c": math.nan}) == "/a/1/b: tensors differ"
    assert first_difference(one, {"a": [1], "c": math.nan}) == "/a/1 is in one only"
    assert first_difference(one, {**one, "d": 0}) == "/d is in one only"
    assert first_difference({"x": 1}, {"x": 2}) == "/x: 1 and 2"
    assert first_difference(torch.ones(1), torch.ones(1, dtype=torch.float64)) == ": tensors differ"


@pytest.mark.parametrize(("iterations", "kills", "latest"), [(12, 10, 10), (12, 11, 11), (4, 1, 2)])
def test_kills_come_before_the_last_iteration_if_there_are_others(iterations, kills, latest, monkeypatch):
    """A kill that is asked for after the last but one may come when the run is over."""

    def run(command, remarks, resume, kill_after):
        return iterations if kill_after is None else kill_after

    monkeypatch.setattr(verification, "_run", run)
    monkeypatch.setattr(verification, "compare_runs", lambda one, other: {})
    drawn = [verification.verify([], iterations, kills).killed_after for _ in range(50)]
    assert max(max(moments) for moments in drawn) == latest
    assert all(len(set(moments)) == kills and min(moments) >= 1 for moments in drawn)


@pytest.mark.slow
def test_a_killed_run_is_proved_to_go_on_bit_for_bit(capsys):
    assert verify("--iterations", "8", "--kills", "1", "--config", "cartpole.yaml") == 0
    out = capsys.readouterr().out
    components = ["weights", "optimizer", "counters", "random generators", "environments", "episodes", "callbacks"]
    for component in [*components, "log"]:
        assert any(component in line and "identical" in line for line in out.splitlines())
    assert "the run went on bit for bit" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    "run",
    [
        ["--config", "cartpole.yaml"],
        ["--config", "cartpole.yaml", "--model.env.vectorization", "sync"],
        ["--config", "cartpole.yaml", "--model.env.vectorization", "async"],
        ["--config", "acrobot.yaml"],
        ["--config", "pendulum.yaml"],
        ["--config", "pendulum.yaml", "--model.norm_obs", "true", "--model.norm_reward", "true"],
        ["--config", "halfcheetah.yaml"],
        ["--config", "hopper.yaml"],
        ["--config", "cartpole-fast.yaml"],
        ["--config", "mountaincar-continuous.yaml"],
        ["--model.env", "tests.uncertain_environments:PlRlTest/NoisyWalk-v0", *SMALL_RUN],
    ],
    ids=lambda run: "-".join(run[1:4:2]),
)
def test_runs_killed_three_times_at_random_moments_go_on_bit_for_bit(run, warm, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", _root())
    few = ["--model.eval_episodes", "2", "--model.eval_num_envs", "2"]
    # Iterations of the small environment take a few milliseconds, in which a process must be hit.
    assert verify("--iterations", "100" if "--config" not in run else "8", "--kills", "3", *run, *few) == 0


SHORT = [
    *("--model.num_envs", "3", "--model.num_steps", "64", "--model.minibatch_size", "64", "--model.update_epochs", "1"),
    *("--model.compile_update", "false", "--model.eval_episodes", "1", "--model.eval_num_envs", "1"),
]

WRAPPERS = {"AtariPreprocessing": {"screen_size": 36}, "FrameStackObservation": {"stack_size": 4}}
# With the smallest that the network takes, most of the time is the emulator's. Several games end in a run.
SMALL_IMAGES = [
    "--model.env.wrappers",
    json.dumps([{"class_path": f"gymnasium.wrappers.{name}", "init_args": args} for name, args in WRAPPERS.items()]),
    *("--model.env.kwargs", '{"frameskip": 1, "max_num_frames_per_episode": 1000}', "--model.num_envs", "2"),
]


@pytest.mark.slow
@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize(
    ("config", "settings"),
    [
        ("lunarlander", ["--model.eval_freq", "30"]),
        # Steps enough for several anchors, at each of which there is a new object.
        ("bipedalwalker", ["--model.eval_freq", "0", "--model.env.kwargs", '{"max_episode_steps": 80}']),
        ("minigrid", ["--model.eval_freq", "30"]),
        ("breakout", ["--model.eval_freq", "10", *SMALL_IMAGES]),
        ("pong", ["--model.eval_freq", "0", *SMALL_IMAGES]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_simulators_go_on_bit_for_bit(config, settings, vectorization, warm):
    run = ["--config", f"{config}.yaml", *SHORT, *settings, "--model.env.vectorization", vectorization]
    assert verify("--iterations", "8" if SMALL_IMAGES[0] in run else "12", "--kills", "2", *run) == 0


@pytest.mark.slow
@pytest.mark.parametrize("game", ["pong", "breakout"])
def test_native_atari_goes_on_bit_for_bit(game, warm):
    """Over anchors, lives and games, evaluations included."""
    settings = ["--model.eval_freq", "10", "--model.env.vectorization", "native"]
    run = ["--config", f"{game}.yaml", *SHORT, *SMALL_IMAGES, *settings]
    assert verify("--iterations", "12", "--kills", "3", *run) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "vectorization"),
    [
        *product(["HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5"], ["sync", "async", "native"]),
        ("Swimmer-v5", "native"),
        ("InvertedPendulum-v5", "native"),
    ],
)
def test_mujoco_goes_on_bit_for_bit(env, vectorization, warm):
    run = ["--model.env.id", env, *SHORT, "--model.eval_freq", "0", "--model.env.vectorization", vectorization]
    assert verify("--iterations", "12", "--kills", "1", *run) == 0


@pytest.mark.slow
@pytest.mark.parametrize("env", ["GloballyRandom", "Hoarder"])
def test_environments_that_cannot_be_restored_fail_the_proof_by_name(env, warm, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", _root())
    run = ["--model.env", f"tests.uncertain_environments:PlRlTest/{env}-v0", *SMALL_RUN]
    assert verify("--iterations", "100", "--kills", "3", *run) == 1
    captured = capsys.readouterr()
    assert "not exact: environments: restarted" in captured.out
    assert "environments" in captured.err and captured.err.startswith("error: killed after iterations")


@pytest.mark.slow
def test_a_run_that_fit_would_refuse_is_refused_in_its_words(capsys):
    assert verify("--config", "cartpole.yaml", "--model.minibatch_size", "100") == 2
    assert "num_envs*num_steps=256 is not divisible by minibatch_size=100" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_is_too_short_to_be_killed_is_no_proof(capsys, warm, monkeypatch):
    monkeypatch.setattr("random.sample", lambda moments, kills: [max(moments)])  # never after the only iteration
    run = ["--config", "cartpole.yaml", "--model.total_env_steps", "256"]
    assert verify("--iterations", "50", "--kills", "1", *run) == 2
    assert "the run ended by itself before it could be killed" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_whose_processes_are_killed_goes_on_with_others_bit_for_bit(capsys, warm):
    run = ["--config", "cartpole.yaml", "--model.shards", "4", "--model.compile_update", "false"]
    assert verify("--devices", "1,2,4", "--iterations", "12", "--kills", "2", *run) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("devices=2", "devices=4", "killed and", "the run went on bit for bit"))


@pytest.mark.slow
def test_processes_that_shards_are_missing_for_are_refused(capsys):
    assert verify("--devices", "1,2", "--config", "cartpole.yaml") == 2
    assert "and this one has one; use --model.shards 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    "args",
    [["--kills", "0"], ["--iterations", "3", "--kills", "3"], ["--devices", "2,x"], ["--devices", "0"], []],
)
def test_impossible_requests_are_refused(args, capsys):
    assert verify(*args, *(["--config", "cartpole.yaml"] if args else [])) == 2
    assert capsys.readouterr().err.startswith("error: ")


def _root():
    return str(next(path for path in sys.path if path and uncertain.__file__.startswith(path)))
