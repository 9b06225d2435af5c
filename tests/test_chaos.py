"""Nothing is lost, whatever happens; ``python -m tests.chaos --seed N`` repeats it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_nothing_is_lost_whatever_happens():
    chaos = subprocess.run(
        [sys.executable, "-m", "tests.chaos"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    print(chaos.stdout, chaos.stderr)
    assert chaos.returncode == 0, chaos.stdout + chaos.stderr
