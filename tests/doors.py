"""Every door through which a stranger's file comes in, and every place in one where a name can stand.

A door is called with a run directory (``theirs``) or a hub folder (``hub``) that a place has prepared. What it names
is the module ``evil``, which lies in the working directory and leaves a mark when it is imported and when something of
it is called, or a class of a library that would write to ``stolen``.

``python -m tests.doors`` prints the table of ``.github/SECURITY.md``.
"""

import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import get_args

import gymnasium
import lightning as L
import torch
import yaml
from lightning.pytorch.cli import LightningCLI

import pl_rl
from pl_rl import cli
from pl_rl.cli.verbs import OWN_VERBS
from pl_rl.export import Format, export
from pl_rl.policy import TrainedPolicy, read_trained
from pl_rl.weights import read_weights, safetensors

EVIL = """
from pathlib import Path
import gymnasium, lightning
from pl_rl import MLPActorCritic

def mark(what):
    with Path(__file__).with_name(what).open("a") as file:
        file.write(".")

mark("imported")

def called(*args, **kwargs):
    mark("called")

class Network(MLPActorCritic):
    def __init__(self, *args, **kwargs):
        mark("called")
        super().__init__(*args)

class Wrapper(gymnasium.Wrapper):
    def __init__(self, env, **kwargs):
        mark("called")
        super().__init__(env)

class Callback(lightning.Callback):
    def __init__(self, **kwargs):
        mark("called")

def make(**kwargs):
    mark("called")
    return gymnasium.make("CartPole-v1")

gymnasium.register("Env-v0", make)
"""
RUN, HUB, WEIGHTS = Path("theirs"), Path("hub"), Path("theirs/policy.safetensors")
CHECKPOINT = RUN / "checkpoints" / "last.ckpt"
SMALL = [
    *("--model.total_env_steps", "512", "--model.num_envs", "4", "--model.num_steps", "16"),
    *("--model.minibatch_size", "32", "--model.update_epochs", "1"),
    *("--model.norm_obs", "true", "--model.eval_freq", "2", "--model.eval_episodes", "1", "--model.eval_num_envs", "1"),
    *("--trainer.enable_progress_bar", "false"),
]
MODEL = {
    "env": "CartPole-v1",
    "num_envs": 4,
    "num_steps": 16,
    "minibatch_size": 32,
    "total_env_steps": 512,
    "norm_obs": True,
}
NETWORK = "pl_rl.networks.MLPActorCritic"


VERBS = {*LightningCLI.subcommands(), *OWN_VERBS}


def prepare():
    """A run and a hub folder of somebody else, and the module, in the working directory."""
    cli.main(["fit", "--model.env", "CartPole-v1", *SMALL, "--trainer.max_epochs", "1"])
    shutil.move("lightning_logs/version_0", RUN)
    shutil.rmtree("lightning_logs")
    export(CHECKPOINT, "safetensors", WEIGHTS)
    with contextlib.suppress(ImportError):
        export(CHECKPOINT, "hub", HUB)
    Path("evil.py").write_text(EVIL)
    Path("precious").write_text("mine")


# Places. Each changes the run directory or the hub folder.


def _in_checkpoint(change):
    content = torch.load(CHECKPOINT, weights_only=True)
    # As from an older version, of which the environment has to be asked for its spaces.
    content["pl_rl"]["spaces"] = None
    change(content)
    torch.save(content, CHECKPOINT)


def _setting(**settings):
    """Settings of a model, in the checkpoint and in the hub folder."""

    def place():
        _in_checkpoint(lambda content: content["hyper_parameters"].update(settings))
        _in_hub(lambda config: (config["settings"].update(settings), config.pop("spaces", None)))

    return place


def _in_hub(change):
    if HUB.is_dir():
        config = json.loads((HUB / "config.json").read_text())
        change(config)
        (HUB / "config.json").write_text(json.dumps(config))


def _env(**settings):
    return _setting(env={"id": "CartPole-v1", **settings})


def _network(class_path=NETWORK, **init_args):
    return _setting(network={"class_path": class_path, "init_args": init_args})


def _beside(text=None, names=("config.yaml",), **files):
    """A configuration beside the checkpoint, and files that it names."""

    def place():
        for name in names:
            (RUN / name).write_text(text)
        for name, content in files.items():
            (RUN / f"{name}.yaml").write_text(content)

    return place


def _config(settings, **files):
    return _beside(yaml.safe_dump(settings), **files)


def _trainer(**settings):
    return _config({"trainer": settings})


