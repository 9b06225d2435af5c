"""Action masks as an entry of the observations, so that whatever carries these carries the masks."""

from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from pl_rl.envs.faults import WrongOutput
from pl_rl.errors import UsageError
from pl_rl.networks.records import MASK, ActionMask, entries, entries_of

SOURCES = ("info", "obs", "method")


class MaskedActions(gym.Wrapper[Any, Any, Any, Any]):
    """Adds the entry ``action_mask``; observations that are no dictionary become the entry ``obs`` beside it.

    After the last step of an episode there is no action to choose: what the environment gives there does not count.

    Args:
        env: With observations that are an array or a dictionary of arrays by path.
        source: As :attr:`pl_rl.EnvConfig.action_mask`.

    Raises:
        UsageError: If there is no such source, or actions are not choices.
    """

    def __init__(self, env: gym.Env[Any, Any], source: str) -> None:
        super().__init__(env)
        self._kind, _, self._name = source.partition(".")
        if self._kind not in SOURCES or not self._name:
            raise UsageError(
                f"env.action_mask={source!r} must be info.KEY, obs.ENTRY or method.NAME, such as info.action_mask"
            )
        self._sizes = _choices(env.action_space)
        self._starts = np.cumsum([0, *self._sizes[:-1]])
        self._size = sum(self._sizes)
        spaces = entries_of(env.observation_space)
        if self._kind == "obs" and spaces.pop(self._name, None) is None:
            raise UsageError(
                f"env.action_mask={source!r} names no entry of the observations; they are {', '.join(spaces)}"
            )
        if self._kind == "method" and not env.has_wrapper_attr(self._name):
            raise UsageError(f"env.action_mask={source!r} names no method of the environment; correct the name")
        if MASK in spaces or not spaces:
            raise UsageError(
                f"env.action_mask={source!r} leaves {', '.join(spaces) or 'nothing'} as observations; rename an entry "
                "by a wrapper, or add one"
            )
        self.observation_space = gym.spaces.Dict({**spaces, MASK: ActionMask(self._size)})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode.

        Raises:
            WrongOutput: If the mask is none.
        """
        obs, info = self.env.reset(seed=seed, options=options)
        return self._with(self._mask(obs, info), obs), info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """One step.

        Raises:
            WrongOutput: If the mask is none.
        """
        obs, reward, terminated, truncated, info = self.env.step(action)
        over = terminated or truncated
        mask = np.ones(self._size, np.int8) if over else self._mask(obs, info)
        return self._with(mask, obs), reward, terminated, truncated, info

    def _with(self, mask: npt.NDArray[np.int8], obs: Any) -> dict[str, Any]:
        left_out = self._name if self._kind == "obs" else None
        return {**{name: entry for name, entry in entries(obs).items() if name != left_out}, MASK: mask}

    def _mask(self, obs: Any, info: dict[str, Any]) -> npt.NDArray[np.int8]:
        """``[P]``, one for each choice that is allowed.

        Raises:
            WrongOutput: If there is none, it has another size, or allows nothing.
        """
        if self._kind == "method":
            given = self.env.get_wrapper_attr(self._name)()
        else:
            given = entries(obs)[self._name] if self._kind == "obs" else info.get(self._name)
        if given is None:
            raise WrongOutput(f"gave no action mask: there is no {self._kind}.{self._name}")
        parts = given if isinstance(given, tuple | list) else [given]
        mask = np.concatenate([np.ravel(part) for part in parts]) if len(parts) else np.empty(0)
        if len(mask) != self._size:
            raise WrongOutput(f"gave an action mask of {len(mask)} numbers, where there are {self._size} choices")
        if mask.dtype.kind not in "biufO" or np.count_nonzero((allowed := mask.astype(bool)) != mask):
            raise WrongOutput("gave an action mask with other numbers than 0 and 1")
        in_dimensions = np.logical_or.reduceat(allowed, self._starts)
        if np.count_nonzero(in_dimensions) < len(in_dimensions):
            number = int(np.argmin(in_dimensions))
            of = f" in dimension {number}" if len(self._sizes) > 1 else ""
            raise WrongOutput(f"gave an action mask that allows no action{of}")
        return mask.astype(np.int8)


def _choices(space: gym.Space[Any]) -> list[int]:
    """How many choices there are in each dimension.

    Raises:
        UsageError: If actions are not choices.
    """
    if isinstance(space, gym.spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, gym.spaces.MultiDiscrete):
        return [int(count) for count in space.nvec.flatten()]
    raise UsageError(f"env.action_mask needs actions that are Discrete or MultiDiscrete, not {space}; leave it out")
