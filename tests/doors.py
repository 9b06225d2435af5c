"""Every door through which a stranger's file comes in; :mod:`tests.places` has the places in it where a name stands.

A door is called with a run directory or a hub folder that a place has prepared.

``python -m tests.doors`` prints the table of ``.github/SECURITY.md``.
"""

import contextlib
import io
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
from lightning.pytorch.cli import LightningCLI

import pl_rl
from pl_rl import cli
from pl_rl.cli.verbs import OWN_VERBS
from pl_rl.deploy import Format
from pl_rl.deploy.export import export
from pl_rl.deploy.policy import TrainedPolicy, read_trained
from pl_rl.pretrained import read_weights
from tests.places import (
    CHECKPOINT,
    EVIL,
    HUB,
    IN_CHECKPOINT,
    IN_SETTINGS,
    IN_WEIGHTS,
    PLACES_OF_A_HUB_FOLDER,
    PLACES_OF_A_RUN,
    RUN,
    WEIGHTS,
)

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
    from pl_rl.deploy.hub import HubPolicy

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
