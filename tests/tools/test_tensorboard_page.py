"""The page that people look at shows each point once, whichever loader reads the files."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest

from tests.resume.test_resume import last_of, lose_iterations, run_of, train
from tests.support import event_scalars

TAGS = ["evaluator_iter/return_mean", "evaluator_step/return_mean", "losses/policy_loss"]


class Page:
    """A TensorBoard server over a folder."""

    def __init__(self, folder, *options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        arguments = ["--logdir", str(folder), "--port", str(self.port), "--reload_interval", "1", *options]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tensorboard.main", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.terminate()
        self.process.wait()

    def points(self, tag):
        query = urllib.parse.urlencode({"run": "version_0", "tag": tag})
        url = f"http://127.0.0.1:{self.port}/data/plugin/scalars/scalars?{query}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return [(step, value) for _, step, value in json.load(answer)]
        except (urllib.error.URLError, ConnectionError):
            return []

    def eventually_shows(self, expected):
        for _ in range(60):
            if all(self.points(tag) == expected[tag] for tag in TAGS):
                return True
            time.sleep(1)
        return False


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--load_fast=false"]], ids=["fast", "slow"])
def test_the_page_shows_a_resumed_run_as_if_it_had_never_stopped(tmp_path, options):
    train(tmp_path / "whole", 9)
    lose_iterations(tmp_path / "parts", until=7, checkpoint_at=4)
    train(tmp_path / "parts", 9, last_of(tmp_path / "parts"))
    with Page(tmp_path / "parts" / "lightning_logs", *options) as page:
        assert page.eventually_shows(event_scalars(run_of(tmp_path / "whole")))
