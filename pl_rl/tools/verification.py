"""The proof that a run can be killed and goes on as if nothing had happened, for a user's own configuration.

One run is left alone; another is killed with SIGKILL at random moments and resumed in new processes. Their final
checkpoints and logs must then be the same, compared at zero tolerance. Where numbers of processes are given, a run is
left alone with each; random processes of the other are killed, and it goes on with random numbers of them.
"""

import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import lightning as L
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pl_rl.agent import STATISTICS, as_agent
from pl_rl.checkpoints.format import STATE_KEY, read_checkpoint
from pl_rl.checkpoints.schema import shards_of
from pl_rl.errors import RunFailure, UsageError

WALL_CLOCK_TAGS = "time/"


class IterationReport(L.Callback):
    """Tells a watching process of the processes of a run, and of each iteration."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the ids of all processes."""
        ids = as_agent(pl_module).shards_here.gather_plain(os.getpid())
        if trainer.is_global_zero:
            print("processes", *ids, flush=True)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the number of iterations done; evaluating and saving are still to come."""
        if trainer.is_global_zero:
            print(f"iteration {as_agent(pl_module).iteration}", flush=True)


class Verification(NamedTuple):
    """What came of it."""

    killed_after: list[int]
    """Iterations after which a process was killed."""
    differences: dict[str, dict[str, str | None]]
    """By run and component, the first difference from the run left alone or ``None`` if there is none."""
    remarks: list[str]
    """What resumes said they could not continue exactly."""


def verify(fit_args: list[str], iterations: int, kills: int, devices: Sequence[int | None] = (None,)) -> Verification:
    """Compare a run that is killed and resumed, and runs of other numbers of processes, with one that is left alone.

    Args:
        fit_args: Arguments of the ``fit`` verb.
        iterations: Length of each run.
        kills: How often to kill.
        devices: Numbers of processes; ``None`` is what ``fit_args`` say.

    Raises:
        UsageError: If the run's arguments are refused.
        RunFailure: If a run fails by itself.
    """
    remarks: list[str] = []
    killed_after: list[int] = []
    with tempfile.TemporaryDirectory(prefix="pl_rl-verify-") as folder:

        def run_of(name: str, moments: Sequence[int | None], worlds: Sequence[int | None]) -> Path:
            root, world = Path(folder, name), None
            for number, moment in enumerate(moments):
                world = random.choice([other for other in worlds if other != world] or worlds)
                command = _command(fit_args, root, iterations, world)
                after = _run(command, remarks, resume=number > 0, kill_after=moment)
                killed_after.extend([] if moment is None else [after])
            return root / "lightning_logs" / "version_0"

        # The most processes first, for whom refusals are.
        most_first = sorted(devices, key=lambda world: -(world or 1))
        alone = {world: run_of(f"alone-{world}", [None], [world]) for world in most_first}
        # Not in the last iteration if there are others: it may be over before the kill comes.
        moments = sorted(random.sample(range(1, max(iterations - 1, kills + 1)), kills))
        runs = {f"devices={world}": run for world, run in alone.items() if world != devices[0]}
        runs["killed and resumed"] = run_of("killed", [*moments, None], devices)
        differences = {name: compare_runs(alone[devices[0]], run) for name, run in runs.items()}
    return Verification(killed_after, differences, sorted(set(remarks)))


def compare_runs(one: Path, other: Path) -> dict[str, str | None]:
    """The first difference of each component of two runs' last checkpoints and logs, ``None`` where there is none."""
    parts = [_components(read_checkpoint(run / "checkpoints" / "last.ckpt"), run) for run in (one, other)]
    differences = {name: first_difference(parts[0][name], parts[1].get(name)) for name in parts[0]}
    differences["log"] = first_difference(read_scalars(one), read_scalars(other))
    return differences


