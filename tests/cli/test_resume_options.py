"""Continuing, extending and branching from the command line."""

import errno
import os
import time
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml

import pl_rl
from pl_rl import cli
from pl_rl.callbacks import RunCheckpoint
from pl_rl.cli.parsing import Parser
from pl_rl.tools.verification import compare_runs
from tests.cli.test_cli import SMALL, files_in
from tests.support import SMALL as SMALL_MODEL
from tests.support import counters_in, event_scalars

RUN = Path("lightning_logs/version_0")
LAST = RUN / "checkpoints" / "last.ckpt"


def fit(*args):
    cli.main(["fit", *map(str, args), "--trainer.enable_progress_bar", "false", "--trainer.log_every_n_steps", "1"])


@pytest.fixture
def config():
    Path("small.yaml").write_text(yaml.safe_dump({**SMALL, "model": {**SMALL["model"], "total_env_steps": 6400}}))
    return "small.yaml"


def lines_of(capsys, word):
    return [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip().startswith(word)]


@pytest.mark.slow
@pytest.mark.parametrize("ckpt_path", ["last", "last.ckpt", "lightning_logs/version_0/checkpoints/last.ckpt"])
def test_a_run_is_continued_bit_for_bit_with_its_own_configuration(config, ckpt_path, tmp_path, monkeypatch):
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    fit("--config", tmp_path / config, "--trainer.max_epochs", 6)
    monkeypatch.chdir(tmp_path)
    fit("--config", config, "--trainer.max_epochs", 3)
    Path(config).unlink()
    fit("--ckpt_path", ckpt_path, "--trainer.max_epochs", 6)
    differences = compare_runs(tmp_path / "whole" / RUN, RUN)
    assert [name for name, difference in differences.items() if difference is not None] == []
    assert sorted(path.name for path in Path("lightning_logs").iterdir()) == ["version_0"]


@pytest.mark.slow
def test_the_run_that_is_continued_is_named(config, capsys):
    fit("--config", config, "--trainer.max_epochs", 2)
    capsys.readouterr()
    fit("--ckpt_path", "last", "--trainer.max_epochs", 3)
    out = capsys.readouterr().out
    assert f"checkpoint: {LAST}" in out and f"Continued in {RUN}." in out


@pytest.mark.slow
def test_a_file_of_that_name_in_the_working_directory_comes_first(config, capsys):
    fit("--config", config, "--trainer.max_epochs", 2)
    Path("last.ckpt").write_bytes((RUN / "checkpoints" / "best.ckpt").read_bytes())
    fit("--config", config, "--trainer.max_epochs", 1)
    capsys.readouterr()
    fit("--ckpt_path", "last.ckpt", "--config", config, "--trainer.max_epochs", 4)
    assert lines_of(capsys, "checkpoint:") == ["checkpoint: last.ckpt"]


@pytest.mark.slow
def test_runs_are_looked_for_below_the_root_directory_that_is_given(config, tmp_path):
    fit("--config", config, "--trainer.max_epochs", 2, "--trainer.default_root_dir", tmp_path / "a")
    fit("--config", config, "--trainer.max_epochs", 3, "--trainer.default_root_dir", tmp_path / "a", "--ckpt_path=last")
    assert counters_in(tmp_path / "a" / LAST)["iteration"] == 3
    assert not Path("lightning_logs").exists()


@pytest.mark.slow
def test_command_line_beats_config_beats_checkpoint(config, capsys):
    fit("--config", config, "--trainer.max_epochs", 2, "--model.clip_coef", 0.3, "--model.learning_rate", 0.01)
    Path("other.yaml").write_text("model:\n  clip_coef: 0.25\n  learning_rate: 0.02\n")
    capsys.readouterr()
    args = ["--trainer.max_epochs", 3, "--model.learning_rate", 0.03]
    fit("--config", "other.yaml", "--ckpt_path", "last", *args)
    # What other.yaml does not say, such as the environment, is the checkpoint's.
    assert lines_of(capsys, "changed:") == [
        "changed: clip_coef: 0.3 -> 0.25",
        "changed: learning_rate: 0.01 -> 0.03",
    ]
    assert dict(event_scalars(RUN)["schedule/learning_rate"])[192] == pytest.approx(0.03)


@pytest.mark.slow
def test_a_change_stays_in_force_in_later_resumes(config, capsys):
    fit("--config", config, "--trainer.max_epochs", 2)
    fit("--ckpt_path", "last", "--trainer.max_epochs", 3, "--model.clip_coef", 0.1)
    capsys.readouterr()
    fit("--ckpt_path", "last", "--trainer.max_epochs", 4)
    assert lines_of(capsys, "changed:") == []
    assert counters_in(LAST)["iteration"] == 4


