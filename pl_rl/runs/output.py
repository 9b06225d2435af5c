"""Output that may go away while a run goes on: ``| head``, a ``| tee`` that Ctrl-C ended first, a closed terminal."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Of a pipe without a reader, a terminal that is gone, a closed descriptor, and their like.
GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO, errno.ECONNRESET, errno.ESHUTDOWN)


class LastingOutput:
    """A stream that leads to ``/dev/null`` once its other end is gone; everything else is the stream's.

    A full disk, and whatever else a file may suffer from, is still an error.

    Args:
        stream: Such as ``sys.stdout``.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, if that can be; all is taken."""
        try:
            self._stream.write(text)  # Ray's streams do not say how much
        except (OSError, ValueError) as error:
            self._drop(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush, if that can be."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._drop(error)

    def _drop(self, error: OSError | ValueError) -> None:
        if self._stream.closed:
            return
        if not isinstance(error, OSError) or error.errno not in GONE:
            raise error
        # What the stream still holds would fail again when the process ends, and change its exit status.
        with contextlib.suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextmanager
def lasting_output() -> Iterator[None]:
    """In this block, ``sys.stdout`` and ``sys.stderr`` fail nobody who writes to them."""
    before = {}
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, LastingOutput):
            before[name] = stream, LastingOutput(stream)
            setattr(sys, name, before[name][1])
    try:
        yield
    finally:
        for name, (stream, lasting) in before.items():
            with contextlib.suppress(OSError, ValueError):  # Python says it when the process ends
                lasting.flush()
            if getattr(sys, name) is lasting:
                setattr(sys, name, stream)


def open_standard_descriptors() -> None:
    """Give a process that was started without them standard input, output and error, which lead nowhere.

    A file that is opened next would take their number otherwise, and get what is printed.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