def _evil(name, **init_args):
    return {"class_path": name, "init_args": init_args}


CALLBACKS = "lightning.pytorch.callbacks"
IN_SETTINGS = {
    "env as text": _setting(env="evil:Env-v0"),
    "env as the path of a file": lambda: (
        _setting(env="theirs/more-v0")(),
        (RUN / "more-v0").write_text("{id: 'evil:Env-v0', imports: [evil]}"),
    ),
    "env.id": _env(id="evil:Env-v0"),
    "env.imports": _env(imports=["evil"]),
    "env.imports, a part": _env(imports=["evil.part"]),
    "env.wrappers, text": _env(wrappers=["evil.Wrapper"]),
    "env.wrappers, class_path": _env(wrappers=[_evil("evil.Wrapper")]),
    "env.train_wrappers": _env(train_wrappers=["evil.Wrapper"]),
    "a function for a wrapper": _env(wrappers=[_evil("gymnasium.wrappers.TransformReward", func="evil.called")]),
    "a class in a wrapper's arguments": _env(wrappers=[_evil("gymnasium.wrappers.TimeLimit", n=_evil("evil.called"))]),
    "a wrapper that writes": _env(
        kwargs={"render_mode": "rgb_array"}, wrappers=[_evil("gymnasium.wrappers.RecordVideo", video_folder="stolen")]
    ),
    "env.kwargs, a class": _env(kwargs={"render_mode": _evil("evil.called")}),
    "env.kwargs, text": _env(kwargs={"render_mode": "evil.called"}),
    "env.kwargs, YAML": _env(kwargs={"render_mode": "{class_path: evil.called}"}),
    "env.kwargs, another environment": _env(id="GymV26Environment-v0", kwargs={"env_id": "evil:Env-v0"}),
    "env.vectorization": _env(vectorization=_evil("evil.called")),
    "network.class_path": _network("evil.Network"),
    "network.class_path, a function": _network("evil.called"),
    "network.class_path, a library's": _network("os.system"),
    "network as text": _setting(network="evil.Network"),
    "network as the path of a file": lambda: (
        _setting(network="theirs/net.yaml")(),
        (RUN / "net.yaml").write_text("{class_path: evil.Network}"),
    ),
    "network.init_args, a class": _network(activation=_evil("evil.called")),
    "network.init_args, text": _network(activation="evil.called"),
    "network.init_args, a list": _network(actor_sizes=[_evil("evil.called")]),
    "a number, a class": _setting(learning_rate=_evil("evil.called")),
    "a number, text": _setting(learning_rate="evil.called"),
    "a setting that there is none of": _setting(callbacks=["evil.Callback"]),
    "_instantiator": _setting(_instantiator="evil.called"),
    "_class_path": _setting(_class_path="evil.Network", _instantiator="lightning.pytorch.cli.instantiate_module"),
    "_target_": _setting(_target_="evil.called"),
}
IN_CHECKPOINT = {
    "hparams_name": lambda: _in_checkpoint(
        lambda content: content.update(hparams_name="env", hyper_parameters={"id": "evil:Env-v0", "imports": ["evil"]})
    ),
    "hparams, as of old": lambda: _in_checkpoint(
        lambda content: content.update(hparams={"env": {"id": "evil:Env-v0"}}, module_arguments={"env": "evil:Env-v0"})
    ),
    "datamodule": lambda: _in_checkpoint(
        lambda content: content.update(
            datamodule_hyper_parameters={"_instantiator": "evil.called"}, datamodule_hparams_name="evil.called"
        )
    ),
    "callbacks": lambda: _in_checkpoint(
        lambda content: content["callbacks"].update({"evil.Callback": {"class_path": "evil.Callback"}})
    ),
    "loops": lambda: _in_checkpoint(
        lambda content: content["loops"]["fit_loop"].update({"evil.called": "evil.called"})
    ),
    "spaces": lambda: _in_checkpoint(
        lambda content: content["pl_rl"].update(spaces={"observation": _evil("evil.called"), "action": "evil.called"})
    ),
    "environments": lambda: _in_checkpoint(
        lambda content: content["pl_rl"]["collector"]["environments"].update({"class": "evil.called"})
    ),
}
BESIDE = {
    "callbacks, text": _trainer(callbacks=["evil.Callback"]),
    "callbacks, one": _trainer(callbacks="evil.Callback"),
    "callbacks, class_path": _trainer(callbacks=[_evil("evil.Callback")]),
    "callbacks, a function of a library's": _trainer(
        callbacks=[_evil(f"{CALLBACKS}.LambdaCallback", setup="evil.called")]
    ),
    "callbacks, one that writes": _trainer(callbacks=[_evil(f"{CALLBACKS}.ModelCheckpoint", dirpath="stolen")]),
    "logger": _trainer(logger="evil.Callback"),
    "logger, one that writes": _trainer(logger=_evil("lightning.pytorch.loggers.CSVLogger", save_dir="stolen")),
    "profiler": _trainer(profiler="evil.Callback"),
    "plugins, strategy": _trainer(plugins=["evil.Callback"], strategy="evil.Callback"),
    "data": _config({"data": "evil.Callback"}),
    "model.env": _config({"model": {"env": "evil:Env-v0"}}),
    "model.env.wrappers": _config({"model": {"env": {"id": "CartPole-v1", "wrappers": ["evil.Wrapper"]}}}),
    "model.network": _config({"model": {"network": "evil.Network"}}),
    "model.network, a function": _config({"model": {"network": "evil.called"}}),
    "optimizer, lr_scheduler": _config({"optimizer": "evil.called", "lr_scheduler": "evil.called"}),
    "a file that it names: config": _config({"config": "more.yaml"}, more="model: {env: 'evil:Env-v0'}"),
    "a file that it names: model": _config({"model": "more.yaml"}, more="env: 'evil:Env-v0'"),
    "a file that it names: trainer": _config({"trainer": "more.yaml"}, more="callbacks: [evil.Callback]"),
    "default_root_dir": _trainer(default_root_dir="stolen"),
    "config_resume1.yaml": _beside(
        "trainer: {callbacks: [evil.Callback]}", names=("config_resume1.yaml", "hparams.yaml", "command.yaml")
    ),
}
# What only the folder of a hub policy has.
IN_HUB = {
    "trust": lambda: _in_hub(
        lambda config: (config.update(trust=["evil"]), config["settings"].update(_setting_of_network()))
    ),
    "training": lambda: _in_hub(lambda config: config["training"].update({"class_path": "evil.called"})),
    "config": lambda: _in_hub(lambda config: config.update(config={"class_path": "evil.called"}, model_id="evil")),
}


