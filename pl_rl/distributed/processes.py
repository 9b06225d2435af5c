"""The processes of a run: who starts them, what the first one tells the others, how they end together."""

import json
import os
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.distributed import _init_dist_connection
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_info

from pl_rl.distributed.shards import Shards
from pl_rl.envs.processors import PROCESSES_HERE
from pl_rl.errors import Interrupted, RunFailure, UsageError
from pl_rl.seeding.random_state import random_state_kept
from pl_rl.signals import Interruption

START_SECONDS = 300
"""For which processes wait for each other until the first iteration is over."""
GRACE_SECONDS = 10.0
"""After which a process that this one has started, and that does not end by itself, is killed."""
SILENT = "another process of the run has ended, or does not answer; what it said may tell why"
TOLD = "PL_RL_TOLD"
OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""Gives processes that torchrun restarts a store of their own, https://github.com/pytorch/pytorch/issues/135712."""

# What the first process has found out, for the processes that it starts.
_told: dict[str, Any] = {}


def led(name: str, make: Callable[[], Any]) -> Any:
    """What the first process finds out, in all of them: the others look at no disk that it may have changed since.

    Args:
        name: Under which processes that are started later are told.
        make: Gives plain data.

    Raises:
        UsageError: In all processes, if ``make`` raises one; in the others also for another exception.
        RunFailure: If another process does not answer.
    """
    if _is_child() and name in (told := json.loads(os.environ[TOLD])):
        os.environ[TOLD] = json.dumps({key: value for key, value in told.items() if key != name})
        return told[name]
    environment = _environment_of_many()
    if environment is not None and not dist.is_initialized():
        with _answered(), random_state_kept():
            _init_dist_connection(environment, _backend(), timeout=timedelta(seconds=START_SECONDS))
    if not dist.is_initialized():
        _told[name] = make()
        return _told[name]
    everyone, answer = Shards(dist.get_world_size(), dist.get_rank(), dist.get_world_size()), {}
    if dist.get_rank() == 0:
        try:
            answer = {"value": make()}
        except Exception as error:
            everyone.of_first({"error": str(error)})
            raise
    with _answered():
        told = everyone.of_first(answer)
    if "error" in told:
        raise UsageError(told["error"])
    return told["value"]


@contextmanager
def _answered() -> Iterator[None]:
    """Say in a sentence that another process does not answer, while there is nothing to go on from."""
    try:
        yield
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        raise RunFailure(f"{SILENT}; start all of them again") from error


def _is_lost(error: BaseException) -> bool:
    """Whether it says that other processes cannot be reached.

    gloo says so in words of many kinds; what its errors share is that torch.distributed raises them.
    """
    if isinstance(error, RunFailure) or not isinstance(error, RuntimeError):
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return isinstance(error, dist.DistError) or frame.f_globals.get("__name__", "").startswith(dist.__name__)


def is_first() -> bool:
    """Whether this is the process that decides, writes and speaks."""
    if dist.is_initialized():
        return dist.get_rank() == 0
    environment = _environment_of_many()
    return not _is_child() and (environment is None or environment.global_rank() == 0)