def first_difference(one: Any, other: Any, where: str = "") -> str | None:
    """Where two nested structures of plain data first differ, at zero tolerance; ``None`` if nowhere."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in [*one, *(key for key in other if key not in one)]:
            if key not in one or key not in other:
                return f"{where}/{key} is in one only"
            difference = first_difference(one[key], other[key], f"{where}/{key}")
            if difference is not None:
                return difference
        return None
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return first_difference(dict(enumerate(one)), dict(enumerate(other)), where)
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and torch.equal(one, other)
        return None if same else f"{where}: tensors differ"
    return None if one == other or (one != one and other != other) else f"{where}: {one} and {other}"


def read_scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """All (step, value) points in a run's event files by tag, less those of the wall clock."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith(WALL_CLOCK_TAGS)]
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in tags}


def _components(checkpoint: dict[str, Any], run: Path) -> dict[str, Any]:
    state = checkpoint[STATE_KEY]
    shards = shards_of(state["collector"])
    counters = {name: value for name, value in state["counters"].items() if name != "elapsed_seconds"}
    prefixes = tuple(STATISTICS.values())
    weights = {name: value for name, value in checkpoint["state_dict"].items() if not name.startswith(prefixes)}
    statistics = {name: value for name, value in checkpoint["state_dict"].items() if name.startswith(prefixes)}
    if statistics:
        statistics["discounted sums"] = [shard.get("discounted_sums") for shard in shards]
    return {
        "weights": weights,
        "optimizer": checkpoint["optimizer_states"],
        **({"normalizer": statistics} if statistics else {}),
        "counters": {**counters, "epoch": checkpoint["epoch"], "global_step": checkpoint["global_step"]},
        "random generators": {**state["random"], "sampling": [shard["generator"] for shard in shards]},
        "environments": [{"state": shard["environments"], "obs": shard["obs"]} for shard in shards],
        "episodes": [shard["episodes"] for shard in shards],
        "callbacks": _without(str(run.absolute()), checkpoint["callbacks"]),
    }


def _without(folder: str, value: Any) -> Any:
    """A callback's state with paths that begin at its run's folder."""
    if isinstance(value, dict):
        return {_without(folder, name): _without(folder, item) for name, item in value.items()}
    return value.replace(folder, "") if isinstance(value, str) else value


def _command(fit_args: Sequence[str], root: Path, iterations: int, world: int | None) -> list[str]:
    return [
        *(sys.executable, "-m", "pl_rl", "fit", *fit_args),
        *("--trainer.default_root_dir", str(root)),
        *("--trainer.max_epochs", str(iterations)),
        *("--trainer.logger", "true"),
        *("--trainer.log_every_n_steps", "1"),
        *("--trainer.enable_progress_bar", "false"),
        "--trainer.callbacks+=pl_rl.tools.verification.IterationReport",
        *("--checkpoint.last_every_n_iterations", str(max(1, iterations // 10))),
        *("--model.stop_value", "null"),
        *([] if world is None else ["--trainer.devices", str(world)]),
    ]


def _run(command: list[str], remarks: list[str], resume: bool, kill_after: int | None) -> int:
    """A run's processes, to their end or until a random one is killed somewhere in the iteration after ``kill_after``.

    Returns:
        The last iteration that it finished.
    """
    arguments = [*command, "--ckpt_path", "last"] if resume else command
    iteration, killed, ids = 0, False, []
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        before = latest = math.nan
        for line in cast(IO[str], process.stdout):
            if "not exact: " in line:
                remarks.append(line.partition("not exact: ")[2].strip())
            if line.startswith("processes "):
                ids = [int(word) for word in line.split()[1:]]
            if not line.startswith("iteration "):
                continue
            iteration, before, latest = int(line.split()[1]), latest, time.monotonic()
            if kill_after is not None and iteration >= kill_after and not killed:
                # Somewhere in the next iteration, if the last one tells how long that is.
                duration = 0.0 if math.isnan(latest - before) else latest - before
                time.sleep(random.random() * min(duration, 1.0))
                with suppress(ProcessLookupError):  # it has come to its end
                    os.kill(random.choice(ids), signal.SIGKILL)
                killed = True
        status = process.wait()
        if status > 0 and not killed:
            errors.seek(0)
            message = errors.read().strip().splitlines()[-1:] or ["no message"]
            kind = UsageError if status == 2 else RunFailure
            raise kind(message[0].removeprefix("error: "))
        if status == 0 and kill_after is not None:
            raise UsageError("the run ended by itself before it could be killed; use more --iterations or a longer run")
    return iteration
