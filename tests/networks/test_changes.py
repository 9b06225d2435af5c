"""A network that computes something else from weights of the same shapes is another network."""

import functools
import shutil
import sys
from pathlib import Path

import lightning as L
import pytest
import torch

import pl_rl
from pl_rl import cli
from pl_rl.callbacks import RunCheckpoint
from pl_rl.networks.changes import changed_network, changed_structure, structure_of
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


def copied(last, root):
    """For tests that go on from it, which others read."""
    return shutil.copytree(last.parent.parent, root / LAST.parent.parent) / "checkpoints/last.ckpt"


SQUASHED = functools.partial(pl_rl.MLPActorCritic, distribution="squashed_gaussian")
CHANGES = {
    "activation is 'tanh' in the checkpoint and 'relu'": RELU,
    "tanh_mean is False in the checkpoint and True": functools.partial(pl_rl.MLPActorCritic, tanh_mean=True),
    "log_std_init is 0.0 in the checkpoint and -1.0": functools.partial(pl_rl.MLPActorCritic, log_std_init=-1.0),
    "distribution is 'gaussian' in the checkpoint and 'squashed_gaussian'": SQUASHED,
    "class_path is 'pl_rl.networks.MLPActorCritic' in the checkpoint and 'tests.networks.test_changes.Other'": Other,
}


@pytest.mark.parametrize("network", CHANGES.values(), ids=[words.split()[0] for words in CHANGES])
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
        lambda obs, act: pl_rl.MLPActorCritic(obs, act, log_std_init=-1.0),  # of which nobody knows
    ],
)
def test_defaults_that_are_named_and_unknown_arguments_are_no_change(network, last, tmp_path):
    again = model(network=network, total_env_steps=192)
    trainer(tmp_path, logger=False).fit(again, ckpt_path=copied(last, tmp_path))
    assert again.iteration == 3


@pytest.mark.slow
def test_the_command_line_refuses_it_in_one_sentence(last, tmp_path, capsys):
    last = copied(last, tmp_path)
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
    assert counters_in(last)["iteration"] == 3


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
        ({"scale": float("nan")}, {"scale": float("nan")}, None),
        ({"scale": [{"a": float("nan")}]}, {"scale": [{"a": float("nan")}]}, None),
        ({"scale": [{"a": float("nan")}]}, {"scale": [{"a": 1.0}]}, ("scale", [{"a": float("nan")}], [{"a": 1.0}])),
    ],
)  # fmt: skip
def test_settings_are_compared_as_far_as_they_are_known(before, after, change):
    found = changed_network(described(PassesOn, before), described(PassesOn, after), PassesOn)
    assert repr(found) == repr(change)  # by which nan is nan


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


def edited(*layers, **settings):
    """A model whose script has edited its network after it was made."""
    ppo = model(**settings)
    ppo.network.actor[1] = torch.nn.Sequential(*layers) if len(layers) > 1 else layers[0]
    return ppo


def dropout(p):
    return edited(torch.nn.Tanh(), torch.nn.Dropout(p), total_env_steps=192)


def by_function(activation):
    return model(network=lambda obs, act: pl_rl.MLPActorCritic(obs, act, activation=activation), total_env_steps=192)


