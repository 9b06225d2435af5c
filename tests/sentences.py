"""Wrong commands: each is answered by one sentence and a status, and by no traceback.

``python -m tests.sentences`` runs them all and prints a table.
"""

import contextlib
import io
import json
import os
import pickle
import re
import tempfile
import traceback
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pl_rl import cli

SMALL = """model:
  env:
    id: CartPole-v1
  total_env_steps: 128
  num_envs: 4
  num_steps: 16
  update_epochs: 2
  minibatch_size: 32
  eval_freq: 4
  eval_episodes: 2
"""
FIT = ["fit", "--config", "small.yaml", "--trainer.enable_progress_bar", "false"]


class Case(NamedTuple):
    """A command and the words that its sentence has; ``with_run`` where a run is needed."""

    args: list[str]
    words: str
    with_run: bool = False


def _fit(text, words):
    return Case([*FIT, *text.split()], words)


def _config(name, words):
    return Case(["fit", "--config", name], words)


def _checkpoint(name, words):
    return Case(["fit", "--ckpt_path", name], words)


CASES = [
    # verbs and words
    Case([], "a verb is missing; the verbs are fit, validate"),
    Case(["train"], "there is no verb 'train'; the verbs are fit, validate"),
    Case(["fit", "cartpole"], r"did you mean --config cartpole\?"),
    _fit("extra", "a value stands after its option"),
    _fit("--model.gamma", "--model.gamma: expected one argument"),
    # names of other libraries, and misspelt ones
    _fit("--lr 1e-3", r"--lr 1e-3; did you mean --model\.learning_rate\?"),
    _fit("--model.lr 1e-3", r"did you mean --model\.learning_rate\?"),
    _fit("--seed 1", r"did you mean --seed_everything\?"),
    _fit("--episodes 3", r"did you mean --model\.eval_episodes\?"),
    _fit("--total_timesteps 100", r"did you mean --model\.total_env_steps\?"),
    _fit("--model.n_steps 3", r"did you mean --model\.num_steps\?"),
    _fit("--batch_size 3", r"did you mean --model\.minibatch_size\?"),
    _fit("--clip_range 0.1", r"did you mean --model\.clip_coef\?"),
    _fit("--gamma 0.9", r"did you mean --model\.gamma\?"),
    _fit("--model.gama 0.9", r"did you mean --model\.gamma\?"),
    _fit("--trainer.loger x", r"did you mean --trainer\.logger\?"),
    _fit("--track", r"did you mean --trainer\.logger\?"),
    _fit("--model.env.foo 1", "--model.env.foo; --help lists what there is"),
    _fit("--model.env.time_out 1", r"did you mean --model\.env\.timeout\?"),
    _fit("--model.network.init_args.activation_fn relu", r"did you mean --model\.network\.init_args\.activation\?"),
    _fit("--zzz 1", "--help lists what there is"),
    # values of another kind
    _fit("--model.gamma high", "--model.gamma is 'high' and must be a number"),
    _fit("--model.num_envs 2.5", "--model.num_envs is '2.5' and must be a whole number"),
    _fit("--model.total_env_steps 1e6x", "must be a whole number"),
    _fit("--model.norm_obs maybe", "--model.norm_obs is 'maybe' and must be true or false"),
    _fit("--model.env.kwargs [1]", r"--model.env.kwargs is '\[1\]' and must be settings by name"),
    _fit("--model.env.imports x", "--model.env.imports is 'x' and must be a list"),
    _fit("--model.env.vectorization fast", "must be one of 'auto', 'sync', 'async', 'native'"),
    _fit("--model.network.init_args.activation swish", r"\.activation is 'swish' and must be one of 'elu', 'gelu'"),
    _fit("--model.network my.Net", "--model.network: .*No module named 'my'"),
    _fit("--model.network Linear", "--model.network must be the name of a class"),
    _fit("--seed_everything abc", "--seed_everything is 'abc' and must be true or false or a whole number"),
    _fit("--seed_everything -1", "seed_everything=-1 is no seed"),
    _fit("--model.learning_rate -1", "learning_rate=-1.0 must be positive"),
    _fit("--eval.video_freq 2 --model.eval_freq 0", "counts evaluations, and eval_freq=0 makes none; set eval_freq"),
    _fit("--eval.video_freq -1", "video_freq=-1 must not be negative"),
    _fit("--model.minibatch_size 60", "use --model.minibatch_size 32 or 64"),
    # environments
    _fit("--model.env.id CartPol-v1", "nearest names are.*CartPole-v1"),
    _fit("--model.env.wrappers+=TimeLimit", "give it as gymnasium.wrappers.TimeLimit"),
    _fit("--model.env.wrappers+=nosuch.Wrapper", "the wrapper 'nosuch.Wrapper' cannot be imported"),
    Case([*FIT, "--model.env.imports", "[nosuch]"], "nosuch is not installed; pip install nosuch, or correct the name"),
    # Lightning's options
    _fit("--trainer.logger nosuch", "there is no logger 'nosuch'; use tensorboard, csv, wandb, mlflow, trackio,"),
    _fit("--trainer.logger [csv,nosuch]", "there is no logger 'nosuch'; use tensorboard, "),
    _fit("--trainer.logger CSVLogger --trainer.logger.flush_logs_every_n_steps x", "flush_logs_every_n_steps.* 'x'"),
    _fit("--trainer.logger lightning.pytorch.loggers.CometLogger", "a package is missing: .*comet"),
    _fit("--trainer.callbacks 3", "--trainer.callbacks is '3' and must be the name of a class"),
    _fit("--trainer.callbacks+=EarlyStopping", r"--trainer\.callbacks\.init_args\.monitor is missing"),
    _fit(
        "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor m --trainer.callbacks.patiens 4",
        r"--trainer\.callbacks\.patiens; did you mean --trainer\.callbacks\.patience\?",
    ),
    _fit("--trainer.logger CSVLogger", r"--trainer\.logger\.init_args\.save_dir is missing"),
    _fit(
        "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor m --trainer.callbacks.mode x", "`mode` can be"
    ),
    _fit("--trainer.max_epochs abc", "--trainer.max_epochs is 'abc' and must be a whole number or null"),
    _fit("--trainer.max_epochs -2", "non-negative integer or -1"),
    _fit("--trainer.max_time abc", "not a valid duration"),
    _fit("--trainer.profiler x", "profiler"),
    _fit("--trainer.accelerator gpu", "gpu"),
    _fit("--trainer.devices 2", "2 processes share out the shards of a run"),
    _fit("--model.shards 3", "shards=3 is no power of two; use 2 or 4"),
    _fit("--model.shards 4 --trainer.devices 3", "3 processes cannot share out shards=4"),
    _fit("--trainer.gradient_clip_val 0.5", "use --model.max_grad_norm 0.5"),
    _fit("--trainer.default_root_dir small.yaml", "Not a directory"),
    # configuration files
    _config("cartpol.yaml", r"did you mean cartpole\.yaml\?"),
    _config("folder", "'folder' is a folder"),
    _config("twice.yaml", "has model.gamma twice, in lines 11 and 12"),
    _config("tabs.yaml", "not valid YAML: .* line 2"),
    _config("text.yaml", "holds a str"),
    _config("flat.yaml", r"no setting 'env', in line 1 of 'flat.yaml'; did you mean model\.env\?"),
    _config("modle.yaml", r"no setting 'modle.env.id', in line 3 .*; did you mean model\.env"),
    _config("n_envs.yaml", r"no setting 'model.n_envs', in line 5 of .*; did you mean model\.num_envs\?"),
    _config("kind.yaml", "model.num_steps, in line 6 of 'kind.yaml', is 'many' and must be a whole number"),
    _config(
        "activation.yaml", r"'.*activation_fn', in line 14 of .*; did you mean model\.network\.init_args\.activation\?"
    ),
    _config("seed.yaml", r"no setting 'seed', in line 11 of 'seed.yaml'; did you mean seed_everything\?"),
    _config("trainer.yaml", "trainer is 3 in line 11 of 'trainer.yaml'"),
    # files that are no checkpoints
    _checkpoint("last", "no run under"),
    _checkpoint("folder/nosuch.ckpt", "does not exist"),
    _checkpoint("./folder", "is a folder"),
    _checkpoint("empty.ckpt", "it is empty"),
    _checkpoint("lfs.ckpt", "Git LFS pointer"),
    _checkpoint("sb3.zip", "model of Stable-Baselines3, from which --pretrained.path"),
    _checkpoint("weights.pt", "holds weights: --pretrained.path starts a new run from them"),
    _checkpoint("rsl.pt", "holds weights: --pretrained.path starts a new run from them"),
    _checkpoint("other.zip", "a zip archive of something else: 'a.txt'"),
    _checkpoint("arrays.npz", "a zip archive of something else: 'a.npy'"),
    _checkpoint("pickle.pkl", "not what torch.save writes"),
    Case([*FIT, "--pretrained.path", "lfs.ckpt"], "git lfs pull"),
    Case([*FIT, "--pretrained.path", "nosuch.pt"], "does not exist"),
    Case([*FIT, "--pretrained.path", "other.zip"], "a zip archive of something else"),
    # with a run
    Case(["fit", "--ckpt_path", "bets"], r"has no bets.ckpt \(its checkpoints: best, last", True),
    Case(["fit", "--ckpt_path", "last", "--model.env", "Acrobot-v1"], "leave env and network as they were", True),
    Case(["predict", "--ckpt_path", "last", "--vidoe", "x"], r"did you mean --video\?", True),
    Case(["predict", "--ckpt_path", "last", "--video", "small.yaml"], "in the way of a video", True),
    Case(["predict", "--ckpt_path", "last", "--video", "x", "--gif", "x"], "--video and --gif are ways to watch", True),
    Case(["validate", "--ckpt_path", "last", "--trainer.devices", "2"], "2 processes share out the shards", True),
    Case(["validate"], "validate needs a trained policy"),
    Case(["export", "last"], "--to is missing", True),
    Case(["export", "last", "--to", "torchscript"], "invalid choice: 'torchscript'", True),
    Case(["export", "last", "--to", "state_dict", "--output", "small.yaml"], "is not overwritten", True),
    Case(["inspect", "last", "extra"], "unrecognized arguments: extra", True),
    Case(["inspect", "small.yaml"], "is no checkpoint"),
    Case(["verify", "--kills", "x"], "--kills"),
    Case(["plot", "nosuch"], "there is no run directory 'nosuch'"),
]


