"""What was logged to a tracker, in a file of the run's directory: the tracker may not have got or kept all of it."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pl_rl.files.writing import is_regular, open_regular, reading, write_whole


class Points(NamedTuple):
    """What was logged in one call."""

    step: int
    metrics: dict[str, float]


class Journal:
    """A line of JSON for each call, in their order.

    Attributes:
        path: The file.
        length: Bytes in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.length = 0

    def add(self, metrics: Mapping[str, Any], step: int) -> None:
        """Note a call before it is made.

        Raises:
            OSError: If the file cannot be written.
        """
        numbers = {name: float(value) for name, value in metrics.items() if not isinstance(value, str)}
        line = json.dumps([int(step), numbers]).encode() + b"\n"
        descriptor = open_regular(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)
        self.length += len(line)

    def read(self) -> list[Points]:
        """All calls; lines that are none, such as one that was being written, are left out."""
        return list(_points(self._content()))

    def cut(self, length: int) -> list[Points]:
        """Take away what was noted after a length, in a new file, as other names of the old one are other people's.

        Returns:
            The calls that are left.

        Raises:
            OSError: If the file cannot be written.
        """
        content = self._content()[:length]
        write_whole(self.path, content)
        self.length = len(content)
        return list(_points(content))

    def _content(self) -> bytes:
        if not is_regular(self.path):
            return b""
        with reading(self.path) as file:
            return file.read()


def _points(content: bytes) -> Iterator[Points]:
    for line in content.splitlines():
        try:
            step, metrics = json.loads(line)
            yield Points(int(step), {str(name): float(value) for name, value in metrics.items()})
        except (AttributeError, TypeError, ValueError):
            continue
