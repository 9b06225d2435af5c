"""Every place in a stranger's file where a name can stand.

Each function changes the run directory (``theirs``) or the hub folder (``hub``) in the working directory. What it names
is the module ``evil``, which leaves a mark when it is imported and when something of it is called, or a class of a
library that would write to ``stolen``.
"""

import json
from pathlib import Path

import torch
import yaml

from pl_rl.deploy.policy import read_trained
from pl_rl.pretrained import safetensors

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
NETWORK = "pl_rl.networks.MLPActorCritic"


def in_checkpoint(change):
    content = torch.load(CHECKPOINT, weights_only=True)
    # As from an older version, of which the environment has to be asked for its spaces.
    content["pl_rl"]["spaces"] = None
    change(content)
    torch.save(content, CHECKPOINT)


def with_settings(**settings):
    """Settings of a model, in the checkpoint and in the hub folder."""

    def place():
        in_checkpoint(lambda content: content["hyper_parameters"].update(settings))
        in_hub(lambda config: (config["settings"].update(settings), config.pop("spaces", None)))

    return place


def in_hub(change):
    if HUB.is_dir():
        config = json.loads((HUB / "config.json").read_text())
        change(config)
        (HUB / "config.json").write_text(json.dumps(config))


def with_env(**settings):
    return with_settings(env={"id": "CartPole-v1", **settings})


def with_network(class_path=NETWORK, **init_args):
    return with_settings(network={"class_path": class_path, "init_args": init_args})


def beside(text=None, names=("config.yaml",), **files):
    """A configuration beside the checkpoint, and files that it names."""

    def place():
        for name in names:
            (RUN / name).write_text(text)
        for name, content in files.items():
            (RUN / f"{name}.yaml").write_text(content)

    return place


def with_config(settings, **files):
    return beside(yaml.safe_dump(settings), **files)


def with_trainer(**settings):
    return with_config({"trainer": settings})


def described(name, **init_args):
    return {"class_path": name, "init_args": init_args}


