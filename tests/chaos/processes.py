"""Runs of the command line in processes that are forked from one in which everything has been imported."""

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from unittest.mock import patch

import torch
import torch.utils.tensorboard

from pl_rl import cli
from pl_rl.tools.verification import compare_runs

# What a run does, by the function that does it.
PHASES = {
    "collecting": "pl_rl.algorithm.rollout.RolloutCollector.collect",
    "updating": "pl_rl.ppo.PPO._learn",
    "evaluating": "pl_rl.agent.Agent.play",
    "saving": "pl_rl.checkpoints.saving._write",
    "writing logs": "pl_rl.callbacks.run_directory.measure_logs",
}

ITERATION = 32
"""Env steps of one."""
LONGER = {"model__num_steps": 16, "model__minibatch_size": 32}
"""Settings for iterations of twice as many."""
SETTINGS = {
    "model.env.id": "CartPole-v1",
    "model.total_env_steps": 24 * ITERATION,
    "model.num_envs": 4,
    "model.num_steps": 8,
    "model.update_epochs": 1,
    "model.minibatch_size": 16,
    "model.eval_freq": 8,
    "model.eval_episodes": 2,
    "model.eval_num_envs": 2,
    "model.compile_update": "false",
    "checkpoint.last_every_n_iterations": 3,
    "checkpoint.keep_every_n_iterations": 5,
    "trainer.log_every_n_steps": 1,
    "trainer.enable_progress_bar": "false",
}


def fit_command(**settings: object) -> list[str]:
    """Arguments that begin a run and continue it."""
    options = {**SETTINGS, **{name.replace("__", "."): value for name, value in settings.items()}}
    return ["fit", "--auto_resume", *(f"--{name}={value}" for name, value in options.items())]


class Run:
    """A process that runs the command line in a folder, and tells when it enters a phase.

    Args:
        folder: Its working directory; what it prints goes to ``output.txt`` there.
        command: Arguments.
        prepare: Called in the process first.
        slow: Seconds that each rollout takes longer.
    """

    def __init__(
        self, folder: Path, command: list[str], prepare: Callable[[], None] | None = None, slow: float = 0
    ) -> None:
        self.output = folder / "output.txt"
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 70
            try:
                os.close(reader)
                os.chdir(folder)
                with self.output.open("a") as output:
                    for stream in (1, 2):
                        os.dup2(output.fileno(), stream)
                status = _work(writer, command, prepare, slow)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        os.close(writer)
        self.entered = os.fdopen(reader)

    def wait_for(self, phase: str, times: int = 1) -> bool:
        """Whether the process entered a phase so many times before it ended."""
        for line in self.entered:
            times -= line.strip() == phase
            if times == 0:
                return True
        return False

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Send a signal."""
        os.kill(self.pid, signum)

    def wait(self) -> tuple[int, str]:
        """The exit status, negative for a signal, and all that runs in this folder have printed."""
        for _ in self.entered:
            pass
        self.entered.close()
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return status, self.output.read_text()


def _work(writer: int, command: list[str], prepare: Callable[[], None] | None, slow: float) -> int:
    torch.set_num_threads(1)
    for phase, place in PHASES.items():
        patch(place, _told(resolve_name(place), phase, writer, slow if phase == "collecting" else 0)).start()
    try:
        if prepare is not None:
            prepare()
        cli.main(command)
        if "wandb" in sys.modules:
            sys.modules["wandb"].finish()  # as an interpreter does at its end
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _told(function: Callable[..., object], phase: str, writer: int, slow: float) -> Callable[..., object]:
    def told(*args: object, **kwargs: object) -> object:
        os.write(writer, f"{phase}\n".encode())
        time.sleep(slow)
        return function(*args, **kwargs)

    return told


def newest_run(folder: Path) -> Path:
    """The run directory that was made last."""
    return max(folder.glob("lightning_logs/version_*"), key=lambda run: int(run.name.split("_")[1]))


def differences(whole: Path, parts: Path) -> list[str]:
    """What is not the same in the newest runs of two folders."""
    compared = compare_runs(newest_run(whole), newest_run(parts))
    return [f"{name} ({text})" for name, text in compared.items() if text is not None]


def moment(chance: random.Random) -> tuple[str, int, float]:
    """A phase, how often it is entered before, and seconds within it."""
    phase = chance.choice(list(PHASES))
    most = 2 if phase == "evaluating" else 6  # of which there are fewer
    return phase, chance.randint(1, most), chance.random() * 0.01
