"""Starting from pre-trained weights on the command line."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from pl_rl import cli
from pl_rl.pretrained import read_weights
from tests.cli.test_cli import SMALL, files_in
from tests.pretrained.support import DATA, Bomb
from tests.support import counters_in, read_checkpoint, same_bits

MODEL = DATA / "stable_baselines3" / "ppo_cartpole.zip"
NETWORK = {"class_path": "pl_rl.MLPActorCritic", "init_args": {"actor_sizes": [32, 32], "critic_sizes": [32, 32]}}
RUN = Path("lightning_logs/version_0")


@pytest.fixture
def config():
    """A configuration whose network fits the file."""
    Path("small.yaml").write_text(yaml.safe_dump({**SMALL, "model": {**SMALL["model"], "network": NETWORK}}))
    return "small.yaml"


def fit(*args):
    cli.main(["fit", *map(str, args), "--trainer.enable_progress_bar", "false"])


@pytest.mark.slow
def test_the_file_is_where_a_new_run_begins(config, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    for number in (0, 1):
        fit("--config", config, "--pretrained.path", MODEL, "--checkpoint.keep_every_n_iterations", 1)
        run = Path(f"lightning_logs/version_{number}")
        assert counters_in(run / "checkpoints/iteration_1.ckpt")["env_steps"] == 64
        assert counters_in(run / "checkpoints/last.ckpt")["env_steps"] == 128
        out = capsys.readouterr().out
        assert "Pre-trained weights" in out and "weights loaded" in out
    cli.main(["inspect", "last"])
    out = capsys.readouterr().out
    assert "started from" in out and "Stable-Baselines3 2.9.2 PPO" in out


@pytest.mark.slow
def test_a_run_can_begin_with_the_weights_of_another_run_of_ours(config):
    fit("--config", config)
    first = RUN / "checkpoints/last.ckpt"
    fit("--config", config, "--pretrained.path", first, "--trainer.max_epochs", 1, "--model.learning_rate", 1e-30)
    second = Path("lightning_logs/version_1/checkpoints/last.ckpt")
    assert counters_in(second)["iteration"] == 1
    weights = [read_checkpoint(path)["state_dict"] for path in (first, second)]
    assert same_bits(*weights)


@pytest.mark.slow
def test_patterns_are_given_as_lists(config):
    fit("--config", config, "--pretrained.path", MODEL, "--pretrained.include", '["actor.*"]')
    saved = read_checkpoint(RUN / "checkpoints/last.ckpt")["callbacks"]["PretrainedCheckpoint"]
    assert all(name.startswith("actor.") for name in saved["loaded"])
    assert saved["skipped"].keys() == {name for name in read_weights(MODEL).tensors if name.startswith("critic.")}


@pytest.mark.slow
def test_a_run_goes_on_and_is_evaluated_without_the_file(config, capsys):
    path = Path("weights.zip")
    path.write_bytes(MODEL.read_bytes())
    fit("--config", config, "--pretrained.path", path, "--trainer.max_epochs", 1)
    path.unlink()
    capsys.readouterr()
    fit("--ckpt_path", "last", "--trainer.max_epochs", 2)
    out = capsys.readouterr().out
    assert "The resume wins" in out and "fidelity: exact" in out
    saved = read_checkpoint(RUN / "checkpoints/last.ckpt")
    assert saved["pl_rl"]["counters"]["iteration"] == 2
    assert saved["callbacks"]["PretrainedCheckpoint"]["path"] == str(path.absolute())
    longer = ["--model.total_env_steps", 192, "--trainer.max_epochs", 3]
    fit("--ckpt_path", "last", "--branch", "--seed_everything", 1, *longer)
    branch = Path("lightning_logs/version_1/checkpoints/last.ckpt")
    assert read_checkpoint(branch)["callbacks"]["PretrainedCheckpoint"] == saved["callbacks"]["PretrainedCheckpoint"]
    before = files_in(".")
    cli.main(["validate", "--ckpt_path", "last"])
    cli.main(["predict", "--ckpt_path", "last"])
    assert files_in(".") == before


@pytest.mark.slow
def test_without_a_path_there_is_no_table(config, capsys):
    fit("--config", config)
    assert "Pre-trained" not in capsys.readouterr().out
    assert "PretrainedCheckpoint" not in read_checkpoint(RUN / "checkpoints/last.ckpt")["callbacks"]


def refused(capsys, *args):
    with pytest.raises(SystemExit) as ended:
        fit(*args)
    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert re.fullmatch(r"error: [^\n]+\n", err), err
    return err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nosuch.zip", "does not exist or is no ordinary file"),
        (".", "is a folder"),
        ("empty.pt", "is empty"),
        ("cut.zip", "is damaged"),
        ("hostile.pt", "could run code when opened"),
        (str(DATA / "stable_baselines3" / "ppo_pendulum.zip"), "no settings of the network fit"),
        (
            str(DATA / "stable_baselines3" / "vec_normalize_pendulum.pkl"),
            "holds statistics of observations and no policy",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_before_a_run_begins(name, message, config, capsys):
    Path("empty.pt").touch()
    Path("cut.zip").write_bytes(MODEL.read_bytes()[:-100])
    torch.save({"state_dict": Bomb(Path("marker").absolute())}, "hostile.pt")
    assert message in refused(capsys, "--config", config, "--pretrained.path", name)
    assert not Path("lightning_logs").exists()
    assert not Path("marker").exists()


@pytest.mark.slow
def test_the_settings_that_an_error_names_can_be_pasted(capsys):
    Path("small.yaml").write_text(yaml.safe_dump(SMALL))
    err = refused(capsys, "--config", "small.yaml", "--pretrained.path", MODEL)
    assert not Path("lightning_logs").exists()
    fit("--config", "small.yaml", "--pretrained.path", MODEL, *shlex.split(err.partition("; use ")[2]))
    assert counters_in(RUN / "checkpoints/last.ckpt")["env_steps"] == 128


@pytest.mark.slow
def test_the_network_of_the_file_can_be_adopted(capsys):
    Path("small.yaml").write_text(yaml.safe_dump(SMALL))
    fit("--config", "small.yaml", "--pretrained.path", MODEL, "--pretrained.adopt_network", "true")
    told = "network: encoder_sizes=[], actor_sizes=[32, 32], critic_sizes=[32, 32], activation=tanh, as in "
    assert told in capsys.readouterr().out
    saved = yaml.safe_load((RUN / "config.yaml").read_text())
    assert saved["model"]["network"]["init_args"]["actor_sizes"] == [32, 32]
    fit("--ckpt_path", "last", "--trainer.max_epochs", 3, "--model.total_env_steps", 192)
    out = capsys.readouterr().out
    assert "fidelity: exact" in out and "network: " not in out
    fit("--config", RUN / "config.yaml")  # the run's own configuration begins another one like it


@pytest.mark.slow
def test_adopting_a_network_adopts_its_normalized_observations(capsys):
    statistics = DATA / "stable_baselines3" / "vec_normalize_pendulum.pkl"
    options = ["--pretrained.adopt_network", "true", "--pretrained.normalizer", statistics]
    Path("small.yaml").write_text(yaml.safe_dump({**SMALL, "model": {**SMALL["model"], "env": "Pendulum-v1"}}))
    fit("--config", "small.yaml", "--pretrained.path", MODEL.with_name("ppo_pendulum_normalized.zip"), *options)
    assert "norm_obs=True, as in " in capsys.readouterr().out
    assert yaml.safe_load((RUN / "config.yaml").read_text())["model"]["norm_obs"] is True


def test_a_network_of_another_class_is_not_replaced(capsys):
    Path("small.yaml").write_text(yaml.safe_dump(SMALL))
    options = ["--pretrained.path", MODEL, "--pretrained.adopt_network", "true"]
    network = ["--model.network", "tests.example_networks.LinearValue"]
    assert "does not tell the settings of a tests.example_networks.LinearValue" in refused(
        capsys, "--config", "small.yaml", *options, *network
    )


@pytest.mark.slow
def test_rules_are_given_as_plain_values(config):
    options = ["--pretrained.rename", '{"critic.": "critic."}', "--pretrained.shapes", "overlap"]
    hold = [
        "--pretrained.freeze",
        '["actor.0.*"]',
        "--pretrained.freeze_iterations",
        1,
        "--pretrained.critic_warmup",
        1,
    ]
    fit("--config", config, "--pretrained.path", MODEL, "--pretrained.optimizer", "true", *options, *hold)
    saved = read_checkpoint(RUN / "checkpoints/last.ckpt")["callbacks"]["PretrainedCheckpoint"]
    assert saved["held"] == {"freeze": ["actor.0.*"], "freeze_iterations": 1, "critic_warmup": 1}
    assert saved["optimizer"] is True
