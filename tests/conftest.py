"""What every test shares: a folder of its own to work in, and one thread."""

import pytest
import torch

import tests.environments  # noqa: F401  (registers the small environments)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)
