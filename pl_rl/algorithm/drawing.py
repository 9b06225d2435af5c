"""Episodes that are drawn: as films, or in a window."""

import os
import sys
import traceback
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import gymnasium as gym

from pl_rl.algorithm.evaluation import Episodes, play
from pl_rl.envs import EnvConfig, make_env
from pl_rl.envs.faults import STOPS, close_each, closing, number_of
from pl_rl.envs.parallel import SyncEnvs
from pl_rl.errors import UsageError, installation, missing_package
from pl_rl.networks.actor_critic import ActorCritic
from pl_rl.networks.normalization import ObservationNormalizer


def record(
    network: ActorCritic,
    env_config: EnvConfig,
    num_episodes: int,
    seed: int,
    directory: Path,
    deterministic: bool = True,
    normalizer: ObservationNormalizer | None = None,
) -> Episodes:
    """Play episodes one after another and write each to ``directory/ID-episode-N.mp4``.

    Raises:
        UsageError: If the environment cannot be rendered, or a package for it or for writing videos is missing.
        EnvironmentFailure: If it fails.
    """
    if find_spec("moviepy") is None:
        raise UsageError(f"recording videos needs one more package; {installation('video')}")
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame renders without a display
    if sys.platform == "linux" and "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")  # and so does MuJoCo
    _check_drawable(env_config, "rgb_array")
    prefix = env_config.id.replace("/", "-")
    _make_room(directory / f"{prefix}-episode-{episode}.mp4" for episode in range(num_episodes))
    recorded = gym.wrappers.RecordVideo(
        make_env(env_config, render_mode="rgb_array"),
        str(directory),
        episode_trigger=lambda episode: episode < num_episodes,
        name_prefix=prefix,
        disable_logger=True,
    )
    env = SyncEnvs([lambda: gym.wrappers.TransformReward(recorded, number_of)], env_config.info_keys)
    with closing(env):
        return play(network, env, num_episodes, seed, deterministic, normalizer)


def watch(
    network: ActorCritic,
    env_config: EnvConfig,
    num_episodes: int,
    seed: int,
    deterministic: bool = True,
    normalizer: ObservationNormalizer | None = None,
) -> Episodes:
    """Play episodes one after another in a window, at the speed at which the environment draws.

    Raises:
        UsageError: If the environment has no window, or there is no screen.
        EnvironmentFailure: If it fails.
    """
    _check_drawable(env_config, "human")
    shown = make_env(env_config, render_mode="human")
    env = SyncEnvs([lambda: gym.wrappers.TransformReward(shown, number_of)], env_config.info_keys)
    with closing(env):
        return play(network, env, num_episodes, seed, deterministic, normalizer)


def _make_room(videos: Iterable[Path]) -> None:
    """Remove earlier videos, which may be links to other files or other names of them.

    Raises:
        UsageError: If one cannot be removed.
    """
    for path in videos:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise UsageError(
                f"{str(path)!r} is in the way of a video ({error.strerror}); move it away, or record into another "
                "folder"
            ) from error


def _check_drawable(env_config: EnvConfig, render_mode: str) -> None:
    """Render one frame, before a folder for videos is made.

    Args:
        env_config: The environment.
        render_mode: ``rgb_array`` for images, ``human`` for a window.

    Raises:
        UsageError: If it cannot be drawn so.
    """
    env = make_env(env_config, render_mode=render_mode)
    if env.render_mode != render_mode:
        what = "images, so there is nothing to record" if render_mode == "rgb_array" else "into a window"
        raise UsageError(f"environment {env_config.id!r} does not render {what}")
    try:
        env.reset()
        env.render()
    except gym.error.DependencyNotInstalled as error:
        missing = missing_package(error) or str(error)
        raise UsageError(f"drawing {env_config.id!r} needs one more package: {missing}") from error
    except STOPS:
        raise
    except BaseException as error:  # simulators raise all sorts
        _drop_quietly(error)
        way_out = (
            "without a screen, MuJoCo's need EGL or, with MUJOCO_GL=osmesa, OSMesa"
            if render_mode == "rgb_array"
            else "a window needs a screen; without one, --video FOLDER makes films"
        )
        raise UsageError(
            f"environment {env_config.id!r} cannot be drawn here, {type(error).__name__}: {error}; {way_out}"
        ) from error
    finally:
        close_each([(0, env)])  # a fault there is reported after the recording


def _drop_quietly(error: BaseException) -> None:
    """Free the half-made objects in its traceback; MuJoCo's finalizers would print a traceback of their own."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        traceback.clear_frames(error.__traceback__)
    finally:
        sys.unraisablehook = hook
