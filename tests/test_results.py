"""The command behind the tables of results: a study of seeds that can be stopped."""

import sys

import numpy as np
import pytest

from tests.benchmarks import atari_curves, paired
from tests.benchmarks.results import Result, row, seeds_of, spans


def test_seeds_are_named_singly_and_in_spans():
    assert seeds_of("1,2,11-13,2") == [1, 2, 11, 12, 13]
    assert spans([1, 2, 11, 12, 13, 20]) == ["1 to 2", "11 to 13", "20"]


def test_a_row_has_the_middle_half_and_the_worst_seed():
    returns = [-100.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 700.0]
    results = [Result(seed, mean, mean, 1000 + seed, 2.0) for seed, mean in enumerate(returns)]
    cells = row("configs/pendulum.yaml", results).split(" | ")
    assert cells[:2] == ["| `pendulum`", "0 to 7"]
    assert cells[2].startswith("3.5 (")  # of 2, 3, 4, 5
    assert cells[3:] == ["-100.0 (seed 0)", "1,004 (1,000 to 1,007)", "2 |"]


@pytest.mark.parametrize(
    ("kwargs", "said"), [("{}", "sticky actions"), ("{repeat_action_probability: 0}", "not sticky")]
)
def test_curves_of_atari_are_named_by_their_runs(kwargs, said, tmp_path, monkeypatch, capsys):
    (tmp_path / "hparams.yaml").write_text(f"env: {{id: ALE/Pong-v5, kwargs: {kwargs}}}")
    (tmp_path / "evaluations.csv").write_text(
        "segment,train_iter,env_steps,return_mean,return_min,return_max\n0,16,500000,-18.0,-21,-16\n"
    )
    picture = tmp_path / "atari.png"
    monkeypatch.setattr(sys, "argv", ["atari_curves", str(picture), str(tmp_path)])
    atari_curves.main()
    printed = capsys.readouterr().out
    assert said in printed and "-18.0 at 500,000 env steps" in printed and "'CleanRL': -19.5" in printed
    assert picture.stat().st_size > 10_000


@pytest.mark.slow
def test_a_study_that_is_asked_for_again_trains_what_is_missing(tmp_path, warm_server):
    def study(seeds):
        arguments = ["--config", "cartpole-fast.yaml", "--folder", str(tmp_path / "study"), "--seeds", seeds]
        quick = ["--model.total_env_steps", "2048", "--model.compile_update", "false"]
        command = [sys.executable, "-m", "tests.benchmarks.results", *arguments, *quick]
        done = warm_server.run(command, family=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = study("3")
    saved = (tmp_path / "study/seed_3/result.json").stat()
    both = study("3-4")
    assert (tmp_path / "study/seed_3/result.json").stat() == saved
    assert first.splitlines()[0] in both and "seed 4:" in both and "| 3 to 4 |" in both
    assert (tmp_path / "study/evaluator_step.png").stat().st_size > 1000


def test_a_pair_has_the_difference_of_its_runs():
    returns = np.array([[10.0, 8.0], [20.0, 21.0], [30.0, 28.0]])
    assert (
        paired.row("configs/pendulum.yaml", 2048, returns) == "| `pendulum` | 2,048 | 3 | 20.0 | 19.0 | +1.0 +- 1.0 |"
    )


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_runs_of_a_pair_are_the_configs_own_and_repeat(compiled, capsys):
    first, again, other = (paired.train("cartpole.yaml", 2048, (seed, compiled)) for seed in (3, 3, 4))
    assert first == again != other and capsys.readouterr() == ("", "")
    assert paired.model_of("cartpole.yaml", {"gamma": 0.5}).hparams["gamma"] == 0.5