def _in_metadata(class_path=NETWORK, **init_args):
    def place():
        trained, network = read_trained(CHECKPOINT), {"class_path": class_path, "init_args": init_args}
        WEIGHTS.write_bytes(safetensors.dump(trained.tensors, {"library": "pl_rl", "network": json.dumps(network)}))

    return place


IN_WEIGHTS = {
    "metadata, class_path": _in_metadata("evil.Network"),
    "metadata, init_args": _in_metadata(activation="evil.called"),
    "metadata, a class": _in_metadata(activation="tanh", tanh_mean=_evil("evil.called"), extra=_evil("evil.called")),
}


def _setting_of_network():
    return {"network": {"class_path": "evil.Network", "init_args": {}}}


PLACES_OF_A_RUN = {**IN_SETTINGS, **IN_CHECKPOINT, **{f"config.yaml: {name}": place for name, place in BESIDE.items()}}
PLACES_OF_A_HUB_FOLDER = {**IN_SETTINGS, **{f"config.json: {name}": place for name, place in IN_HUB.items()}}


# Doors.


def _verb(verb, *args):
    return lambda: cli.main([verb, *args])


def _resumed(verb, *args):
    return _verb(verb, "--ckpt_path", str(CHECKPOINT), "--trainer.enable_progress_bar", "false", *args)