def write_files():
    """What the commands name, in the working directory."""
    Path("small.yaml").write_text(SMALL)
    Path("folder").mkdir()
    Path("twice.yaml").write_text(f"{SMALL}  gamma: 0.9\n  gamma: 0.8\n")
    Path("tabs.yaml").write_text("model:\n\tenv: CartPole-v1\n")
    Path("text.yaml").write_text("hello")
    Path("flat.yaml").write_text("env: CartPole-v1\n")
    Path("modle.yaml").write_text(SMALL.replace("model:", "modle:"))
    Path("n_envs.yaml").write_text(SMALL.replace("num_envs", "n_envs"))
    Path("kind.yaml").write_text(SMALL.replace("num_steps: 16", "num_steps: many"))
    Path("seed.yaml").write_text(f"{SMALL}seed: 1\n")
    network = "  network:\n    class_path: pl_rl.MLPActorCritic\n    init_args:\n      activation_fn: relu\n"
    Path("activation.yaml").write_text(SMALL + network)
    Path("trainer.yaml").write_text(f"{SMALL}trainer: 3\n")
    Path("empty.ckpt").touch()
    Path("lfs.ckpt").write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{64 * '0'}\nsize 4567890\n")
    weights = torch.nn.Linear(2, 2).state_dict()
    torch.save(weights, "weights.pt")
    torch.save({"model_state_dict": weights, "optimizer_state_dict": {}, "iter": 1}, "rsl.pt")
    Path("pickle.pkl").write_bytes(pickle.dumps({"a": 1}))
    np.savez("arrays.npz", a=np.zeros(2))
    with zipfile.ZipFile("other.zip", "w") as archive:
        archive.writestr("a.txt", "x")
    with zipfile.ZipFile("sb3.zip", "w") as archive:
        archive.writestr("policy.pth", b"")
        archive.writestr("data", json.dumps({}))


