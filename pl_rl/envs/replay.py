"""Saving and restoring an environment by replay, without access to its state.

Pickling is unsafe: copies of MuJoCo, Atari and Box2D environments are *fresh* ones that run and are silently wrong. An
environment that is deterministic given its seed and its actions is restored by a replay of these from a seeded reset,
and checksums of its outputs verify that it is deterministic.
"""

from collections.abc import Callable
from typing import Any, SupportsFloat, TypedDict
from zlib import crc32

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from pl_rl.envs.digest import Digest
from pl_rl.envs.faults import STOPS, WrongOutput, error_in_words, number_of
from pl_rl.envs.wrapper_state import Arrays, load_lasting, needs_new_object, save_lasting
from pl_rl.networks.records import entries_of, space_tree, tree_map
from pl_rl.seeding.streams import derive_seed

FIRST_ANCHOR_STEPS = 100
LONGEST_ANCHOR_STEPS = 1000

AnyEnv = gym.Env[Any, Any]


class Window(TypedDict):
    """Actions and resets since one anchor, and checksums of the outputs."""

    anchors: int
    """Number of anchors before this one, since the reset with a seed from outside."""
    lasting: list[Arrays]
    """Wrapper state at the anchor that survives seeded resets, see :mod:`pl_rl.envs.wrapper_state`."""
    actions: npt.NDArray[Any]
    """``[T, ...]``"""
    resets: list[int]
    """The number of actions before each further episode."""
    sums: list[list[int]] | None
    """Of each episode, from :meth:`Digest.sums`; ``None`` in old checkpoints, which have none."""


