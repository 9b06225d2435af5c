"""What the files of TensorBoard's and CSV loggers hold up to some point, and what is damaged in them.

A checkpoint remembers how far each file reached and a digest of what it held until there. Only what a file has gained
is read at a save; a resume reads what is to be left of it once (1 ms for 1 MB). TensorBoard's own checksums, which
Python needs 90 ms for 1 MB to compare, are looked at where the digest is wrong or unknown, to tell what is damaged.
"""

import csv
import hashlib
import math
import os
import re
import struct
from abc import ABC, abstractmethod
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from pl_rl.files.writing import is_regular, reading

EVENT_FILES = "events.out.tfevents.*"
CSV_FILE = "metrics.csv"

_HEAD = 256
_CHUNK = 2**20


class _State(NamedTuple):
    """Of a file that is being read; replaced as a whole, since a signal may end the reading anywhere."""

    reached: int
    offset: int
    """Bytes that have been read."""
    start: bytes
    """What the file began with: some bytes of an event file, the names of columns of a CSV file."""
    hash: "hashlib._Hash"


class Progress(ABC):
    """How far a file that grows has been read."""

    def __init__(self) -> None:
        self._state = _State(0, 0, b"", hashlib.sha256())

    @property
    def reached(self) -> int:
        """Bytes of an event file, rows of a CSV file."""
        return self._state.reached

    @abstractmethod
    def extend(self, path: Path) -> bool:
        """Read what the file has gained; whether what was read before is still there, as far as its start tells."""

    def digest(self) -> str:
        """Of all that has been read."""
        return self._state.hash.hexdigest()


class EventProgress(Progress):
    """How far an event file has been read."""

    def extend(self, path: Path, until: int | None = None) -> bool:
        """Read what the file has gained, no further than to a byte if one is given."""
        before = self._state
        with reading(path) as file:
            kept = file.read(len(before.start)) == before.start and file.seek(0, os.SEEK_END) >= before.reached
            reached, content = (before.reached, before.hash.copy()) if kept else (0, hashlib.sha256())
            file.seek(reached)
            while chunk := file.read(_CHUNK if until is None else min(_CHUNK, until - reached)):
                content.update(chunk)
                reached += len(chunk)
            file.seek(0)
            self._state = _State(reached, reached, file.read(min(_HEAD, reached)), content)
        return kept


class CSVProgress(Progress):
    """How far a CSV file has been read; columns that are added later, without a value, change nothing."""

    def extend(self, path: Path) -> bool:
        """Read the rows that the file has gained, or all of them where its columns are others now."""
        before = self._state
        rows_before = before.reached
        with reading(path) as file:
            start = file.readline()
            goes_on = start == before.start and file.seek(0, os.SEEK_END) >= before.offset
            if not goes_on:
                before = _State(0, len(start), start, hashlib.sha256())
            rows, offset, content = before.reached, before.offset, before.hash.copy()
            file.seek(offset)
            names = [name.encode() for name in _cells(start) or []]
            for line in file:
                if line.endswith(b"\n"):
                    offset += len(line)
                    rows += 1
                    content.update(_canonical(names, line))
            self._state = _State(rows, offset, start, content)
        return rows >= rows_before


class Table(NamedTuple):
    """What a CSV file holds."""

    names: list[str]
    rows: list[dict[str, str] | None]
    """``None`` for one that cannot be read."""
    lines: list[bytes]
    """Of the rows."""

    def digest(self, rows: int) -> str:
        """As of a :class:`CSVProgress` that has read so many rows."""
        names = [name.encode() for name in self.names]
        return hashlib.sha256(b"".join(_canonical(names, line) for line in self.lines[:rows])).hexdigest()


def read_table(path: Path) -> Table:
    """The rows of a CSV file; none where there is no file.

    Raises:
        OSError: If it cannot be read.
    """
    if not is_regular(path):
        return Table([], [], [])
    with reading(path) as file:
        header, *lines = file.read().splitlines(keepends=True) or [b""]
    lines = [line for line in lines if line.endswith(b"\n")]  # the last may be half written
    names = _cells(header) or []
    return Table(names, [_row(names, line) for line in lines], lines)


def last_step(path: Path) -> float:
    """The step of the last point in a log file; infinite where that is not told at once, 0 in a file of another kind.

    Raises:
        OSError: If the file cannot be read.
    """
    if path.name == CSV_FILE:
        rows = read_table(path).rows
        steps = [row.get("step", "") if row else "" for row in rows]
        return max((int(step) if re.fullmatch(r"\d{1,18}", step) else math.inf for step in steps), default=0)
    if not fnmatch(path.name, EVENT_FILES):
        return 0
    size = path.stat().st_size
    if size > _CHUNK or damage_of(path, size) is not None:  # which takes long for a long run's
        return math.inf
    # Late, as TensorBoard takes a while and only a resume reads logs.
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return max((event.step for event in EventFileLoader(str(path)).Load()), default=0)


def damage_of(path: Path, length: int) -> str | None:
    """What TensorBoard's checksums say about the first bytes of an event file, in words; ``None`` if they are right."""
    with reading(path) as file:
        content = file.read(length)
    records, damaged, offset = 0, 0, 0
    while offset < len(content):
        header = content[offset : offset + 12]
        size = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else 0
        body = content[offset + 12 : offset + 12 + size + 4]
        if len(header) < 12 or header[8:] != _checksum(header[:8]) or len(body) < size + 4:
            return f"{path.name} cannot be read from byte {offset:,} of {length:,} on"
        records += 1
        damaged += body[size:] != _checksum(body[:size])
        offset += 12 + size + 4
    return f"{damaged:,} of {records:,} records of {path.name} are damaged" if damaged else None


def _checksum(content: bytes) -> bytes:
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    return struct.pack("<I", masked_crc32c(content))


def _cells(line: bytes) -> list[str] | None:
    try:
        return next(csv.reader([line.decode()], strict=True), [])
    except (UnicodeDecodeError, csv.Error):
        return None


def _row(names: list[str], line: bytes) -> dict[str, str] | None:
    cells = _cells(line)
    return None if cells is None or len(cells) > len(names) else dict(zip(names, cells, strict=False))


def _canonical(names: list[bytes], line: bytes) -> bytes:
    """What a row says, whatever columns without a value it has."""
    cells = line.rstrip(b"\r\n").split(b",")
    if b'"' in line:
        cells = [cell.encode() for cell in _cells(line) or []]
    if not cells or len(cells) > len(names):
        return line
    return b",".join([name + b"=" + cell for name, cell in zip(names, cells, strict=False) if cell]) + b"\n"