CALLBACKS = "lightning.pytorch.callbacks"
IN_SETTINGS = {
    "env as text": with_settings(env="evil:Env-v0"),
    "env as the path of a file": lambda: (
        with_settings(env="theirs/more-v0")(),
        (RUN / "more-v0").write_text("{id: 'evil:Env-v0', imports: [evil]}"),
    ),
    "env.id": with_env(id="evil:Env-v0"),
    "env.imports": with_env(imports=["evil"]),
    "env.imports, a part": with_env(imports=["evil.part"]),
    "env.wrappers, text": with_env(wrappers=["evil.Wrapper"]),
    "env.wrappers, class_path": with_env(wrappers=[described("evil.Wrapper")]),
    "env.train_wrappers": with_env(train_wrappers=["evil.Wrapper"]),
    "a function for a wrapper": with_env(
        wrappers=[described("gymnasium.wrappers.TransformReward", func="evil.called")]
    ),
    "a class in a wrapper's arguments": with_env(
        wrappers=[described("gymnasium.wrappers.TimeLimit", n=described("evil.called"))]
    ),
    "a wrapper that writes": with_env(
        kwargs={"render_mode": "rgb_array"},
        wrappers=[described("gymnasium.wrappers.RecordVideo", video_folder="stolen")],
    ),
    "env.kwargs, a class": with_env(kwargs={"render_mode": described("evil.called")}),
    "env.kwargs, text": with_env(kwargs={"render_mode": "evil.called"}),
    "env.kwargs, YAML": with_env(kwargs={"render_mode": "{class_path: evil.called}"}),
    "env.kwargs, another environment": with_env(id="GymV26Environment-v0", kwargs={"env_id": "evil:Env-v0"}),
    "env.info_keys": with_env(info_keys=[described("evil.called")]),
    "env.vectorization": with_env(vectorization=described("evil.called")),
    "env.action_mask, a method": with_env(action_mask="method.close"),
    "anneal_lr as text": with_settings(anneal_lr="evil.called"),
    "anneal_clip as text": with_settings(anneal_clip="evil.called"),
    "anneal_ent as text": with_settings(anneal_ent="evil.called"),
    "a schedule, a class": with_settings(anneal_lr=described("evil.called")),
    "norm_obs as text": with_settings(norm_obs="evil.called"),
    "network.class_path": with_network("evil.Network"),
    "network.class_path, a function": with_network("evil.called"),
    "network.class_path, a library's": with_network("os.system"),
    "network as text": with_settings(network="evil.Network"),
    "network as the path of a file": lambda: (
        with_settings(network="theirs/net.yaml")(),
        (RUN / "net.yaml").write_text("{class_path: evil.Network}"),
    ),
    "network.init_args, a class": with_network(activation=described("evil.called")),
    "network.init_args, text": with_network(activation="evil.called"),
    "network.init_args, a list": with_network(actor_sizes=[described("evil.called")]),
    "a number, a class": with_settings(learning_rate=described("evil.called")),
    "a number, text": with_settings(learning_rate="evil.called"),
    "a setting that there is none of": with_settings(callbacks=["evil.Callback"]),
    "_instantiator": with_settings(_instantiator="evil.called"),
    "_class_path": with_settings(_class_path="evil.Network", _instantiator="lightning.pytorch.cli.instantiate_module"),
    "_target_": with_settings(_target_="evil.called"),
}
IN_CHECKPOINT = {
    "hparams_name": lambda: in_checkpoint(
        lambda content: content.update(hparams_name="env", hyper_parameters={"id": "evil:Env-v0", "imports": ["evil"]})
    ),
    "hparams, as of old": lambda: in_checkpoint(
        lambda content: content.update(hparams={"env": {"id": "evil:Env-v0"}}, module_arguments={"env": "evil:Env-v0"})
    ),
    "datamodule": lambda: in_checkpoint(
        lambda content: content.update(
            datamodule_hyper_parameters={"_instantiator": "evil.called"}, datamodule_hparams_name="evil.called"
        )
    ),
    "callbacks": lambda: in_checkpoint(
        lambda content: content["callbacks"].update({"evil.Callback": {"class_path": "evil.Callback"}})
    ),
    "loops": lambda: in_checkpoint(lambda content: content["loops"]["fit_loop"].update({"evil.called": "evil.called"})),
    "spaces": lambda: in_checkpoint(
        lambda content: content["pl_rl"].update(
            spaces={"observation": described("evil.called"), "action": "evil.called"}
        )
    ),
    "environments": lambda: in_checkpoint(
        lambda content: content["pl_rl"]["collector"]["environments"].update({"class": "evil.called"})
    ),
}
BESIDE = {
    "callbacks, text": with_trainer(callbacks=["evil.Callback"]),
    "callbacks, one": with_trainer(callbacks="evil.Callback"),
    "callbacks, class_path": with_trainer(callbacks=[described("evil.Callback")]),
    "callbacks, a function of a library's": with_trainer(
        callbacks=[described(f"{CALLBACKS}.LambdaCallback", setup="evil.called")]
    ),
    "callbacks, one that writes": with_trainer(callbacks=[described(f"{CALLBACKS}.ModelCheckpoint", dirpath="stolen")]),
    "logger": with_trainer(logger="evil.Callback"),
    "logger, one that writes": with_trainer(logger=described("lightning.pytorch.loggers.CSVLogger", save_dir="stolen")),
    "profiler": with_trainer(profiler="evil.Callback"),
    "plugins, strategy": with_trainer(plugins=["evil.Callback"], strategy="evil.Callback"),
    "data": with_config({"data": "evil.Callback"}),
    "model.env": with_config({"model": {"env": "evil:Env-v0"}}),
    "model.env.wrappers": with_config({"model": {"env": {"id": "CartPole-v1", "wrappers": ["evil.Wrapper"]}}}),
    "model.network": with_config({"model": {"network": "evil.Network"}}),
    "model.network, a function": with_config({"model": {"network": "evil.called"}}),
    "optimizer, lr_scheduler": with_config({"optimizer": "evil.called", "lr_scheduler": "evil.called"}),
    "a file that it names: config": with_config({"config": "more.yaml"}, more="model: {env: 'evil:Env-v0'}"),
    "a file that it names: model": with_config({"model": "more.yaml"}, more="env: 'evil:Env-v0'"),
    "a file that it names: trainer": with_config({"trainer": "more.yaml"}, more="callbacks: [evil.Callback]"),
    "default_root_dir": with_trainer(default_root_dir="stolen"),
    "config_resume1.yaml": beside(
        "trainer: {callbacks: [evil.Callback]}", names=("config_resume1.yaml", "hparams.yaml", "command.yaml")
    ),
}
# What only the folder of a hub policy has.
IN_HUB = {
    "trust": lambda: in_hub(
        lambda config: (config.update(trust=["evil"]), config["settings"].update(setting_of_network()))
    ),
    "training": lambda: in_hub(lambda config: config["training"].update({"class_path": "evil.called"})),
    "config": lambda: in_hub(lambda config: config.update(config={"class_path": "evil.called"}, model_id="evil")),
}


def in_metadata(class_path=NETWORK, **init_args):
    def place():
        trained, network = read_trained(CHECKPOINT), {"class_path": class_path, "init_args": init_args}
        WEIGHTS.write_bytes(safetensors.dump(trained.tensors, {"library": "pl_rl", "network": json.dumps(network)}))

    return place


IN_WEIGHTS = {
    "metadata, class_path": in_metadata("evil.Network"),
    "metadata, init_args": in_metadata(activation="evil.called"),
    "metadata, a class": in_metadata(
        activation="tanh", tanh_mean=described("evil.called"), extra=described("evil.called")
    ),
}


def setting_of_network():
    return {"network": {"class_path": "evil.Network", "init_args": {}}}


PLACES_OF_A_RUN = {**IN_SETTINGS, **IN_CHECKPOINT, **{f"config.yaml: {name}": place for name, place in BESIDE.items()}}
PLACES_OF_A_HUB_FOLDER = {**IN_SETTINGS, **{f"config.json: {name}": place for name, place in IN_HUB.items()}}
