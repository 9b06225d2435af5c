"""Observation and action spaces as plain data, so that a policy can be made without its environment."""

import math
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from pl_rl.errors import UsageError

Space = gym.Space[Any]

# Most numbers in an observation, and most actions. A file with more is damaged, or meant to exhaust memory.
LARGEST = 2**26
# np.dtype() accepts more than these, among it what is no number and what torch has no type for.
DTYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64")


def describe_spaces(observation_space: Space, action_space: Space) -> dict[str, Any] | None:
    """Both spaces as plain data that fits JSON; ``None`` if one is of another class than these here."""
    described = {"observation": _describe(observation_space), "action": _describe(action_space)}
    return described if all(described.values()) else None


def make_spaces(described: Mapping[str, Any]) -> tuple[Space, Space]:
    """Observation and action space, the inverse of :func:`describe_spaces`.

    Raises:
        UsageError: If it is no such description.
    """
    try:
        return _make(described["observation"]), _make(described["action"])
    except (AssertionError, AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"the description of the spaces is damaged ({type(error).__name__}: {reason}); use another copy of the file"
        ) from error


def _describe(space: Space) -> dict[str, Any] | None:
    if str(space.dtype) not in DTYPES:
        return None
    if isinstance(space, gym.spaces.Box):
        bounds = {"low": _plain(space.low), "high": _plain(space.high)}
        return {"class": "Box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}
    if isinstance(space, gym.spaces.Discrete):
        return {"class": "Discrete", "n": int(space.n), "start": int(space.start), "dtype": str(space.dtype)}
    if isinstance(space, gym.spaces.MultiDiscrete):
        sizes = {"nvec": space.nvec.tolist(), "start": space.start.tolist()}
        return {"class": "MultiDiscrete", "dtype": str(space.dtype), **sizes}
    if isinstance(space, gym.spaces.MultiBinary):
        return {"class": "MultiBinary", "shape": list(space.shape), "dtype": str(space.dtype)}
    return None


def _make(described: Mapping[str, Any]) -> Space:
    kind, name = described["class"], described["dtype"]
    if name not in DTYPES:
        raise ValueError(f"a dtype {name!r}")
    dtype = np.dtype(name)
    if kind == "Box":
        shape = tuple(int(size) for size in described["shape"])
        if dtype.kind not in "fiu" or math.prod(shape) > LARGEST:
            raise ValueError(f"a Box of {shape} {dtype}")
        low, high = (_bounds(described[name], shape, dtype) for name in ("low", "high"))
        return gym.spaces.Box(low, high, shape, dtype.type)
    if dtype.kind not in "iu":
        raise ValueError(f"{kind} of {dtype}")
    if kind == "MultiBinary":
        shape = tuple(int(size) for size in described["shape"])
        if math.prod(shape) > LARGEST:
            raise ValueError(f"a MultiBinary of {shape}")
        return gym.spaces.MultiBinary(shape)
    if np.sum(described["n" if kind == "Discrete" else "nvec"]) > LARGEST:
        raise ValueError(f"a {kind} of more than {LARGEST:,} actions")
    if kind == "Discrete":
        return gym.spaces.Discrete(int(described["n"]), start=int(described["start"]), dtype=dtype.type)
    if kind == "MultiDiscrete":
        nvec, start = (np.array(described[name], dtype) for name in ("nvec", "start"))
        return gym.spaces.MultiDiscrete(nvec, dtype.type, start=start)
    raise ValueError(f"a space of class {kind!r}")


def _plain(bounds: npt.NDArray[Any]) -> Any:
    """One number if all are the same, else all of them; infinite ones as text, as strict JSON has no infinity."""
    numbers = [number if math.isfinite(number) else str(number) for number in bounds.reshape(-1).tolist()]
    return numbers[0] if numbers and all(number == numbers[0] for number in numbers) else numbers


def _bounds(plain: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    read = float if dtype.kind == "f" else int
    if isinstance(plain, list):
        return np.array([read(number) for number in plain], dtype).reshape(shape)
    return np.full(shape, read(plain), dtype)
