"""Nothing is lost, whatever happens; ``python -m tests.chaos --seed N`` repeats it."""

import os
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_nothing_is_lost_whatever_happens(warm_server):
    root = str(Path(__file__).parent.parent)
    chaos = warm_server.run([sys.executable, "-m", "tests.chaos"], env={**os.environ, "PYTHONPATH": root})
    print(chaos.stdout, chaos.stderr)
    assert chaos.returncode == 0, chaos.stdout + chaos.stderr
