"""Runs that a logger follows are killed again and again, and its data is read back: each point is there once."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pl_rl.checkpoints.format import read_checkpoint
from pl_rl.tools.verification import WALL_CLOCK_TAGS, first_difference
from pl_rl.trackers.registry import TRACKERS_KEY
from tests.chaos.processes import ITERATION, Run, differences, fit_command, moment, newest_run
from tests.chaos.scenarios import Chaos, Outcome
from tests.trackers import support

Points = dict[str, list[tuple[int, float]]]
ITERATIONS_PER_KILL = 8
IMPORTED = {"mlflow": ["mlflow.store.tracking.sqlalchemy_store"], "wandb": ["wandb"]}


def loggers(chaos: Chaos, kills: int) -> list[Outcome]:
    """A run for each kind of logger.

    Args:
        chaos: The folder and the random moments.
        kills: In each run.
    """
    return [killed(chaos, logger, kills) for logger in READERS]


def killed(chaos: Chaos, logger: str, kills: int) -> Outcome:
    """SIGKILL at random moments, in turn of the process that trains and of all, such as W&B's own."""
    outcome = Outcome(f"SIGKILL at random moments of a run with the logger {logger}, whose data is read back")
    for module in IMPORTED.get(logger, ()):  # once for all processes
        import_module(module)
    command = fit_command(trainer__logger=logger, model__total_env_steps=ITERATION * ITERATIONS_PER_KILL * kills)
    whole, parts = chaos.new(f"{logger}-whole"), chaos.new(f"{logger}-parts")
    chaos.end(whole, command, _offline)
    number = 0
    while number < kills:
        phase, times, seconds = moment(chaos.chance)
        run = Run(parts, command, _offline)
        if run.wait_for(phase, min(times, 3)):
            time.sleep(seconds)
        for pid in [*(_descendants(run.pid) if number % 2 else []), run.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        status, output = run.wait()
        if status == 0:
            break  # the run was over before its moment came
        assert status == -signal.SIGKILL, output
        number += 1
    chaos.end(parts, command, _offline)
    outcome.tried = number
    lost = differences(whole, parts) + _lost_points(READERS[logger](whole), READERS[logger](parts))
    if lost:
        outcome.lost.append(f"{parts}: {lost}")
    else:
        outcome.exact = number
    return outcome


def _offline() -> None:
    os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true", **_trackio_in(Path())}


def _trackio_in(folder: Path) -> dict[str, str]:
    return {"TRACKIO_DIR": str(folder.absolute() / "trackio")}


def _descendants(pid: int) -> list[int]:
    """The processes that a process has begun, and those that they have."""
    children = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                children.append(int(path.parent.name))
    return [*children, *(other for child in children for other in _descendants(child))]


def _lost_points(whole: Points, parts: Points) -> list[str]:
    """What is not the same; of what depends on the clock, the steps count."""
    steps = [{name: [step for step, _ in points] for name, points in data.items()} for data in (whole, parts)]
    values = [
        {name: points for name, points in data.items() if not name.startswith(WALL_CLOCK_TAGS)}
        for data in (whole, parts)
    ]
    found = [first_difference(*steps, "steps"), first_difference(*values, "values")]
    wanted = {"evaluator_iter/return_mean", "evaluator_step/return_mean", "losses/entropy", "time/env_steps_per_second"}
    return [text for text in found if text is not None] + [f"{name} is missing" for name in wanted - whole.keys()]


def _in_tensorboard(folder: Path) -> Points:
    events = EventAccumulator(str(newest_run(folder)), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def _in_csv(folder: Path) -> Points:
    points: Points = {}
    with (newest_run(folder) / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            for name, cell in row.items():
                if cell and "/" in name:
                    points.setdefault(name, []).append((int(row["step"]), float(cell)))
    return points


def _in_tracker(reader: Callable[[str], Points]) -> Callable[[Path], Points]:
    def read(folder: Path) -> Points:
        with contextlib.chdir(folder):
            [tracker] = read_checkpoint(newest_run(Path()) / "checkpoints" / "last.ckpt")[TRACKERS_KEY]
            return reader(tracker["run_id"])

    return read


def _in_trackio(folder: Path) -> Points:
    """In a process of its own, as Trackio has one folder for all that a process reads."""
    [tracker] = read_checkpoint(newest_run(folder) / "checkpoints" / "last.ckpt")[TRACKERS_KEY]
    code = "import json, sys, trackio; print(json.dumps(trackio.SQLiteStorage.get_logs('pl_rl', sys.argv[1])))"
    command = [sys.executable, "-c", code, tracker["run_id"]]
    said = subprocess.run(
        command, env={**os.environ, **_trackio_in(folder)}, capture_output=True, text=True, check=True
    )
    points: Points = {}
    for row in json.loads(said.stdout):
        for name, value in row.items():
            if "/" in name:
                points.setdefault(name, []).append((row["step"], value))
    return points


READERS: dict[str, Callable[[Path], Points]] = {
    "tensorboard": _in_tensorboard,
    "csv": _in_csv,
    "wandb": _in_tracker(support.wandb_points),
    "mlflow": _in_tracker(support.mlflow_points),
    "trackio": _in_trackio,
}
