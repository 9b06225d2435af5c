"""State that survives a seeded reset, such as a wrapper's running statistics: a replay from there needs it."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.wrappers import NormalizeObservation, NormalizeReward
from gymnasium.wrappers.utils import RunningMeanStd

AnyEnv = gym.Env[Any, Any]
Arrays = dict[str, npt.NDArray[Any]]

REMADE_AT_ANCHORS: set[str] = {"gymnasium.envs.box2d.bipedal_walker.BipedalWalker"}
"""Environments, by ``module.Class`` (of them or of a base), that carry state over a seeded reset, so that they have to
be made anew at each anchor. BipedalWalker keeps its Box2D world. Add your own here."""


class LastingState(NamedTuple):
    """How a wrapper's state that survives seeded resets is saved and loaded."""

    save: Callable[[Any], Arrays]
    """Takes the wrapper."""
    load: Callable[[Any, Arrays], None]
    """Takes another wrapper and the state."""


def _save_statistics(statistics: RunningMeanStd) -> Arrays:
    return {name: np.array(getattr(statistics, name)) for name in ("mean", "var", "count")}


def _load_statistics(statistics: RunningMeanStd, state: Arrays) -> None:
    statistics.mean, statistics.var = state["mean"].copy(), state["var"].copy()
    # A Python float, as it was: a NumPy float64 would promote float32 statistics.
    statistics.count = float(state["count"])


def _save_reward_normalizer(wrapper: NormalizeReward[Any, Any]) -> Arrays:
    return {**_save_statistics(wrapper.return_rms), "discounted_reward": wrapper.discounted_reward.copy()}


def _load_reward_normalizer(wrapper: NormalizeReward[Any, Any], state: Arrays) -> None:
    _load_statistics(wrapper.return_rms, state)
    wrapper.discounted_reward = state["discounted_reward"].copy()


WRAPPER_STATES: dict[type[Any], LastingState] = {
    NormalizeObservation: LastingState(
        lambda wrapper: _save_statistics(wrapper.obs_rms),
        lambda wrapper, state: _load_statistics(wrapper.obs_rms, state),
    ),
    NormalizeReward: LastingState(_save_reward_normalizer, _load_reward_normalizer),
}
"""By the class of a wrapper, or of its nearest base that is here; add your own wrapper's."""


def save_lasting(env: AnyEnv) -> list[Arrays]:
    """The state of each wrapper that has state surviving seeded resets, from the outermost to the innermost."""
    return [lasting.save(wrapper) for wrapper, lasting in _lasting(env)]


def load_lasting(env: AnyEnv, states: list[Arrays]) -> None:
    """The inverse of :func:`save_lasting`, for an environment with the same wrappers."""
    for (wrapper, lasting), state in zip(_lasting(env), states, strict=True):
        lasting.load(wrapper, state)


def needs_new_object(env: AnyEnv) -> bool:
    """Whether a seeded reset leaves state of earlier episodes behind, see ``REMADE_AT_ANCHORS``."""
    names = {f"{cls.__module__}.{cls.__qualname__}" for cls in type(env.unwrapped).__mro__}
    return not names.isdisjoint(REMADE_AT_ANCHORS)


def _lasting(env: AnyEnv) -> Iterator[tuple[gym.Wrapper[Any, Any, Any, Any], LastingState]]:
    while isinstance(env, gym.Wrapper):
        lasting = next((WRAPPER_STATES[cls] for cls in type(env).__mro__ if cls in WRAPPER_STATES), None)
        if lasting is not None:
            yield env, lasting
        env = env.env
