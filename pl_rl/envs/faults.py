"""Faults of environments, exceptions and invalid outputs alike, as sentences.

Shapes: ``T`` steps of a rollout, ``N`` environments.
"""

import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pl_rl.errors import EnvironmentFailure, Interrupted
from pl_rl.networks.records import Observations, entries

Fault = tuple[int, str, str]
"""Index of the environment, what it did, and its traceback (empty where there is none)."""

STOPS = (KeyboardInterrupt, Interrupted)
"""Raised by a signal, wherever the process is: they end the run, and are no fault of the environment that was running.
Any other exception is a fault, including ``SystemExit``, which games raise when their window is closed."""


class WrongOutput(ValueError):
    """An observation or a reward of a shape or type that cannot be one."""


def number_of(reward: Any) -> float:
    """A reward as a number; some environments give arrays of one.

    Raises:
        WrongOutput: If it is anything else.
    """
    numbers = np.asarray(reward)
    if numbers.size == 1 and numbers.dtype.kind in "biuf":
        return float(numbers.item())
    what = f"a reward of shape {numbers.shape}" if numbers.shape else f"the reward {reward!r:.80}"
    raise WrongOutput(f"gave {what}, where a number is needed")


def as_fault(index: int, doing: str, error: BaseException) -> Fault:
    """The fault of an exception that an environment raised.

    Args:
        index: Which environment.
        doing: What it was asked for, in words.
        error: Being handled.
    """
    trace = "" if isinstance(error, WrongOutput | SystemExit) else traceback.format_exc()
    return index, f"{error_in_words(error)} ({doing})", trace


def error_in_words(error: BaseException) -> str:
    """What an environment did when it raised this, as the rest of a sentence."""
    if isinstance(error, WrongOutput):
        return str(error)
    if isinstance(error, SystemExit):
        return f"ended the process by sys.exit({'' if error.code is None else repr(error.code)})"
    said = " ".join(str(error).split())
    return f"raised {type(error).__name__}{f': {said}' if said else ''}"


def close_each(envs: Iterable[tuple[int, gym.Env[Any, Any]]]) -> Fault | None:
    """Close all environments, whatever each of them raises; returns the first fault.

    Args:
        envs: With their indices.
    """
    first = None
    for index, env in envs:
        try:
            env.close()
        except STOPS:
            raise
        except BaseException as error:
            first = first or (index, f"{error_in_words(error)} (while it was closed)", "")
    return first


@contextmanager
def closing(env: "gym.vector.VectorEnv[Any, Any, Any]") -> Iterator[None]:
    """Close environments after this block; an exception of the block takes precedence over one of closing.

    Raises:
        EnvironmentFailure: If one cannot be closed.
    """
    try:
        yield
    except BaseException as error:
        try:
            env.close()
        except EnvironmentFailure as failure:
            error.add_note(f"Afterwards {failure}.")
        raise
    env.close()


def failure(fault: Fault) -> EnvironmentFailure:
    """The exception to raise for a fault, with the environment's traceback as a note."""
    index, what, trace = fault
    exception = EnvironmentFailure(index, what)
    if trace:
        exception.add_note(f"Traceback of environment {index}:\n{trace.strip()}")
    return exception


def check_finite(
    obs: Observations,
    rewards: npt.NDArray[np.float32],
    last_obs: Any,
    final_obs: Mapping[tuple[int, int], Observations],
) -> None:
    """Refuse rewards and observations that are infinite or NaN.

    Args:
        obs: ``[T, N, ...]``, before each step; a tensor or a dictionary of them, as the others.
        rewards: ``[T, N]``
        last_obs: ``[N, ...]``, after the last step.
        final_obs: By (step, environment), the last observations of truncated episodes.

    Raises:
        EnvironmentFailure: For the first that is not finite.
    """
    # A sum is finite only if its terms are, and is cheap.
    sums = [torch.from_numpy(rewards).sum()]
    trees = {name: entry for name, entry in entries(obs).items() if entry.is_floating_point()}
    for name, entry in trees.items():
        finals = [entries(final)[name] for final in final_obs.values()]
        sums += [entry.sum(), torch.from_numpy(entries(last_obs)[name]).sum(), *(final.sum() for final in finals)]
    if torch.stack([total.double() for total in sums]).isfinite().all():
        return
    wrong_rewards = np.argwhere(~np.isfinite(rewards))
    found = [(int(t) + 1, int(i), f"gave the reward {_shown(rewards[t, i], 'float32')}") for t, i in wrong_rewards]
    for name, entry in trees.items():
        inside = f" in {name!r}" if isinstance(obs, dict) else ""
        steps = [*enumerate(entry), (len(entry), torch.from_numpy(entries(last_obs)[name]))]
        each = [(t, i, row) for t, step_obs in steps for i, row in enumerate(step_obs)]
        each += [(t + 1, i, entries(final)[name]) for (t, i), final in final_obs.items()]
        found += [(t, i, _observed(row, inside)) for t, i, row in each if not row.isfinite().all()]
    if found:
        step, index, what = min(found)
        failure = EnvironmentFailure(index, what)
        failure.step = step
        raise failure


def too_large(obs: npt.NDArray[Any], step: int) -> EnvironmentFailure:
    """The exception to raise for observations ``[N, ...]`` after a step that are finite and cannot be normalized."""
    rows = obs.reshape(len(obs), -1)
    index, position = np.unravel_index(np.abs(rows).argmax(), rows.shape)
    failure = EnvironmentFailure(
        int(index),
        f"gave an observation whose number {position} of {rows.shape[1]} is {rows[index, position]:g}, whose square "
        "overflows, so that norm_obs=true cannot normalize it; scale it by a wrapper, or use norm_obs=false",
    )
    failure.step = step
    return failure


def _observed(obs: Tensor, inside: str) -> str:
    """An observation that is not finite, by its first such number and the entry that it is in."""
    flat = obs.flatten()
    position = int(torch.nonzero(~flat.isfinite())[0])
    value = _shown(flat[position].item(), flat.dtype)
    return f"gave an observation whose number {position} of {len(flat)}{inside} is {value}"


def _shown(value: float, dtype: Any) -> str:
    """A number; if infinite with its type, as it may be finite in a larger one."""
    return f"{value} in {str(dtype).removeprefix('torch.')}" if np.isinf(value) else str(value)