def _trainer_of(cls):
    return cls(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip


def _hub(name, *args):
    from pl_rl.hub import HubPolicy

    return getattr(HubPolicy, name)(*args)


def _policy():
    trained = read_trained(CHECKPOINT)
    return TrainedPolicy(trained.settings, trained.spaces)


DOORS_OF_A_RUN = {
    "fit": _resumed("fit", "--trainer.max_epochs", "2"),
    "validate": _resumed("validate"),
    "test": _resumed("test"),
    "predict": _resumed("predict"),
    "inspect": _verb("inspect", str(CHECKPOINT)),
    "plot": _verb("plot", str(RUN), "--output", "plots"),
    **{
        f"export --to {to}": _verb("export", str(CHECKPOINT), "--to", to, "--output", f"exported-{to}")
        for to in get_args(Format)
    },
    "fit --pretrained.path": _verb(
        "fit", "--model.env", "CartPole-v1", *SMALL, "--pretrained.path", str(CHECKPOINT), "--trainer.max_epochs", "1",
        "--pretrained.adopt_network", "true", "--pretrained.normalizer", str(CHECKPOINT),
    ),
    "PPO.load_from_checkpoint": lambda: pl_rl.PPO.load_from_checkpoint(CHECKPOINT),
    "pl_rl.Trainer.fit": lambda: _trainer_of(pl_rl.Trainer).fit(pl_rl.PPO(**MODEL), ckpt_path=CHECKPOINT),
    "pl_rl.Trainer.validate": lambda: _trainer_of(pl_rl.Trainer).validate(
        pl_rl.PPO(**MODEL), ckpt_path=CHECKPOINT, verbose=False
    ),
    "lightning.Trainer.fit": lambda: _trainer_of(L.Trainer).fit(pl_rl.PPO(**MODEL), ckpt_path=CHECKPOINT),
    "TrainedPolicy": _policy,
    "HubPolicy.from_checkpoint": lambda: _hub("from_checkpoint", CHECKPOINT),
    "read_weights": lambda: read_weights(CHECKPOINT),
}  # fmt: skip
DOORS_OF_A_HUB_FOLDER = {"HubPolicy.from_pretrained": lambda: _hub("from_pretrained", str(HUB))}
DOORS_OF_WEIGHTS = {
    "fit --pretrained.path, safetensors": _verb(
        "fit", "--model.env", "CartPole-v1", *SMALL, "--pretrained.path", str(WEIGHTS), "--trainer.max_epochs", "1",
        "--pretrained.adopt_network", "true",
    ),
}  # fmt: skip
# Killing takes processes and seconds, and what it gets is the arguments of fit: tried with a few places.
DOORS_OF_PROCESSES = {"verify": ["verify", "--iterations", "3", "--kills", "1", "--ckpt_path", str(CHECKPOINT)]}


def places_of(door):
    """The places to try with a door: what lies beside a checkpoint with each verb that could look there."""
    if door in DOORS_OF_WEIGHTS:
        return IN_WEIGHTS
    if door in DOORS_OF_A_HUB_FOLDER:
        return PLACES_OF_A_HUB_FOLDER
    beside = door.split()[0] in VERBS and "--pretrained" not in door
    return PLACES_OF_A_RUN if beside else {**IN_SETTINGS, **IN_CHECKPOINT}


def marks():
    """How often ``evil`` was imported and called, and whether something was written or removed elsewhere."""
    counts = [len(Path(name).read_text()) if Path(name).exists() else 0 for name in ("imported", "called")]
    return *counts, Path("stolen").exists() or not Path("precious").exists()


def clean_up():
    """As if ``evil`` had never been imported."""
    for name in ("evil", "evil.part"):
        sys.modules.pop(name, None)
    gymnasium.registry.pop("Env-v0", None)


def enter(door):
    """Go through a door.

    Returns:
        ``done``, ``refused`` in our words, or the exception that nobody caught.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            door()
    except SystemExit as end:
        return "refused" if end.code in (1, 2) and said.getvalue().startswith("error: ") else f"exit {end.code}"
    except (pl_rl.UsageError, pl_rl.RunFailure):
        return "refused"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "done"


def main():
    """Print the table."""
    warnings.simplefilter("ignore")
    sys.path.insert(0, "")
    rows = []
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        os.chdir(folder)
        Path("prepared").mkdir()
        os.chdir("prepared")
        prepare()
        for door_name, door in {**DOORS_OF_A_RUN, **DOORS_OF_A_HUB_FOLDER, **DOORS_OF_WEIGHTS}.items():
            places = places_of(door_name)
            totals, ends = [0, 0, 0], Counter()
            for number, (place_name, place) in enumerate(places.items()):
                trial = Path(folder, f"{door_name}-{number}".replace("/", "-"))
                shutil.copytree(Path(folder, "prepared"), trial)
                os.chdir(trial)
                place()
                end = enter(door)
                ends[end if end in ("done", "refused") else "failed"] += 1
                if end not in ("done", "refused") or any(marks()):
                    print(f"{door_name}: {place_name}: {marks()}: {end}")
                totals = [total + int(new) for total, new in zip(totals, marks(), strict=True)]
                clean_up()
                os.chdir(folder)
                shutil.rmtree(trial)
            rows.append((door_name, *(ends[end] for end in ("done", "refused", "failed")), *totals))
    print("| door | done | refused | failed | imported | called | written elsewhere |\n|---|---|---|---|---|---|---|")
    for row in rows:
        print("|", " | ".join(map(str, row)), "|")


if __name__ == "__main__":
    main()