class ReplayEnv(gym.Wrapper[Any, Any, Any, Any]):
    """Records its last *anchor* (a reset with a known seed) and all actions and resets since.

    At an episode's end it may reset with a new seed, so that a replay stays short: after 100 steps, then 200, 400 and
    so on up to 1,000. Seldom, as a seeded reset costs far more than a plain one (190 ms instead of 8 in Atari), but
    early for the first time, to find out soon about an environment that a seeded reset does not bring to a known state.
    While the ``reset_goes_on`` of a wrapper says that the next reset continues the game, the anchor is postponed.

    It is the outermost wrapper, so that the state of the others is replayed too; state that survives seeded resets (see
    :mod:`pl_rl.envs.wrapper_state`) is saved at the anchor.

    Checksums verify that a replay reproduces the outputs. State that survives a seeded reset unknown to pl_rl, such as
    a count of episodes, often shows only at an episode's end, and the last anchor may be that of the open episode; so
    the window before the last anchor is kept and replayed, too.

    Args:
        make: Makes the environment; called again to restore a state, so that nothing of an earlier episode remains.

    Attributes:
        replayed_return: Sum of the rewards of the open episode in a replay, each rounded to float32 as in rollouts.
        replayed_obs: The last observation of a replay.
        replay_fault: What is wrong with a replay, as the rest of a sentence; ``None`` if nothing is.
    """

    def __init__(self, make: Callable[[], AnyEnv]) -> None:
        super().__init__(make())
        self._make = make
        self._first_seed = 0
        self._anchors = 0
        self._lasting: list[Arrays] = save_lasting(self.env)
        self._actions: list[Any] = []
        self._resets: list[int] = []
        self._digest = Digest()
        self._before: Window | None = None
        self._spaces = space_tree(self.observation_space)
        self._renews = needs_new_object(self.env)
        self._may_go_on = self.env.has_wrapper_attr("reset_goes_on")
        # An instance attribute shadows the method and saves callers a look-up and a call.
        self.step = self._recording_step()  # type: ignore[method-assign, assignment]
        self.replayed_return = 0.0
        self.replayed_obs: Any = None
        self.replay_fault: str | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; without a seed, and if an anchor is due, with a seed derived from the first one."""
        if seed is not None:
            self._first_seed, self._anchors, self._before = seed, 0, None
        elif self._anchor_is_due():
            self._before = self._window()
            self._anchors += 1
        else:
            self._begin_episode()
            return self._noted(self.env.reset(options=options))
        self._forget()
        self._lasting = save_lasting(self.env)
        if self._renews:
            self._renew()
        return self._noted(self.env.reset(seed=self._anchor_seed(), options=options))

    @property
    def replay(self) -> dict[str, Any]:
        """What a replay needs. Assigning it replays it in a new environment."""
        return {"first_seed": self._first_seed, "window": self._window(), "before": self._before}

    @replay.setter
    def replay(self, replay: dict[str, Any]) -> None:
        self._first_seed, self._before = replay["first_seed"], replay["before"]
        faults = []
        try:
            for window in (self._before, replay["window"]):
                if window is not None:
                    self.replayed_obs = self._replay(window)
                    faults.append(self._difference(window))
        except STOPS:
            raise
        except BaseException as error:  # one that is not deterministic may refuse a recorded action
            faults.append(f"failed, as it {error_in_words(error)}")
            self.replayed_obs = tree_map(lambda space: np.zeros(space.shape or (), space.dtype), self._spaces)
        self.replay_fault = next(filter(None, faults), None)

    def _window(self) -> Window:
        return {
            "anchors": self._anchors,
            "lasting": self._lasting,
            "actions": np.array(self._actions),
            "resets": list(self._resets),
            "sums": self._digest.sums(),
        }

    def _forget(self) -> None:
        """Begin a new window."""
        self._actions.clear()
        self._resets.clear()
        self._digest.clear()

    def _begin_episode(self) -> None:
        """Record a reset that is no anchor."""
        self._resets.append(len(self._actions))
        self._digest.begin_episode()

    def _anchor_is_due(self) -> bool:
        if len(self._actions) < anchor_steps(self._anchors):
            return False
        return not (self._may_go_on and self.env.get_wrapper_attr("reset_goes_on"))

    def _renew(self) -> None:
        """Replace the environment by a new one, with the wrapper state of the last anchor."""
        self.env.close()
        self.env = self._make()
        load_lasting(self.env, self._lasting)
        # As in the constructor, for the new object.
        self.step = self._recording_step()  # type: ignore[method-assign, assignment]

    def _replay(self, window: Window) -> Any:
        """Replay a window in a new environment, recording it again; returns the last observation."""
        self._anchors, self._lasting = window["anchors"], window["lasting"]
        self._renew()
        self._forget()
        self.replayed_return = 0.0
        obs, _ = self._noted(self.env.reset(seed=self._anchor_seed()))
        waiting = iter([*window["resets"], None])
        next_reset = next(waiting)
        for number, action in enumerate(window["actions"].copy(), start=1):  # a copy, as they may be clipped in place
            obs, reward, *_ = self.step(action)
            self.replayed_return += float(np.float32(reward))
            if number == next_reset:
                self.replayed_return = 0.0
                self._begin_episode()
                obs, _ = self._noted(self.env.reset())
                next_reset = next(waiting)
        # In the space's type, as vector environments store it: many environments return float64 for float32.
        return tree_map(lambda space, entry: np.array(entry, space.dtype), self._spaces, obs)

    def _difference(self, window: Window) -> str | None:
        """The first difference of a replay, in words; ``None`` if there is none, or no checksums to compare."""
        known = window["sums"] or []
        for start, ours, theirs in zip([0, *window["resets"]], self._digest.sums(), known, strict=False):
            if ours != theirs:
                what = "observations" if ours[0] != theirs[0] else "rewards or the end"
                return f"led elsewhere, by the {what} of the episode that began {start} steps after an anchor"
        return None

    def _recording_step(self) -> Callable[[Any], tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]]:
        """``step`` with recording; a closure, as attribute look-ups would double its overhead."""
        inner, remember, check = self.env.step, self._actions.append, self._check
        digest, observed, earn = self._digest, self._digest.observed, self._digest.rewards.append
        is_array = bool(self.action_space.shape)
        shape, dtype = self.observation_space.shape, self.observation_space.dtype

        def step(action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
            remember(action.copy() if is_array else action)  # an environment may clip an array in place
            taken = inner(action)
            obs, reward, terminated, truncated, info = taken
            if type(obs) is not np.ndarray or obs.dtype is not dtype or obs.shape != shape:
                check(obs)
            try:
                observed[0] = crc32(obs, observed[0])
            except (TypeError, ValueError, BufferError):  # not an array, or not contiguous
                digest.observe(obs)
            try:
                # Gymnasium declares SupportsFloat; what else environments give raises here, and is caught.
                earn(reward)  # type: ignore[arg-type]
            except (TypeError, ValueError, DeprecationWarning):
                number = number_of(reward)
                earn(number)
                taken = obs, number, terminated, truncated, info
            if terminated or truncated:
                digest.end(terminated, truncated)
            return taken

        return step

    def _noted(self, begun: tuple[Any, dict[str, Any]]) -> tuple[Any, dict[str, Any]]:
        """Check and digest the result of a reset, and return it."""
        self._check(begun[0])
        self._digest.observe(begun[0])
        return begun

    def _check(self, obs: Any) -> None:
        """Refuse an observation that NumPy would broadcast or cast into that of the space.

        Raises:
            WrongOutput: With its shape and type and those of the space.
        """
        for name, space in entries_of(self.observation_space).items():
            array, inside = (
                (np.asarray(obs[name]), f" with {name!r}") if isinstance(obs, dict) else (np.asarray(obs), "")
            )
            if space.shape is None or space.dtype is None:
                continue
            if array.shape != space.shape or not np.can_cast(array.dtype, space.dtype, "same_kind"):
                raise WrongOutput(
                    f"gave an observation{inside} of shape {array.shape} and type {array.dtype}, where its space has "
                    f"{space.shape} and {space.dtype}"
                )

    def _anchor_seed(self) -> int:
        return anchor_seed(self._first_seed, self._anchors)


def anchor_steps(anchors: int) -> int:
    """Steps after which an episode's end becomes an anchor, if there have been so many."""
    return min(FIRST_ANCHOR_STEPS << min(anchors, 10), LONGEST_ANCHOR_STEPS)


def anchor_seed(first_seed: int, anchors: int) -> int:
    """The seed of an anchor, given that from outside and how many came before."""
    return first_seed if anchors == 0 else derive_seed(first_seed, anchors)
