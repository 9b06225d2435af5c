"""A network that computes something else from weights of the same shapes is another network."""

import functools
import sys
from pathlib import Path

import lightning as L
import pytest
import torch

import pl_rl
from pl_rl import cli
from pl_rl.callbacks import RunCheckpoint
from pl_rl.network_changes import changed_network
from tests.support import SMALL, counters_in

SETTINGS = {**SMALL, "env": "Pendulum-v1", "total_env_steps": 128, "compile_update": False}
RELU = functools.partial(pl_rl.MLPActorCritic, activation="relu")
LAST = Path("lightning_logs/version_0/checkpoints/last.ckpt")


class Other(pl_rl.MLPActorCritic):
    """Computes something else."""

    def policy(self, obs):
        return -super().policy(obs)


class PassesOn(pl_rl.MLPActorCritic):
    """With arguments of its base."""

    def __init__(self, obs, act, scale=1.0, **kwargs):
        super().__init__(obs, act, **kwargs)


def model(**settings):
    L.seed_everything(0, verbose=False)
    return pl_rl.PPO(**{**SETTINGS, **settings})


def trainer(root, trainer_class=pl_rl.Trainer, **settings):
    return trainer_class(
        accelerator="cpu", default_root_dir=root, callbacks=[RunCheckpoint()], enable_progress_bar=False,
        enable_model_summary=False, max_epochs=-1, **settings,
    )  # fmt: skip


@pytest.fixture(scope="module")
def last(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    trainer(root).fit(model())
    return root / LAST


CHANGES = {
    "activation is 'tanh' in the checkpoint and 'relu'": RELU,
    "tanh_mean is False in the checkpoint and True": functools.partial(pl_rl.MLPActorCritic, tanh_mean=True),
    "log_std_init is 0.0 in the checkpoint and -1.0": functools.partial(pl_rl.MLPActorCritic, log_std_init=-1.0),
    "class_path is 'pl_rl.networks.MLPActorCritic' in the checkpoint and 'tests.test_network_changes.Other'": Other,
}


@pytest.mark.parametrize("network", CHANGES.values(), ids=["activation", "tanh_mean", "log_std_init", "class"])
@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("trainer_class", [pl_rl.Trainer, L.Trainer])
def test_it_is_refused_by_every_verb(verb, network, trainer_class, last, tmp_path):
    (words,) = [words for words, made in CHANGES.items() if made is network]
    before = sorted(last.parent.parent.rglob("*"))
    with pytest.raises(pl_rl.UsageError, match=f"network.{words}") as refusal:
        getattr(trainer(tmp_path, trainer_class, logger=False), verb)(model(network=network), ckpt_path=last)
    branch = verb == "fit" and trainer_class is pl_rl.Trainer
    assert ("--branch" in str(refusal.value)) == branch and "leave it as it was" in str(refusal.value)
    assert before == sorted(last.parent.parent.rglob("*"))


def test_a_branch_may_have_another_network(last, tmp_path, capsys):
    branch = model(network=RELU, total_env_steps=192)
    trainer(tmp_path).fit(branch, ckpt_path=last, branch=True)
    assert branch.iteration == 3
    assert "changed: network.init_args.activation: None -> relu" in capsys.readouterr().out


@pytest.mark.parametrize(
    "network",
    [
        functools.partial(pl_rl.MLPActorCritic, activation="tanh", actor_sizes=[64, 64], critic_sizes=(64, 64)),
        lambda obs, act: pl_rl.MLPActorCritic(obs, act, activation="relu"),  # of which nobody knows
    ],
)
def test_defaults_that_are_named_and_unknown_arguments_are_no_change(network, last, tmp_path):
    again = model(network=network, total_env_steps=192)
    trainer(tmp_path, logger=False).fit(again, ckpt_path=last)
    assert again.iteration == 3


def test_the_command_line_refuses_it_in_one_sentence(last, capsys):
    for verb in ("fit", "validate", "test", "predict"):
        arguments = [verb, "--ckpt_path", str(last), "--model.network.init_args.activation", "elu"]
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        assert end.value.code == 2
        err = capsys.readouterr().err
        assert "error: network.activation is 'tanh' in the checkpoint and 'elu' in the model" in err
        assert ("--branch" in err) == (verb == "fit")
    # As the config of a shipped example would name all settings, one that names the defaults is none.
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.logger", "false", "--model.total_env_steps", "192"]
    cli.main(["fit", "--ckpt_path", str(last), "--model.network.init_args.activation", "tanh", *quiet])
    assert counters_in(Path("checkpoints/last.ckpt"))["iteration"] == 3


def described(cls, init_args):
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": init_args}


@pytest.mark.parametrize(
    "before, after, change",
    [
        ({}, {"scale": 1}, None),
        ({}, {"scale": 2.0}, ("scale", 1.0, 2.0)),
        ({"activation": "tanh"}, {}, None),
        ({"activation": "relu"}, {}, ("activation", "relu", "tanh")),
        ({"encoder_sizes": []}, {"encoder_sizes": ()}, None),
        ({"unknown": 1}, {}, None),
        ({"unknown": 1}, {"unknown": 2}, ("unknown", 1, 2)),
        ({"scale": "<class 'f'> at 0x7f00"}, {"scale": "<class 'g'>"}, ("scale", "<class 'f'>", "<class 'g'>")),
        ({"scale": "<object object at 0x7f00>"}, {"scale": object()}, None),
        (None, {"scale": 2.0}, None),
    ],
)  # fmt: skip
def test_settings_are_compared_as_far_as_they_are_known(before, after, change):
    assert changed_network(described(PassesOn, before), described(PassesOn, after), PassesOn) == change


def test_a_class_is_the_same_under_an_older_name_and_in_a_script(monkeypatch):
    here = described(pl_rl.MLPActorCritic, {})
    moved = {"class_path": "pl_rl.MLPActorCritic", "init_args": {}}
    assert changed_network(moved, here, pl_rl.MLPActorCritic) is None
    script = {"class_path": "__main__.MLPActorCritic", "init_args": {}}
    assert changed_network(script, here, pl_rl.MLPActorCritic) is None
    never_imported = {"class_path": "os_never.MLPActorCritic", "init_args": {}}
    assert changed_network(never_imported, here, pl_rl.MLPActorCritic)[0] == "class_path"
    assert "os_never" not in sys.modules


def test_load_from_checkpoint_makes_the_network_that_it_is_told(last):
    restored = pl_rl.PPO.load_from_checkpoint(last)
    with torch.no_grad():
        assert restored.network.value(torch.zeros(1, 3)).shape == (1,)