EDITS = {
    "network.actor.1 is 'ReLU()' in the checkpoint and 'Tanh()'": (
        lambda: edited(torch.nn.ReLU()), lambda: model(total_env_steps=192),
    ),
    r"network.actor.1.1 is 'Dropout(p=0.5, inplace=False)' in the checkpoint and 'Dropout(p=0.0, inplace=False)'": (
        lambda: dropout(0.5), lambda: dropout(0.0),
    ),
    "network.actor.1 is 'ReLU()' in the checkpoint and 'ELU(alpha=1.0)'": (
        lambda: by_function("relu"), lambda: by_function("elu"),
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("words", EDITS, ids=["edited", "dropout", "function"])
def test_a_network_that_only_a_script_knows_is_compared_by_its_layers(words, tmp_path):
    before, after = EDITS[words]
    trainer(tmp_path, max_steps=4).fit(before())
    last = tmp_path / LAST
    for verb in ("fit", "validate"):
        with pytest.raises(pl_rl.UsageError) as refusal:
            getattr(trainer(tmp_path, logger=False), verb)(after(), ckpt_path=last)
        assert words in str(refusal.value)
    trainer(tmp_path, logger=False).fit(after(), ckpt_path=last, branch=True)
    again = before()
    again.total_env_steps = 192
    trainer(tmp_path, logger=False).fit(again, ckpt_path=last)
    assert again.iteration == 3


class Edits(L.Callback):
    """Edits a network while it trains."""

    def __init__(self, hook):
        setattr(self, hook, self.edit)

    def edit(self, trainer, pl_module, *args, **kwargs):
        pl_module.network.actor[1] = torch.nn.ReLU()


class EditsInSetup(pl_rl.PPO):
    """Its network is complete after setup."""

    def setup(self, stage):
        super().setup(stage)
        self.network.actor[1] = torch.nn.ReLU()


@pytest.mark.slow
@pytest.mark.parametrize("hook", ["setup", "on_fit_start", "on_train_start", "on_train_epoch_end", None])
@pytest.mark.parametrize("trainer_class", [pl_rl.Trainer, L.Trainer])
def test_a_network_that_is_edited_on_the_way_is_the_same_again(hook, trainer_class, tmp_path):
    for steps in (128, 192):
        L.seed_everything(0, verbose=False)
        ppo = (pl_rl.PPO if hook else EditsInSetup)(**{**SETTINGS, "total_env_steps": steps})
        edits = [Edits(hook)] if hook else []
        fitting = trainer_class(
            accelerator="cpu", default_root_dir=tmp_path, callbacks=[RunCheckpoint(), *edits], max_epochs=-1,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        fitting.fit(ppo, ckpt_path=tmp_path / LAST if steps == 192 else None)
    assert ppo.iteration == 3


@pytest.mark.slow
def test_layers_of_another_torch_are_not_compared(tmp_path):
    trainer(tmp_path, max_steps=4).fit(edited(torch.nn.ReLU()))
    for change in (lambda state: state["platform"].update(torch="1.0"), lambda state: state.pop("network")):
        content = torch.load(tmp_path / LAST, weights_only=True)
        change(content["pl_rl"])
        torch.save(content, tmp_path / "other.ckpt")
        again = model(total_env_steps=192)
        trainer(tmp_path, logger=False).fit(again, ckpt_path=tmp_path / "other.ckpt")
        assert again.iteration == 3


@pytest.mark.slow
def test_what_is_loaded_may_be_edited_next(tmp_path):
    trainer(tmp_path).fit(edited(torch.nn.ReLU()))
    restored = pl_rl.PPO.load_from_checkpoint(tmp_path / LAST)
    restored.network.actor[1] = torch.nn.ReLU()
    assert trainer(tmp_path, logger=False).validate(restored, ckpt_path=tmp_path / LAST, verbose=False)


class Speaks(torch.nn.Tanh):
    """Says of itself what it has learnt."""

    def extra_repr(self):
        return str(id(self))


def test_layers_are_told_by_what_does_not_change():
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), Speaks(), torch.nn.Sequential(torch.nn.Dropout(0.1)))
    assert structure_of(network).splitlines() == [
        "0: Linear(in_features=2, out_features=3, bias=True)", "1: Speaks()", "2: Sequential()",
        "2.0: Dropout(p=0.1, inplace=False)",
    ]  # fmt: skip
    assert changed_structure([], "0: Tanh()") is changed_structure(["x", "0: Tanh()"], "0: Tanh()") is None
    assert changed_structure(["0: Tanh()"], "0: Tanh()\n1: ReLU()") == ("1", "absent", "ReLU()")
