"""Output that goes away ends nothing."""

import errno
import io
import os
import sys

import pytest

from pl_rl import cli
from pl_rl.runs.output import LastingOutput, lasting_output
from tests.support import SMALL, counters_in


@pytest.fixture
def nobody():
    """A pipe that nobody reads."""
    theirs, ours = os.pipe()
    os.close(theirs)
    with os.fdopen(ours, "w") as stream:
        yield stream


def test_a_pipe_without_a_reader_takes_everything_for_ever(nobody):
    stream = LastingOutput(nobody)
    for _ in range(3):
        print("lost", file=stream, flush=True)
    stream.writelines(["lost"])
    nobody.write("leads nowhere by now")
    nobody.flush()


def test_what_is_closed_takes_everything_too():
    stream = io.StringIO()
    stream.close()
    print("lost", file=LastingOutput(stream), flush=True)


class Silent(io.StringIO):
    def write(self, text):
        super().write(text)  # and tells nobody how much, as Ray's


def test_a_stream_need_not_say_how_much_it_takes():
    stream = Silent()
    print("said", file=LastingOutput(stream), flush=True)
    assert stream.getvalue() == "said\n"


class Full(io.StringIO):
    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_other_errors_stay_errors(tmp_path):
    with pytest.raises(OSError, match="No space left"):
        LastingOutput(Full()).write("lost")
    with (tmp_path / "ascii").open("w", encoding="ascii") as file, pytest.raises(UnicodeEncodeError):
        LastingOutput(file).write("é")


def test_the_streams_are_put_back():
    out, err = sys.stdout, sys.stderr
    with lasting_output():
        inner = sys.stdout
        with lasting_output():
            assert sys.stdout is inner and isinstance(inner, LastingOutput)
        assert sys.stdout is inner
    assert (sys.stdout, sys.stderr) == (out, err)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["fit", "inspect"])
def test_the_command_line_ends_as_if_somebody_read_it(verb, nobody, monkeypatch, tmp_path):
    small = [f"--model.{name}={value}" for name, value in SMALL.items()]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", nobody)
        patch.setattr(sys, "stderr", nobody)
        cli.main(["fit", *small, "--trainer.enable_progress_bar=false", "--model.eval_freq=8"])
        last = tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt"
        if verb == "inspect":
            cli.main(["inspect", str(last)])
        with pytest.raises(SystemExit) as end:
            cli.main(["fit", "--ckpt_path", "nothing.ckpt"])
    assert end.value.code == 2
    assert counters_in(last)["iteration"] == 8
