"""Tests of tracing share no traces."""

import pytest

from pl_rl.compiled import tracing


@pytest.fixture(autouse=True)
def _own_traces(_shared_traces, monkeypatch):
    monkeypatch.setattr(tracing, "trace", tracing.trace.trace)
