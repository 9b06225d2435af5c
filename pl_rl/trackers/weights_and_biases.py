"""Weights & Biases, also offline.

What a run has is read from the files that wandb writes for each of its processes, online too:
``wandb/*run-TIME-ID/run-ID.wandb``, records of wandb's own protocol in LevelDB's log format.
"""

import contextlib
import json
import os
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pl_rl.trackers.tracker import AXES, Parent, Tracker

# The run of an earlier fit of this process, which wandb would go on with.
_ended: set[str] = set()

WAIT_SECONDS = 30
_BLOCK, _HEADER, _FILE_HEADER = 2**15, 7, 7
_FIRST, _LAST = (1, 2), (1, 4)


class WandbTracker(Tracker):
    """A run of Weights & Biases."""

    LOGGER = "WandbLogger"

    def __init__(self, logger: Any, journal: Path) -> None:
        super().__init__(logger, journal)
        self._defined: set[str] = set()
        self._next_row = 0
        self._is_known = True
        _end_the_run_before(logger)

    def run_id(self) -> str | None:
        """The id of the run, once it has begun."""
        run_id: str | None = None if self.logger._experiment is None else self.logger.version
        if run_id is not None:
            _ended.add(run_id)
        return run_id

    def reopen(self, run_id: str) -> str | None:
        """Take the run's id, with which wandb goes on with it."""
        import wandb

        given = self.logger._id or (wandb.run.id if wandb.run is not None else None)
        if given not in (None, run_id):
            return f"the W&B run {run_id} is not gone on with, as this is {given}"
        self.logger._id = self.logger._wandb_init["id"] = run_id
        folder = Path(self.logger.save_dir or os.environ.get("WANDB_DIR", "."))
        self._is_known = self.logger._experiment is None and wait_for_files(folder, run_id)
        _wait_for_a_name(folder, run_id)
        for row in rows_of(folder, run_id) if self._is_known else []:
            self._next_row = max(self._next_row, int(row.get("_step", -1)) + 1)
            step = row.get("trainer/global_step")
            if isinstance(step, int | float):
                self.held |= {name: max(int(step), self.held.get(name, -1)) for name in row}
        return None

    @property
    def is_known(self) -> bool:
        """Whether wandb's own files of the run are there, and whole."""
        return self._is_known

    def branch(self, parent: Parent) -> None:
        """Put the run into the group of the one before, with where it branched off in its configuration."""
        settings = self.logger._wandb_init
        settings["group"] = settings.get("group") or parent.run_id
        settings["config"] = {**(settings.get("config") or {}), **parent.as_config()}

    def send(self, metrics: Mapping[str, float], step: int | None) -> None:
        """Log metrics with what their steps count, which the page draws them against."""
        run = self.logger.experiment
        axes: dict[str, int] = {}
        for name in metrics:
            axis = AXES.get(name.split("/")[0])
            if axis is None or step is None:
                continue
            axes[axis] = step
            if name not in self._defined:
                self._defined.add(name)
                run.define_metric(self.name_of(axis), hidden=True)
                run.define_metric(self.name_of(name), step_metric=self.name_of(axis))
        if run.step < self._next_row:  # offline, wandb counts the rows of each process from 0
            run.log({}, step=self._next_row, commit=False)
        super().send({**metrics, **axes}, step)


def rows_of(folder: Path, run_id: str) -> list[dict[str, Any]]:
    """What all processes of a run have logged, in the order of their files.

    Args:
        folder: In which wandb has its ``wandb`` folder.
        run_id: Of the run.
    """
    return [row for path in _files(folder, run_id) for row in _rows(path)]


def _files(folder: Path, run_id: str) -> list[Path]:
    return sorted(folder.glob(f"wandb/*run-*-{run_id}/run-{run_id}.wandb"))


def wait_for_files(folder: Path, run_id: str) -> bool:
    """Wait until nobody has the files of a run open any more; whether there are any.

    wandb writes in a process of its own, which notices the end of ours and closes the file a moment later.
    """
    names = {os.path.realpath(path) for path in _files(folder, run_id)}
    deadline = time.monotonic() + WAIT_SECONDS
    while _open_files(names) and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(names)


def _wait_for_a_name(folder: Path, run_id: str) -> None:
    """Wait while wandb would replace files of the run, which it names by the second in which a process begins."""
    while any(folder.glob(f"wandb/*run-{time.strftime('%Y%m%d_%H%M%S')}-{run_id}")):
        time.sleep(0.02)


def _open_files(names: set[str]) -> bool:
    """Whether a process has one of some files open, as far as the system tells."""
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):  # it is closed by now, or somebody else's
            if str(descriptor.readlink()) in names:
                return True
    return False


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    from wandb.proto.wandb_internal_pb2 import Record

    for content in _records(path.read_bytes()):
        record = Record.FromString(content)
        if record.WhichOneof("record_type") == "history":
            yield {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}


def _records(content: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format; the last may be cut off."""
    position, record = _FILE_HEADER, b""
    while position + _HEADER <= len(content):
        left = _BLOCK - position % _BLOCK
        if left < _HEADER:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        body = content[position + _HEADER : position + _HEADER + length]
        position += _HEADER + length
        if len(body) < length:
            return
        record = body if kind in _FIRST else record + body
        if kind in _LAST:
            yield record


def _end_the_run_before(logger: Any) -> None:
    """End the run of an earlier fit, as wandb has one in a process, and a new logger would log to it."""
    import wandb

    if logger._experiment is None and wandb.run is not None and wandb.run.id in _ended:
        wandb.finish()
