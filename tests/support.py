"""A small model, a quiet trainer, and ways to read what was logged."""

from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pl_rl import PPO

# 8 iterations of 64 transitions, each learnt from in 2 epochs of 2 minibatches: 32 train iterations.
SMALL = {
    "env": "CartPole-v1",
    "total_env_steps": 512,
    "num_envs": 4,
    "num_steps": 16,
    "update_epochs": 2,
    "minibatch_size": 32,
    "eval_freq": 0,
}


class MemoryLogger(Logger):
    """Remembers what is logged as ``(step, scalars)``."""

    name = "memory"
    version = 0

    def __init__(self):
        super().__init__()
        self.calls = []

    def log_metrics(self, metrics, step=None):
        self.calls.append((step, dict(metrics)))

    def log_hyperparams(self, params, *args, **kwargs):
        self.hyperparameters = params

    def points(self, name):
        """Step and value of each time that a scalar was logged."""
        return [(step, scalars[name]) for step, scalars in self.calls if name in scalars]

    def values(self, name):
        return [value for _, value in self.points(name)]


def small_ppo(seed=0, model_class=PPO, **settings):
    L.seed_everything(seed, verbose=False)
    return model_class(**{**SMALL, **settings})


def quiet_trainer(**settings):
    quiet = {
        "accelerator": "cpu",
        "max_epochs": -1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    }
    return L.Trainer(**{**quiet, **settings})


def fit(model, **settings):
    """The trainer, after it has trained the model."""
    trainer = quiet_trainer(**settings)
    trainer.fit(model)
    return trainer


def same_bits(one, other):
    """Whether two state dicts hold the same tensors at zero tolerance."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def read_checkpoint(path):
    """What is in a checkpoint file, all of it plain data."""
    return torch.load(path, weights_only=True)


def counters_in(path):
    """How far the run was that a checkpoint file was saved from: ``env_steps``, ``train_iter``, ``iteration``, ..."""
    return read_checkpoint(path)["pl_rl"]["counters"]


def event_scalars(run):
    """All scalars in the event files of a folder, as ``{tag: [(step, value), ...]}``."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def is_running(pid):
    """Whether there is such a process, and it has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
