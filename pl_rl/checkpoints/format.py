"""Reading checkpoints. Every file is opened with ``weights_only=True``: nothing in it is ever executed."""

import hashlib
import io
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from pl_rl.checkpoints.schema import check_checkpoint
from pl_rl.errors import UsageError
from pl_rl.files.plain_archive import NotPlain, check_archive, check_tree, load_plain
from pl_rl.files.schema import Misfit, record, whole

STATE_KEY = "pl_rl"
FORMAT_VERSION = 2


def _add_identity_and_proof(checkpoint: dict[str, Any]) -> None:
    """Format 2 tells runs apart and tells more of what a resume can check; of older ones nothing is known."""
    state = checkpoint[STATE_KEY]
    for name in ("run_id", "spaces", "callback_settings"):
        state[name] = None
    environments = state["collector"]["environments"]
    if environments is not None and isinstance(environments["state"], list):
        for replay in environments["state"]:
            replay["digest"] = None


# Format N to N + 1, in place. Whoever changes what a checkpoint holds raises FORMAT_VERSION, adds the step from the
# format before, and freezes a file of the new one with ``tests/data/checkpoints/make.py``; the older files stay.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], None]] = {1: _add_identity_and_proof}

_END = b"PK\x05\x06"  # with which the last record of a zip archive begins, 22 bytes of it and the comment
_CHECKSUM = b"pl_rl sha256 "
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def with_checksum(archive: bytes) -> bytes:
    """What ``torch.save`` wrote, with a checksum of it all as the archive's comment, which other readers pass over."""
    body = archive[:-2]  # the length of the comment follows
    comment = _CHECKSUM + hashlib.sha256(body).hexdigest().encode()
    return body + len(comment).to_bytes(2, "little") + comment


class Damaged(UsageError):
    """A file that is no sound checkpoint.

    Attributes:
        reason: Why not, in words.
    """

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(
            f"{str(path)!r} is no checkpoint, or a damaged one: {reason}; use another one (--ckpt_path last takes the "
            "newest sound one of a run)"
        )
        self.reason = reason


def load_sound(path: Path) -> Any:
    """What a file of ``torch.save`` holds, on the CPU, after its checksums were compared.

    Raises:
        Damaged: If it cannot be read, is damaged, or holds more than plain data.
    """
    return load_sound_from(path.read_bytes, str(path))


def load_sound_from(read: Callable[[], bytes], name: str) -> Any:
    """As :func:`load_sound`, of what is not a file with a path.

    Args:
        read: Gives all its bytes.
        name: What it is called in messages.

    Raises:
        Damaged: As there, whatever reading fails with.
    """
    try:
        content = read()
        fault = damage_of(content)
        if fault is None:
            return load_plain(content)
    except Exception as error:  # torch.load fails in as many ways as a file can be broken
        raise Damaged(name, _reason(error)) from error
    raise Damaged(name, fault)


def damage_of(content: bytes) -> str | None:
    """What is wrong with a file's bytes, in words; without opening what they hold.

    The checksums of a file that was saved without :func:`with_checksum` do not cover the spaces between its parts.

    Raises:
        Exception: If it is no archive at all, or not one that ``torch.save`` writes.
    """
    size = 2 + len(_CHECKSUM) + 64
    body, tail = content[:-size], content[-size:]
    if tail[2:].startswith(_CHECKSUM):
        right = body[-20:-16] == _END and content == with_checksum(body + b"\0\0")
        return None if right else "its checksum is wrong"
    if content.startswith(LFS_POINTER):
        return "it is a Git LFS pointer and not the file itself, which git lfs pull fetches"
    if not content:
        return "it is empty"
    if content[8:9] == b"{" and int.from_bytes(content[:8], "little") <= len(content) - 8:
        return "it is a safetensors file, weights alone, from which --pretrained.path starts a new run"
    if content[-22:-18] != _END or content[-2:] != b"\0\0":
        return "it is cut short" if content.startswith(b"PK") else "it is not what torch.save writes"
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
    if {"data", "policy.pth"} <= set(names):
        return "it is a model of Stable-Baselines3, from which --pretrained.path starts a new run"
    if any(name.endswith("/constants.pkl") for name in names):
        return "it is a TorchScript program"
    if not any(name.endswith("/data.pkl") for name in names):
        return f"it is a zip archive of something else: {names[0] if names else 'nothing'!r}"
    check_archive(content)  # before anything is unpacked
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        damaged = archive.testzip()  # torch does not compare the checksums that it writes
    return None if damaged is None else f"the checksum of {damaged} is wrong"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of one of our checkpoints, on the CPU and in the present format.

    Raises:
        UsageError: If the file cannot be read, is damaged, is not one of ours or comes from a newer version.
    """
    return check_content(str(path), load_sound(path))


def check_content(path: str, checkpoint: Any) -> dict[str, Any]:
    """What a file holds, in the present format.

    Raises:
        UsageError: If it is not a checkpoint of ours, or comes from a newer version.
    """
    if not isinstance(checkpoint, dict) or STATE_KEY not in checkpoint:
        what = ", but holds weights: --pretrained.path starts a new run from them" if _has_weights(checkpoint) else ""
        raise UsageError(f"{path!r} is not a checkpoint of pl_rl{what}; a run's are in its checkpoints/ folder")
    try:
        check_tree(checkpoint)  # as Lightning may have read it
        record({"format_version": whole(1)})(checkpoint[STATE_KEY], STATE_KEY)
    except (NotPlain, Misfit) as error:
        raise Damaged(Path(path), str(error)) from error
    written = checkpoint[STATE_KEY]["format_version"]
    if written > FORMAT_VERSION:
        raise UsageError(
            f"{path!r} was written by a newer pl_rl (format {written}, this one reads {FORMAT_VERSION}), so "
            "upgrade pl_rl"
        )
    try:
        migrate(checkpoint)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise Damaged(Path(path), f"it lacks a part that format {written} has: {error!r}") from error
    try:
        check_checkpoint(checkpoint)
    except Misfit as error:
        raise Damaged(Path(path), str(error)) from error
    return checkpoint


def _has_weights(content: Any, depth: int = 2) -> bool:
    """Whether there are tensors by name in a file, as other libraries write them."""
    if not isinstance(content, Mapping):
        return False
    parts = content.values()
    return any(isinstance(part, torch.Tensor) or (depth > 0 and _has_weights(part, depth - 1)) for part in parts)


def migrate(checkpoint: dict[str, Any]) -> None:
    """Bring a checkpoint, in place, from the format that it was written in to the present one."""
    state = checkpoint[STATE_KEY]
    while state["format_version"] < FORMAT_VERSION:
        MIGRATIONS[state["format_version"]](checkpoint)
        state["format_version"] += 1


def _reason(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):
        return "it holds more than plain data, or something else altogether"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
