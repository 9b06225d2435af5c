"""Atari games preprocessed by ALE's C++ code (frame skip, max-pooling, resizing, stacking), a thread for each game.

Shapes: ``K`` stacked frames of ``H`` times ``W`` pixels.

Source: https://ale.farama.org/vector-environment/
"""

from collections.abc import Callable
from threading import Thread
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from pl_rl.envs.config import EnvConfig
from pl_rl.envs.make import AnyEnv, wrap, wrapper_parts
from pl_rl.envs.native import NoNativeVectorization
from pl_rl.envs.parallel import Step, SyncEnvs

ATARI_ENTRY_POINT = "ale_py.env:AtariEnv"

STANDARD_WRAPPERS = ["gymnasium.wrappers.AtariPreprocessing", "gymnasium.wrappers.FrameStackObservation"]
# They do not change actions, so a game's step may begin before its action has passed through them.
OUTER_WRAPPERS = {"pl_rl.envs.atari.EpisodicLife", "pl_rl.envs.atari.FireOnReset", "gymnasium.wrappers.ClipReward"}

# Arguments of the environment and of the standard wrappers that the C++ code has too, with their defaults; those with
# None must be given as numbers.
TAKEN = {
    "game": None,
    "repeat_action_probability": 0.25,
    "full_action_space": False,
    "max_num_frames_per_episode": None,
    "noop_max": 30,
    "frame_skip": 4,
    "screen_size": 84,
    "stack_size": None,
}
# Arguments of which it supports one value.
FIXED = {
    "frameskip": 1,
    "terminal_on_life_loss": False,
    "grayscale_obs": True,
    "grayscale_newaxis": False,
    "scale_obs": False,
    "padding_type": "reset",
}


class AtariGame(gym.Env[npt.NDArray[np.uint8], Any]):
    """One game, as ``AtariPreprocessing`` and ``FrameStackObservation`` around gymnasium's ``AtariEnv`` show it.

    The pictures are the same, pixel for pixel. A game begins with 0 to ``noop_max - 1`` idle frames, where the wrapper
    makes 1 to ``noop_max``, and they do not count towards the limit of frames.

    Args:
        **settings: Arguments of ``AtariVectorEnv``. Each game has one of its own, since several games in one make all
            steps together, and :class:`~pl_rl.envs.atari.EpisodicLife` goes on with a step in one game alone.
    """

    def __init__(self, **settings: Any) -> None:
        from ale_py.vector_env import AtariVectorEnv

        self._games = AtariVectorEnv(num_envs=1, num_threads=1, **settings)
        self.observation_space = self._games.single_observation_space
        self.action_space = self._games.single_action_space
        self._begun = False
        self._blank = 0
        self._first_frame = np.empty(0, np.uint8)

    def get_action_meanings(self) -> list[str]:
        """What each action does, as of gymnasium's environment."""
        return [action.name for action in self._games.ale.get_action_set()]

    def begin(self, action: int) -> None:
        """Start a step in the game's thread; the next call of :meth:`step` returns it."""
        if not self.action_space.contains(action):  # ALE's thread would fail, and recv() wait for ever
            raise ValueError(f"action {action} is not in {self.action_space}")
        self._games.send(np.array([action]))
        self._begun = True

    def step(self, action: int) -> tuple[npt.NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """One step.

        Args:
            action: Ignored if the step was begun by :meth:`begin`.

        Returns:
            Observation ``[K, H, W]``, reward, terminated, truncated, and the ``lives`` that are left.
        """
        if not self._begun:
            self.begin(action)
        self._begun = False
        (obs,), rewards, terminated, truncated, infos = self._games.recv()
        if self._blank:
            self._blank -= 1
            obs[: self._blank] = self._first_frame
        return obs, float(rewards[0]), bool(terminated[0]), bool(truncated[0]), {"lives": int(infos["lives"][0])}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.uint8], dict[str, Any]]:
        """Begin a game; returns the observation ``[K, H, W]`` and the ``lives``."""
        (obs,), infos = self._games.reset(seed=None if seed is None else seed % 2**31)
        # Before the first frame the stack is black in ALE, and that frame in FrameStackObservation.
        self._blank, self._first_frame = len(obs) - 1, obs[-1].copy()
        obs[: self._blank] = self._first_frame
        return obs, {"lives": int(infos["lives"][0])}

    def close(self) -> None:
        """End the thread."""
        self.__dict__.pop("_games", None)


class NativeAtariEnvs(SyncEnvs):
    """Games that are stepped in parallel. Observations are overwritten by the next step."""

    def step(self, actions: npt.NDArray[Any]) -> Step:
        """One step of all, as :meth:`SyncEnvs.step`."""
        for env, action in zip(self.envs, actions, strict=True):
            # An AtariGame, under wrappers that are declared to hold any environment.
            env.unwrapped.begin(action)  # type: ignore[attr-defined]
        return super().step(actions)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of each game to its own of ``N`` values, in parallel, as a replay takes long."""
        # Daemon threads, so that a signal can end the process meanwhile.
        each = zip(self.envs, values, strict=True)
        threads = [Thread(target=setattr, args=(env, name, value), daemon=True) for env, value in each]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def atari_game_fn(config: EnvConfig, training: bool) -> Callable[[], AnyEnv]:
    """A function that makes a game with its wrappers, of which C++ code does the first two.

    Raises:
        NoNativeVectorization: With the first setting that it does not support.
    """
    settings = _settings(config, training)

    def make() -> AnyEnv:
        env: AnyEnv = AtariGame(**settings)
        for wrapper in config.wrapped(training)[len(STANDARD_WRAPPERS) :]:
            env = wrap(env, wrapper)
        return env

    return make


def _settings(config: EnvConfig, training: bool) -> dict[str, Any]:
    """Arguments of :class:`AtariGame`."""
    wrappers = [wrapper_parts(wrapper) for wrapper in config.wrapped(training)]
    paths, arguments = [path for path, _ in wrappers], [init_args for _, init_args in wrappers]
    standard = len(STANDARD_WRAPPERS)
    if paths[:standard] != STANDARD_WRAPPERS:
        raise NoNativeVectorization(config.id, f"wrappers that do not begin with {' and '.join(STANDARD_WRAPPERS)}")
    for path in paths[standard:]:
        if path not in OUTER_WRAPPERS:
            raise NoNativeVectorization(config.id, f"the wrapper {path}")
    stated = {**TAKEN, "frameskip": 4, **gym.spec(config.id).kwargs, **config.kwargs, **arguments[0], **arguments[1]}
    for name, value in stated.items():
        if not (name in TAKEN and isinstance(value, str | int | float)) and value != FIXED.get(name, ...):
            raise NoNativeVectorization(config.id, f"{name}={value!r}")
    return {
        **{name: stated[name] for name in TAKEN.keys() - {"frame_skip", "screen_size", "stack_size"}},
        "frameskip": stated["frame_skip"],
        "img_height": stated["screen_size"],
        "img_width": stated["screen_size"],
        "stack_num": stated["stack_size"],
        # The outer wrappers do these if they are given; EpisodicLife continues a game after a life, which ALE does not.
        "reward_clipping": False,
        "episodic_life": False,
        "use_fire_reset": False,
    }
