"""The other libraries, each in a virtual environment of its own, as their dependencies conflict with each other's."""

import subprocess
import sys
from pathlib import Path

from tests.benchmarks.processes import last_line

CACHE = Path.home() / ".cache" / "pl_rl_benchmarks"
# Of one torch and one gymnasium for all. Torch comes first, so that no other release of it is chosen.
COMMON = ["torch==2.13.0", "gymnasium[mujoco]==1.4.0", "mujoco==4.0.0", "numpy==2.4.6"]
REQUIREMENTS = {
    "sb3": [
        *(*COMMON, "stable_baselines3==2.9.2", "sb3_contrib==2.9.2"),
        *("ale-py==0.12.1", "opencv-python-headless==5.0.0.93", "minigrid==3.2.0"),
    ],
    "skrl": [*COMMON, "skrl==2.1.0"],
    "sheeprl": [*COMMON, "sheeprl==0.8.4"],
    "cleanrl": [*COMMON, "tyro==1.0.17", "tensorboard==2.21.0"],
    "purejaxrl": ["jax==0.10.2", "flax==0.12.8", "distrax==0.1.9", "gymnax==0.0.9", "optax==0.2.8"],
}
SOURCES = {"cleanrl": "https://github.com/vwxyzjn/cleanrl", "purejaxrl": "https://github.com/luchris429/purejaxrl"}
"""Peers that are no packages: they are run from a checkout."""


class SetupFailure(Exception):
    """A virtual environment that cannot be made; one sentence says why."""


def find_python(peer: str) -> str:
    """The interpreter of a peer's virtual environment, which is made if there is none with these requirements.

    Raises:
        SetupFailure: If it cannot be made.
    """
    folder = CACHE / peer
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    installed = folder / "requirements.txt"
    wanted = "\n".join(REQUIREMENTS[peer]) + "\n"
    if not installed.exists() or installed.read_text() != wanted:
        print(f"Making a virtual environment for {peer} in {folder} ...", flush=True)
        installed.unlink(missing_ok=True)
        _run(peer, [sys.executable, "-m", "venv", str(folder)])
        for requirements in (REQUIREMENTS[peer][:1], REQUIREMENTS[peer]):
            _run(peer, [str(python), "-m", "pip", "install", "--quiet", *requirements])
        installed.write_text(wanted)
    return str(python)


def _run(peer: str, command: list[str]) -> None:
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        raise SetupFailure(f"{peer} cannot be installed: {last_line(process.stderr)}")
