"""The closing words: what was reached, and commands that really run."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

import pl_rl
from pl_rl import cli
from pl_rl.algorithm.evaluation import format_return
from pl_rl.callbacks import RunCheckpoint, RunSummary
from tests.support import MemoryLogger, fit, small_ppo

RUN = ["--model.env", "CartPole-v1", "--model.num_envs", "4", "--model.num_steps", "16", "--model.minibatch_size", "32"]


def summary_of(capsys, monkeypatch, **settings):
    monkeypatch.setenv("COLUMNS", "160")
    logger = MemoryLogger()
    fit(small_ppo(**settings), logger=logger, callbacks=[RunSummary(), RunCheckpoint()], enable_checkpointing=True)
    return capsys.readouterr().out, logger


def test_the_table_says_what_was_reached_and_where_it_is(capsys, monkeypatch):
    out, logger = summary_of(capsys, monkeypatch, eval_freq=16)
    returns = logger.values("evaluator_iter/return_mean")
    assert "total_env_steps=512 reached" in out
    assert "512 env steps, 32 train iterations" in out
    assert f"best {format_return(max(returns))}, latest {format_return(returns[-1])}" in out
    assert "checkpoints/last.ckpt" in out
    assert "checkpoints/best.ckpt" in out


def test_a_stop_value_is_the_reason_given(capsys, monkeypatch):
    out, _ = summary_of(capsys, monkeypatch, eval_freq=4, stop_value=1.0)
    assert "reached stop_value=1" in out


def test_without_evaluation_the_last_checkpoint_is_watched(capsys, monkeypatch):
    out, _ = summary_of(capsys, monkeypatch, eval_freq=0)
    assert "best" not in out
    assert re.search(r"watch: .* --ckpt_path \S*last\.ckpt", out)


def test_without_checkpoints_there_are_no_commands(capsys):
    fit(small_ppo(), callbacks=[RunSummary()])
    out = capsys.readouterr().out
    assert "python -m pl_rl" not in out
    assert "512 env steps" in out


def test_brackets_in_a_folders_name_are_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "160")
    cli.main(
        [
            "fit",
            *RUN,
            "--model.eval_freq",
            "0",
            "--model.total_env_steps",
            "64",
            "--trainer.default_root_dir",
            "a[bold]b",
        ]
    )
    out = capsys.readouterr().out
    assert re.search(r"last checkpoint\W+a\[bold\]b/lightning_logs/version_0/checkpoints/last.ckpt", out)
    for command in commands_of(out).values():
        assert command[2] == "a[bold]b/lightning_logs/version_0/checkpoints/last.ckpt"


def commands_of(out):
    """By purpose, the arguments after ``python -m pl_rl``."""
    found = dict(re.findall(r"^([a-z ]+): python -m pl_rl (.*)$", out, re.MULTILINE))
    return {purpose: shlex.split(command) for purpose, command in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "ending", [["--model.total_env_steps", "128"], ["--model.stop_value", "1"], ["--trainer.max_epochs", "1"]]
)
def test_the_commands_printed_do_what_they_say(ending, capsys, tmp_path):
    cli.main(["fit", *RUN, "--model.eval_freq", "4", "--model.eval_episodes", "1", *ending])
    commands = commands_of(capsys.readouterr().out)
    assert commands["go on"][0] == "fit"
    # Going on trains further; a few iterations will do.
    cli.main([*commands["go on"], "--trainer.max_epochs", "3"])
    trained = re.search(r"trained\W+([\d,]+) env steps", capsys.readouterr().out)
    assert int(trained[1].replace(",", "")) == 3 * 64
    cli.main(commands["watch"])
    assert len(list((tmp_path / "videos").glob("*.mp4"))) == 1


ROOT = ["--trainer.default_root_dir", "else where"]
SHORT = [*RUN, "--model.eval_freq", "4", "--model.eval_episodes", "1", "--model.total_env_steps", "128"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "place",
    [
        ROOT,
        [
            "--trainer.logger",
            "lightning.pytorch.loggers.TensorBoardLogger",
            "--trainer.logger.save_dir",
            "else where",
            "--trainer.logger.name",
            "lightning_logs",
        ],
    ],
    ids=["root", "logger"],
)
def test_a_run_elsewhere_goes_on_with_its_settings(place, capsys, tmp_path):
    cli.main(["fit", *SHORT, *place, "--checkpoint.last_every_n_iterations", "7"])
    commands = commands_of(capsys.readouterr().out)
    cli.main([*commands["go on"], "--trainer.max_epochs", "3"])
    assert "is not used" not in capsys.readouterr().out
    (config,) = Path("else where/lightning_logs/version_0").glob("config_resume*.yaml")
    assert yaml.safe_load(config.read_text())["checkpoint"]["last_every_n_iterations"] == 7
    assert all(path.resolve() == config.parent.resolve() for path in Path().glob("lightning_logs/*"))
    cli.main(commands["watch"])
    assert "is not used" not in capsys.readouterr().out
    assert len(list((tmp_path / "videos").glob("*.mp4"))) == 1


@pytest.mark.slow
def test_settings_that_somebody_else_wrote_are_not_in_the_commands(capsys):
    cli.main(["fit", *SHORT, *ROOT])
    assert "--config" in capsys.readouterr().out
    path = "else where/lightning_logs/version_0/checkpoints/last.ckpt"
    settings = {"env": "CartPole-v1", "num_envs": 4, "num_steps": 16, "minibatch_size": 32}
    trainer = pl_rl.Trainer(accelerator="cpu", callbacks=[RunSummary(), RunCheckpoint()], enable_progress_bar=False)
    trainer.fit(pl_rl.PPO(**settings, total_env_steps=256), ckpt_path=path)
    out = capsys.readouterr().out
    assert "go on: python -m pl_rl fit --ckpt_path" in out and "--config" not in out