def answer(args):
    """Exit status and what the error output is."""
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        try:
            cli.main(list(args))
        except SystemExit as ended:
            return ended.code, err.getvalue()
        except BaseException:
            return "traceback", traceback.format_exc()
    return 0, err.getvalue()


def fault_of(case):
    """What is wrong with the answer to a command, ``None`` if nothing is; and the answer."""
    status, text = answer(case.args)
    if status == "traceback":
        return "a traceback", text
    if status != 2:
        return f"status {status}", text
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    if len(lines) != 1 or not text.rstrip().endswith(lines[0]):
        return "not one sentence", text
    return (None if re.search(case.words, lines[0]) else "other words"), lines[0]


def main():
    os.chdir(tempfile.mkdtemp())
    write_files()
    faults = 0
    for case in sorted(CASES, key=lambda case: case.with_run):
        if case.with_run and not Path("lightning_logs").exists():
            answer(FIT)
        fault, text = fault_of(case)
        faults += fault is not None
        command = " ".join(arg for arg in case.args if arg not in FIT[1:])
        print(f"{fault or 'ok'}\t{command}\t{text.strip()[-400:] if fault else text.strip()}", flush=True)
    print(f"{len(CASES)} commands, {faults} answered wrongly")
    raise SystemExit(faults > 0)


if __name__ == "__main__":
    main()
