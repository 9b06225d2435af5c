"""Words for loggers, and what is said where one cannot be had."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

import pl_rl
from pl_rl import cli
from pl_rl.trackers import words
from tests.resume.test_auto_resume import _config, go  # noqa: F401  (a fixture)

RUN = Path("lightning_logs/version_0")


def types(logger):
    return [type(one) for one in pl_rl.Trainer(accelerator="cpu", logger=logger).loggers]


def test_words_in_python():
    assert types("csv") == [CSVLogger]
    assert types(["csv", "tensorboard"]) == [CSVLogger, TensorBoardLogger]
    assert types([TensorBoardLogger("."), "csv"]) == [TensorBoardLogger, CSVLogger]
    assert types(True) == types(None) == [TensorBoardLogger] and types(False) == []
    with pytest.raises(
        pl_rl.UsageError, match="there is no logger 'tensorbord'; the words for loggers are tensorboard,"
    ):
        types("tensorbord")


@pytest.mark.slow
def test_words_on_the_command_line():
    assert go("--trainer.logger", "csv", "--trainer.max_epochs", "1", auto=False) == 0
    assert (RUN / "metrics.csv").is_file() and not list(RUN.glob("events*"))
    assert yaml.safe_load((RUN / "config.yaml").read_text())["trainer"]["logger"] == "csv"
    # A resume has it from there.
    cli.main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2"])
    assert not list(RUN.glob("events*")) and len(list(RUN.parent.iterdir())) == 1
    assert go("--trainer.logger", "[csv,tensorboard]", "--trainer.max_epochs", "1", auto=False) == 0
    both = RUN.with_name("version_1")
    assert (both / "metrics.csv").is_file() and list(both.glob("events*"))


@pytest.mark.parametrize("given", ["wandb", "lightning.pytorch.loggers.WandbLogger", "[csv,mlflow]"])
def test_a_missing_package_is_a_sentence_with_what_to_install(given, monkeypatch, capsys):
    monkeypatch.setattr(words, "find_spec", lambda name: None if name in ("wandb", "mlflow") else find_spec(name))
    assert go("--trainer.logger", given, auto=False) == 2
    err = capsys.readouterr().err
    name = "mlflow" if "mlflow" in given else "wandb"
    assert re.search(rf"error: the logger \S+ needs the package {name}, .* pip install {name}", err)
    assert "Traceback" not in err and not Path("lightning_logs").exists()


def test_a_word_that_is_none_is_said(capsys):
    assert go("--trainer.logger", "tensorbord", auto=False) == 2
    assert (
        "error: there is no logger 'tensorbord'; use tensorboard, csv, wandb, mlflow, trac" in capsys.readouterr().err
    )


@pytest.mark.slow
def test_loggers_are_told_the_seed():
    go("--seed_everything", "7", "--trainer.max_epochs", "1", auto=False)
    assert yaml.safe_load((RUN / "hparams.yaml").read_text())["seed"] == 7
