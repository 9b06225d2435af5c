"""Settings as plain data, which files may hold, and what differs between two of them."""

from collections.abc import Mapping
from typing import Any

import numpy as np


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
    old, new = flat_settings(before), flat_settings(after)
    return [
        f"{name}: {old.get(name)} -> {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names, which begin with a prefix."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flat_settings(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return flat
