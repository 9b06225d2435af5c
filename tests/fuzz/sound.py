"""Sound files to start from."""

import io
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

import pl_rl
from pl_rl.callbacks import PretrainedCheckpoint, RunCheckpoint
from pl_rl.cli.configs import packaged_configs
from pl_rl.envs import EnvConfig
from tests.fuzz.mutations import places

DATA = Path(__file__).parents[1] / "data"
SETTINGS = {
    "total_env_steps": 10**6, "num_envs": 2, "num_steps": 8, "update_epochs": 1, "minibatch_size": 16, "eval_freq": 2,
    "eval_episodes": 1, "eval_num_envs": 1, "compile_update": False,
}  # fmt: skip
KINDS = {  # settings by environment
    "CartPole-v1": {"norm_reward": True, "norm_obs": True},
    "MountainCar-v0": {},  # whose state is a replay
}
VECTORIZATION = {"CartPole-v1": "native", "MountainCar-v0": "sync"}
ITERATIONS = 4


@dataclass
class Sound:
    """Files by what they are.

    Attributes:
        checkpoints: Trees by environment.
        weights: Bytes by path, of all formats.
        trees: Those that ``torch.save`` wrote, opened.
        configs: Texts.
        events: Bytes of event files.
        tables: Bytes of CSV files.
    """

    checkpoints: dict[str, dict] = field(default_factory=dict)
    weights: dict[str, bytes] = field(default_factory=dict)
    trees: dict[str, object] = field(default_factory=dict)
    configs: list[str] = field(default_factory=list)
    events: list[bytes] = field(default_factory=list)
    tables: list[bytes] = field(default_factory=list)
    paths: dict[str, list[tuple]] = field(default_factory=dict)


def trainer(folder, until, trainer_class=pl_rl.Trainer, logs=True):
    """A quiet trainer with callbacks of both libraries."""
    loggers = [TensorBoardLogger(folder, name="logs", version=0), CSVLogger(folder, name="logs", version=0)]
    return trainer_class(
        accelerator="cpu", default_root_dir=folder, max_epochs=until, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=1, logger=loggers if logs else False,
        callbacks=[
            RunCheckpoint(), PretrainedCheckpoint(), EarlyStopping("evaluator/return_mean", patience=100),
            ModelCheckpoint(every_n_epochs=100),
        ] if logs else [PretrainedCheckpoint(), EarlyStopping("evaluator/return_mean", patience=100)],
    )  # fmt: skip


def model(env):
    """An agent for one of the kinds."""
    return pl_rl.PPO(EnvConfig(env, vectorization=VECTORIZATION[env]), **{**SETTINGS, **KINDS[env]})


def make_sound(folder):
    """Train, and gather."""
    sound = Sound()
    for env in KINDS:
        L.seed_everything(0, verbose=False)
        root = Path(folder, env)
        trainer(root, ITERATIONS).fit(model(env))
        run = root / "logs" / "version_0"
        path = run / "checkpoints" / "last.ckpt"
        sound.checkpoints[env] = torch.load(path, weights_only=True)
        sound.weights[f"{env}.ckpt"] = path.read_bytes()
        sound.events += [path.read_bytes() for path in run.glob("events.*")]
        sound.tables += [path.read_bytes() for path in run.glob("metrics.csv")]
    for path in sorted((DATA / "checkpoints").glob("*.ckpt")):
        sound.weights[path.name] = path.read_bytes()
        sound.checkpoints[path.stem] = torch.load(path, weights_only=True)
    for path in sorted((DATA / "pretrained").rglob("*")):
        if path.is_file() and path.suffix not in (".py", ".md", ".json"):
            sound.weights[path.name] = path.read_bytes()
    network = sound.checkpoints["MountainCar-v0"]["state_dict"]
    sound.weights["state_dict.pt"] = _saved({name.removeprefix("network."): t for name, t in network.items()})
    sound.weights["old.pt"] = _saved(network, _use_new_zipfile_serialization=False)
    try:
        from pl_rl.pretrained.safetensors import dump

        sound.weights["model.safetensors"] = dump(network, {"library": "pl_rl", "network": '{"init_args": {}}'})
    except pl_rl.UsageError:
        pass  # an optional package
    for name, data in sound.weights.items():
        if name.endswith((".pt", ".tar", ".cleanrl_model")):
            sound.trees[name] = torch.load(io.BytesIO(data), weights_only=True)
        elif name.endswith(".zip"):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                sound.trees[name] = {part: archive.read(part) for part in archive.namelist()}
    sound.configs = [path.read_text() for path in packaged_configs().values()]
    sound.paths = {name: places(tree) for name, tree in {**sound.checkpoints, **sound.trees}.items()}
    return sound


def _saved(tree, **options):
    file = io.BytesIO()
    torch.save(tree, file, **options)
    return file.getvalue()
