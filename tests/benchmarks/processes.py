"""Runs workers, each in a process of its own.

It needs the standard library alone: a process's peak memory counts what its parent had when it was started.
"""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WORKERS = Path(__file__).parent / "workers"
TIMEOUT_SECONDS = 3600


class WorkerFailure(Exception):
    """A worker that measured nothing; one sentence says why."""


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def last_line(text: str) -> str:
    """What an error output ends with."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def run_worker(
    python: str,
    library: str,
    workload: str,
    env_steps: int,
    threads: int | None = None,
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
    max_seconds: float | None = None,
    environment: Mapping[str, str] | None = None,
    source: str | None = None,
) -> dict[str, Any]:
    """Train a workload with a library.

    Args:
        python: Interpreter that has the library.
        library: Its name, of a file ``workers/with_*.py``.
        workload: Name of the workload.
        env_steps: How many transitions to train for.
        threads: Of torch; None leaves the library its own choice.
        seed: Of everything.
        overrides: Other values of the workload's fields.
        max_seconds: Train no longer than this (``pl_rl`` alone).
        environment: Environment variables to add.
        source: Checkout of the library, if it is no package.

    Returns:
        What the worker printed, and ``total_seconds`` of the process.

    Raises:
        WorkerFailure: If it fails.
    """
    command = [python, str(WORKERS / f"with_{library}.py"), workload, f"--env-steps={env_steps}", f"--seed={seed}"]
    variables = {**os.environ, "HYDRA_FULL_ERROR": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    if library == "pl_rl":
        # The package that lies beside this file, whichever is installed.
        found = [str(WORKERS.parents[2]), os.environ.get("PYTHONPATH", "")]
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, found))
    else:
        variables.pop("PYTHONPATH", None)
    if threads is not None:
        command.append(f"--threads={threads}")
        variables |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if overrides:
        command.append(f"--overrides={json.dumps(overrides)}")
    if source is not None:
        command.append(f"--source={Path(source).resolve()}")
    if max_seconds is not None:
        command.append(f"--max-seconds={max_seconds}")
    variables |= environment or {}
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        try:
            process = subprocess.run(
                [*command, f"--started={time.time()}"],
                cwd=folder,
                env=variables,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_SECONDS,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise WorkerFailure(f"{library} failed on {workload}: {error}") from error
        total_seconds = time.perf_counter() - started
    results = [line for line in process.stdout.splitlines() if line.startswith('{"library"')]
    if process.returncode or not results:
        raise WorkerFailure(f"{library} failed on {workload}: {last_line(process.stderr)}")
    return {**json.loads(results[-1]), "total_seconds": total_seconds}
