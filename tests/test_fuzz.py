"""A short run of the fuzzer: whatever is done to a file, its reader ends in a sentence of ours."""

import os
import signal

import pytest

from tests.fuzz import run
from tests.fuzz.readers import READERS, SHARES


def test_every_reader_has_a_share():
    assert SHARES.keys() == READERS.keys() and sum(SHARES.values()) == 100


@pytest.mark.slow
def test_no_mutated_file_gets_further_than_a_sentence(capfd):
    failures = run.run(list(READERS), 400, seed=7)
    out = capfd.readouterr().out
    assert failures == 0, out
    assert " files, 0 failed, seed 7" in out and all(f"{name} " in out for name in READERS)


def test_the_fuzzer_finds_what_it_is_for(capfd, monkeypatch):
    def endless():
        while True:
            pass

    harm = [lambda: {}["x"], lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: bytearray(2**31), endless]
    monkeypatch.setattr(run, "SECONDS", 1)
    monkeypatch.setattr(run, "make_sound", lambda folder: None)
    monkeypatch.setitem(run.READERS, "events", lambda rng, sound, folder: harm[rng.randrange(4)])
    assert run.run(["events"], 12, seed=1) == 12
    out = capfd.readouterr().out
    for words in ("KeyError: 'x'", "--- died, status -9", "MemoryError", "--- too long", "--reader events --only "):
        assert words in out
