"""Whether compiled updates, which round differently, learn as well as eager ones: pairs of runs of the same seed.

Run it with ``python -m tests.benchmarks.paired --config pendulum.yaml --seeds 11-60 --env-steps 32768``.
"""

import argparse
import contextlib
import io
import logging
import multiprocessing
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
import yaml
from lightning.pytorch.cli import LightningArgumentParser

import pl_rl
from pl_rl.cli.configs import find_config
from tests.benchmarks.processes import num_cores
from tests.benchmarks.results import seeds_of
from tests.support import fit


class ReturnAtEnd(L.Callback):
    """Notes what the latest episodes of training have returned.

    Attributes:
        mean: Over up to 100.
    """

    mean = float("nan")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before the environments are closed."""
        self.mean = cast(pl_rl.PPO, pl_module).collector.episode_scalars()["return_mean"]


def train(config: str, env_steps: int, seed_and_compiled: tuple[int, bool]) -> float:
    """The mean return of the latest 100 episodes of a run, at its end.

    Args:
        config: The config's name or file; its schedules keep their length.
        env_steps: After which the run is cut.
        seed_and_compiled: The run's seed, and whether its updates are compiled.
    """
    seed, compiled = seed_and_compiled
    torch.set_num_threads(1)
    silence, at_end = io.StringIO(), ReturnAtEnd()
    with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
        L.seed_everything(seed, verbose=False)
        model = model_of(config, {"compile_update": compiled, "eval_freq": 0, "stop_value": None})
        fit(model, max_epochs=env_steps // (model.num_envs * model.num_steps), callbacks=[at_end])
    if compiled != ("compiled" in model.numerics()["updates"]):
        raise RuntimeError(f"updates were {model.numerics()['updates']}")
    return at_end.mean


def model_of(config: str, changes: dict[str, Any]) -> pl_rl.PPO:
    """The model that a config describes, with some other settings."""
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(pl_rl.PPO, "model")
    stated = yaml.safe_load(find_config(config).read_text())["model"]
    model: pl_rl.PPO = parser.instantiate_classes(parser.parse_object({"model": {**stated, **changes}})).model
    return model


def quiet() -> None:
    """Let Lightning say nothing in a process of the pool."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def main() -> None:
    """Train all pairs, as many runs side by side as there are cores, and print the table's row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--seeds", type=seeds_of, required=True)
    parser.add_argument("--env-steps", type=int, required=True)
    arguments = parser.parse_args()
    runs = [(seed, compiled) for seed in arguments.seeds for compiled in (True, False)]
    with multiprocessing.get_context("spawn").Pool(num_cores(), quiet) as pool:
        returns = pool.map(partial(train, arguments.config, arguments.env_steps), runs, chunksize=1)
    print(row(arguments.config, arguments.env_steps, np.array(returns).reshape(-1, 2)))


def row(config: str, env_steps: int, returns: npt.NDArray[np.float64]) -> str:
    """A table's row: both means, and that of the differences with its standard error.

    Args:
        config: The config's name or file.
        env_steps: Of each run.
        returns: ``[pairs, 2]``, compiled and eager.
    """
    (compiled, eager), differences = returns.mean(0), returns[:, 0] - returns[:, 1]
    error = differences.std(ddof=1) / len(returns) ** 0.5
    return (
        f"| `{Path(config).stem}` | {env_steps:,} | {len(returns)} | {compiled:,.1f} | {eager:,.1f} | "
        f"{differences.mean():+,.1f} +- {error:,.1f} |"
    )


if __name__ == "__main__":
    main()