def devices_of_launcher() -> dict[str, int]:
    """``devices`` and ``num_nodes`` as torchrun or SLURM has started processes; empty if neither has."""
    environment = _environment_of_many()
    if environment is None:
        return {}
    world = environment.world_size()
    if isinstance(environment, SLURMEnvironment):
        nodes = int(os.environ.get("SLURM_NNODES", 1))
        return {"devices": world // nodes, "num_nodes": nodes}
    here = int(os.environ[PROCESSES_HERE])
    return {"devices": here, "num_nodes": world // here}


def prepare_strategy(trainer: L.Trainer) -> None:
    """Have a trainer's processes exchange what shards do, rather than what Lightning would."""
    strategy = trainer.strategy
    if not isinstance(strategy, DDPStrategy):
        return
    begin: Callable[[], None] = strategy.setup_distributed

    def setup_distributed() -> None:
        with random_state_kept():  # it seeds anew, which one process alone does not
            begin()

    def configure_ddp() -> None:
        for tensor in [] if strategy.model is None else strategy.model.state_dict().values():
            dist.broadcast(tensor, 0)

    # Of this strategy alone: the user may have made it, of a class that a launcher such as Ray's asks for.
    strategy.setup_distributed = setup_distributed  # type: ignore[method-assign]
    strategy.configure_ddp = configure_ddp  # type: ignore[method-assign]
    strategy._process_group_backend = strategy._process_group_backend or _backend()
    strategy._timeout = timedelta(seconds=START_SECONDS)
    launcher = strategy.launcher
    if type(launcher) is _SubprocessScriptLauncher:
        strategy._launcher = _Launcher(launcher.cluster_environment, launcher.num_processes, launcher.num_nodes)
    if trainer.world_size > 1:
        _tell_of_restarts()
        # Lightning's handler of SIGTERM begins an exchange wherever a process is; pl_rl's is heeded by all together.
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


def check_processes(trainer: L.Trainer, shards: int) -> None:
    """Refuse processes that a run's shards cannot be dealt to, before any is started.

    Raises:
        UsageError: If there are any.
    """
    world, strategy = trainer.world_size, trainer.strategy
    if world == 1:
        return
    if shards == 1:
        power = 1 << (world - 1).bit_length()
        raise UsageError(
            f"{world} processes share out the shards of a run, and this one has one; use --model.shards {power}, "
            f"or --trainer.devices 1 (under SLURM --ntasks=1)"
        )
    if shards % world:
        raise UsageError(
            f"{world} processes cannot share out shards={shards} equally; use {1 << (world.bit_length() - 1)} of them"
        )
    if not (isinstance(strategy, DDPStrategy) and strategy._start_method == "popen"):
        raise UsageError(
            f"strategy={type(strategy).__name__} is not made for shards; leave --trainer.strategy out, or use ddp"
        )
    if "configure_ddp" not in vars(strategy):
        raise UsageError("several processes need pl_rl.Trainer in the place of lightning.Trainer")
    environment = strategy.cluster_environment
    if strategy.num_nodes > 1 and isinstance(environment, LightningEnvironment):
        raise UsageError(
            f"num_nodes={strategy.num_nodes} needs a launcher that starts processes on each; use torchrun, as in "
            f"torchrun --nnodes {strategy.num_nodes} -m pl_rl fit ..."
        )


@contextmanager
def ending_together(trainer: L.Trainer, interruption: Interruption) -> Iterator[None]:
    """Say in a sentence that another process is gone, and leave none behind.

    Args:
        trainer: Of the run.
        interruption: By which this process is told to end, if it is.

    Raises:
        Interrupted: If the others cannot be reached any more, and a signal has come.
        RunFailure: If none has.
    """
    try:
        yield
    except BaseException as error:
        children = getattr(trainer.strategy.launcher, "procs", [])
        if isinstance(error, Interrupted) and interruption.safe_to_raise:
            for child in children:  # nobody has told them, and they have nothing to save
                child.kill()
        if trainer.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()  # by which the others notice
        fate = _end(children)
        if _is_lost(error):
            interruption.leave()
            _end_stopped_parent()
            raise RunFailure(f"{fate or SILENT}; go on from the last checkpoint with --ckpt_path last") from error
        raise


def _tell_of_restarts() -> None:
    """Say that torchrun's restarts over several machines fail, where they are asked for so."""
    asked = {name: int(os.environ.get(name, 0)) for name in ("TORCHELASTIC_MAX_RESTARTS", "GROUP_WORLD_SIZE")}
    if asked["TORCHELASTIC_MAX_RESTARTS"] > 0 and asked["GROUP_WORLD_SIZE"] > 1 and os.environ.get(OWN_STORE) != "1":
        rank_zero_info(
            f"torchrun --max-restarts {asked['TORCHELASTIC_MAX_RESTARTS']} over {asked['GROUP_WORLD_SIZE']} machines: "
            f"restarted processes would look for dead ones; set {OWN_STORE}=1 for torchrun on each."
        )


def _backend() -> str:
    """For numbers of both kinds of devices."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


class _Launcher(_SubprocessScriptLauncher):
    """Lightning's, without the observer that kills all processes while they say why they end."""

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Start the other processes, told what this one has found out, and call the function."""
        if self.cluster_environment.creates_processes_externally:
            return function(*args, **kwargs)
        os.environ |= {TOLD: json.dumps(_told), PROCESSES_HERE: str(self.num_processes)}
        try:
            self._call_children_scripts()
            del os.environ[TOLD]
            return function(*args, **kwargs)
        finally:
            os.environ.pop(TOLD, None)
            del os.environ[PROCESSES_HERE]


def _is_child() -> bool:
    """Whether a process of the same run has started this one."""
    return TOLD in os.environ and os.environ.get("LOCAL_RANK", "0") != "0"


def _environment_of_many() -> ClusterEnvironment | None:
    """Where this process is one of several that something else has started; ``None`` if it is not."""
    for kind in (TorchElasticEnvironment, SLURMEnvironment):
        if kind.detect():
            tasks = int(os.environ["SLURM_NTASKS"]) if kind is SLURMEnvironment else 1
            if tasks > 1 and "SLURM_STEP_ID" not in os.environ:
                raise UsageError(
                    f"the SLURM job has {tasks} tasks, and this process is none that srun has started; use srun and "
                    f"--model.shards {1 << (tasks - 1).bit_length()}, or --ntasks=1"
                )
            environment: ClusterEnvironment = kind()
            return environment if environment.world_size() > 1 else None
    return None


def _end_stopped_parent() -> None:
    """Kill the first process, if it has started this one and was stopped, so that its run can go on elsewhere."""
    state = Path(f"/proc/{os.getppid()}/stat")  # in Linux alone
    if _is_child() and state.is_file() and state.read_text().rpartition(")")[2].split()[0] == "T":
        os.kill(os.getppid(), signal.SIGKILL)


def _end(children: list[subprocess.Popen[bytes]]) -> str | None:
    """Wait a while for the processes that this one has started, and kill those that remain.

    Returns:
        What has become of the first that did not end well, in words.
    """
    deadline, fates = time.monotonic() + GRACE_SECONDS, []
    for rank, child in enumerate(children, start=1):
        try:
            status = child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            fates.append(f"process {rank} did not answer, and was killed")
            continue
        if status:
            how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
            fates.append(f"process {rank} {how}")
    # One that was killed is the cause, and others that end with a status its consequence.
    return min(fates, key=lambda fate: "status" in fate, default=None)
