"""Reading checkpoints. Every file is opened with ``weights_only=True``: nothing in it is ever executed."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pl_rl.errors import UsageError

STATE_KEY = "pl_rl"
FORMAT_VERSION = 1


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of one of our checkpoints, on the CPU.

    Raises:
        UsageError: If the file cannot be read, or is not one of ours.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch does not compare the checksums that it writes
    except Exception as error:  # torch.load fails in as many ways as a file can be broken
        raise UsageError(f"{str(path)!r} is no checkpoint, or a damaged one: {_reason(error)}") from error
    if damaged is not None:
        raise UsageError(f"{str(path)!r} is a damaged checkpoint: the checksum of {damaged} is wrong; use another one")
    return check_content(str(path), checkpoint)


def check_content(path: str, checkpoint: Any) -> dict[str, Any]:
    """What a file holds, if it is a checkpoint that this version reads.

    Raises:
        UsageError: If it is not.
    """
    if not isinstance(checkpoint, dict) or STATE_KEY not in checkpoint:
        raise UsageError(f"{path!r} is not a checkpoint of pl_rl; a run's are in its checkpoints/ folder")
    written = checkpoint[STATE_KEY]["format_version"]
    if written > FORMAT_VERSION:
        raise UsageError(
            f"{path!r} was written by a newer pl_rl (format {written}, this one reads {FORMAT_VERSION}), so "
            "upgrade pl_rl"
        )
    return checkpoint


def plain_data(value: Any) -> Any:
    """Settings as a checkpoint may hold them: builtins, NumPy's numbers and arrays as such, anything else as text."""
    if isinstance(value, Mapping):
        return {str(name): plain_data(item) for name, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain_data(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain_data(item) for item in value]
    return value if value is None or isinstance(value, str | int | float) else str(value)


def changed_settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Each setting that differs, as ``name: before -> after``; nested ones by their dotted names."""
    old, new = _flat(before), _flat(after)
    return [
        f"{name}: {old.get(name)} -> {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return flat


def _reason(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):
        return "it holds more than plain data, or something else altogether"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
