"""Writing checkpoint files that are whole or not there; of a run's last one, two are kept."""

import contextlib
import errno
import io
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from pl_rl.checkpoints.format import STATE_KEY, Damaged, check_content, damage_of, load_sound, with_checksum
from pl_rl.errors import RunFailure
from pl_rl.files.plain_archive import is_sure_to_load
from pl_rl.files.writing import create, flush, is_regular, kind_of

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"

# Larger files are written by a thread of their own. A smaller one is on the disk in some ten milliseconds.
LARGE = 8 * 2**20


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to the disk, reads back and renames.

    So a kill at any moment leaves a whole file. A ``last.ckpt`` that is replaced becomes ``previous.ckpt``, in the
    place of an older one, after the new one has been read back: from the second save on there are always two.

    The state is turned into bytes before :meth:`save_checkpoint` returns; those of a large file are then written in the
    background, one file at a time, and what fails there is raised by the next save or at the end of training.

    Lightning's own goes through the system's folder for temporary files, where a rename can turn into a copy that a
    kill cuts short. Addresses of remote stores are left to Lightning.
    """

    def __init__(self) -> None:
        self._writer: ThreadPoolExecutor | None = None
        self._pending: list[Future[None]] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Raises:
            RunFailure: If it, or the one before that was written in the background, cannot be written or read back.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        archive = buffer.getvalue()
        sure = is_sure_to_load(checkpoint, len(archive))
        self.finish()
        if len(archive) < LARGE:
            _write(archive, Path(path), sure)
        else:
            self._submit(_write, archive, Path(path), sure)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint, after what is being written, which may be this one; plain data only.

        Raises:
            UsageError: If it is damaged, or an entry of one of ours is not what it should be.
            RunFailure: If what was being written could not be written or read back.
        """
        self.finish()
        if "://" in str(path):
            kwargs["weights_only"] = True  # for a URL Lightning takes no answer for no
            return super().load_checkpoint(path, *args, **kwargs)
        checkpoint: dict[str, Any] = load_sound(Path(path))
        if isinstance(checkpoint, dict) and STATE_KEY in checkpoint:
            check_content(str(path), checkpoint)  # before Lightning looks into it
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint, after what is being written; not at all if that fails."""
        if self._pending:
            self._submit(self._remove_after, self._pending[-1], path)
        else:
            super().remove_checkpoint(path)

    def finish(self) -> None:
        """Wait for what is written in the background.

        Raises:
            RunFailure: If it could not be written or read back.
        """
        pending, self._pending = self._pending, []
        for future in pending:
            future.result()

    def teardown(self) -> None:
        """Finish and let go of the thread."""
        try:
            self.finish()
        finally:
            if self._writer is not None:
                self._writer.shutdown()
                self._writer = None

    def _submit(self, *task: Any) -> None:
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending.append(self._writer.submit(*task))

    def _remove_after(self, written: Future[None], path: str | Path) -> None:
        if written.exception() is None:
            super().remove_checkpoint(path)


def _write(archive: bytes, path: Path, sure: bool) -> None:
    """Write a file and prove that it can be read.

    Args:
        archive: Its bytes, but for a checksum.
        path: Where it will be.
        sure: Whether nobody need try to open what has these bytes.
    """
    content = with_checksum(archive)
    # Fixed names: what a kill leaves behind is overwritten by the next save.
    partial, replaced = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.replaced")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for place in (path, path.with_name(PREVIOUS)) if path.name == LAST else (path,):
            if kind_of(place) == "a folder":
                raise IsADirectoryError(errno.EISDIR, f"{place.name} is a folder")
        with create(partial) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                # Read back what is on the disk, not what the system remembers.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if not sure or partial.read_bytes() != content:
            load_sound(partial)
        _rotate(partial, path, replaced)
    except BaseException as error:
        for leftover in (partial, replaced):
            with contextlib.suppress(OSError):
                leftover.unlink(missing_ok=True)
        kept = f"; {str(path)!r} is still the one before" if path.is_file() else ""
        if isinstance(error, OSError):
            mend = "move it away" if isinstance(error, IsADirectoryError) else "make room or mend the access"
            raise RunFailure(
                f"checkpoint {str(path)!r} cannot be written: {error.strerror}{kept}; {mend}, then continue with "
                "--ckpt_path last"
            ) from error
        if isinstance(error, Damaged):
            raise RunFailure(
                f"checkpoint {str(path)!r} was written but cannot be read back, as {error.reason}{kept}; keep what "
                "callbacks and modules save to tensors and plain data, or look after the disk"
            ) from error
        raise


def _rotate(partial: Path, path: Path, replaced: Path) -> None:
    """Put a file in its place, and the last one that was there beside it; at every moment there is one at ``path``."""
    previous = path.with_name(PREVIOUS)
    if path.name == LAST and is_regular(path) and damage_of(path.read_bytes()) is None:
        replaced.unlink(missing_ok=True)
        try:
            os.link(path, replaced)
        except OSError:  # a file system without links: for a moment there is the previous one only
            path.replace(previous)
    partial.replace(path)
    if replaced.exists():
        replaced.replace(previous)
    flush(path.parent)