@pytest.mark.slow
def test_the_first_configuration_is_kept_and_only_others_are_added(config):
    fit("--config", config, "--trainer.max_epochs", 4)
    first = (RUN / "config.yaml").read_text()
    for _ in range(2):
        fit("--ckpt_path", "last")
    assert [name for name in files_in(RUN) if "config" in name] == ["config.yaml"]
    fit("--ckpt_path", "last", "--trainer.max_epochs", 5)
    assert [name for name in files_in(RUN) if "config" in name] == ["config.yaml", "config_resume1.yaml"]
    assert (RUN / "config.yaml").read_text() == first


@pytest.mark.slow
def test_a_configuration_is_written_whole_or_not_at_all(config, monkeypatch):
    fit("--config", config, "--trainer.max_epochs", 2)
    save = Parser.save

    def disk_is_full(parser, settings, path, **kwargs):
        save(parser, settings, path, **kwargs)
        Path(path).write_text(Path(path).read_text()[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Parser, "save", disk_is_full)
        fit("--ckpt_path", "last", "--trainer.max_epochs", 3)
    fit("--ckpt_path", "last", "--trainer.max_epochs", 4)
    assert counters_in(LAST)["iteration"] == 4
    assert [name for name in files_in(RUN) if "config" in name] == ["config.yaml", "config_resume1.yaml"]


@pytest.mark.slow
def test_a_run_of_a_script_is_continued_with_what_its_checkpoint_knows():
    L.seed_everything(0, verbose=False)
    trainer = pl_rl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[RunCheckpoint()],
    )
    trainer.fit(pl_rl.PPO(**{**SMALL_MODEL, "gamma": 0.5}))
    fit("--ckpt_path", "last", "--trainer.max_epochs", 4)
    checkpoint = torch.load(LAST, weights_only=True)
    assert checkpoint["pl_rl"]["counters"]["iteration"] == 4
    assert checkpoint["hyper_parameters"]["gamma"] == 0.5


@pytest.mark.slow
def test_a_branch_has_a_directory_of_its_own_and_is_continued_as_a_run(config, capsys):
    fit("--config", config, "--trainer.max_epochs", 2)
    fit("--ckpt_path", "last", "--branch", "--trainer.max_epochs", 4, "--seed_everything", 5)
    assert "Branched into lightning_logs/version_1, with random numbers of its own." in capsys.readouterr().out
    fit("--ckpt_path", "last", "--trainer.max_epochs", 5)
    assert "Continued in lightning_logs/version_1." in capsys.readouterr().out
    assert counters_in(LAST)["iteration"] == 2
    assert sorted(path.name for path in Path("lightning_logs").iterdir()) == ["version_0", "version_1"]


@pytest.mark.slow
def test_an_impossible_resume_is_one_sentence_and_touches_nothing(config, capsys):
    fit("--config", config, "--trainer.max_epochs", 3)
    before = {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file()}
    capsys.readouterr()
    for args in (["--model.env.id", "Acrobot-v1"], ["--trainer.devices", "2"]):
        with pytest.raises(SystemExit) as end:
            fit("--ckpt_path", "last", *args)
        assert end.value.code == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
    fit("--ckpt_path", "last", "--trainer.max_epochs", 2)
    assert "Nothing is trained" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file()}
    assert sorted(path.name for path in Path("lightning_logs").iterdir()) == ["version_0"]


@pytest.mark.slow
def test_a_checkpoint_named_in_the_config_file_is_continued_too(config):
    fit("--config", config, "--trainer.max_epochs", 2, "--model.gamma", 0.5)
    Path("go_on.yaml").write_text("ckpt_path: last\ntrainer:\n  max_epochs: 3\n")
    fit("--config", "go_on.yaml")
    assert counters_in(LAST)["iteration"] == 3
    assert torch.load(LAST, weights_only=True)["hyper_parameters"]["gamma"] == 0.5


@pytest.mark.slow
def test_a_run_without_logs_takes_no_other_configuration_for_its_own(config, capsys):
    fit("--config", config, "--trainer.max_epochs", 2, "--trainer.logger", "false")
    Path("config.yaml").write_text("model:\n  env: Acrobot-v1\n")
    fit("--ckpt_path", LAST, "--trainer.max_epochs", 3, "--trainer.logger", "false")
    assert counters_in(LAST)["iteration"] == 3
    assert Path("config.yaml").read_text() == "model:\n  env: Acrobot-v1\n"


@pytest.mark.slow
def test_it_is_said_which_run_is_the_newest_and_how_old_it_is(config, capsys):
    fit("--config", config, "--trainer.max_epochs", 1)
    os.utime(LAST, (0, time.time() - 7300))
    fit("--ckpt_path", "last", "--trainer.max_epochs", 2)
    assert f"checkpoint: {LAST}, saved 2 hours ago" in capsys.readouterr().out
