"""Episodes that are drawn: as films, or in a window."""

import os
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import gymnasium as gym

from pl_rl.algorithm.evaluation import Episodes, play
from pl_rl.envs import EnvConfig, make_env
from pl_rl.envs.faults import STOPS, close_each, closing, number_of
from pl_rl.envs.parallel import SyncEnvs
from pl_rl.errors import RunFailure, UsageError, installation, missing_package
from pl_rl.networks.actor_critic import ActorCritic
from pl_rl.networks.normalization import ObservationNormalizer

FilmFormat = Literal["mp4", "gif"]
GIF_FPS = 20


def record(
    network: ActorCritic,
    env_config: EnvConfig,
    num_episodes: int,
    seed: int,
    directory: Path,
    deterministic: bool = True,
    normalizer: ObservationNormalizer | None = None,
    file_format: FilmFormat = "mp4",
    suffix: str = "",
) -> Episodes:
    """Play episodes one after another and write each to ``directory/ID-episode-N.mp4``.

    Args:
        network: The policy.
        env_config: The environment.
        num_episodes: How many.
        seed: Of the environment and of sampled actions.
        directory: Of the files.
        deterministic: Take the most probable actions rather than sampled ones.
        normalizer: Normalizes observations for the network; not updated.
        file_format: ``mp4``, or ``gif`` for pages that show pictures alone.
        suffix: After the environment's name in the names of the files.

    Raises:
        UsageError: If the environment cannot be rendered, or a package for it or for writing videos is missing.
        EnvironmentFailure: If it fails.
    """
    check_recordable(env_config)
    films = [film_path(directory, env_config, episode, suffix) for episode in range(num_episodes)]
    _make_room(films if file_format == "mp4" else [*films, *(film.with_suffix(".gif") for film in films)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*Overwriting existing videos")  # said of any folder that is there
        recorded = gym.wrappers.RecordVideo(
            make_env(env_config, render_mode="rgb_array"),
            str(directory),
            episode_trigger=lambda episode: episode < num_episodes,
            name_prefix=_prefix(env_config, suffix),
            disable_logger=True,
        )
    env = SyncEnvs([lambda: gym.wrappers.TransformReward(recorded, number_of)], env_config.info_keys)
    with closing(env):
        episodes = play(network, env, num_episodes, seed, deterministic, normalizer)
    if file_format == "gif":
        for film in films:
            write_gif(film, film.with_suffix(".gif"))
            film.unlink()
    return episodes


def film_path(directory: Path, env_config: EnvConfig, episode: int, suffix: str = "") -> Path:
    """The file of an episode that :func:`record` writes."""
    return directory / f"{_prefix(env_config, suffix)}-episode-{episode}.mp4"


def _prefix(env_config: EnvConfig, suffix: str) -> str:
    return f"{env_config.id.replace('/', '-')}{suffix}"


def check_recordable(env_config: EnvConfig) -> None:
    """Refuse what cannot be filmed.

    Raises:
        UsageError: If the environment cannot be rendered, or a package for it or for writing videos is missing.
    """
    if find_spec("moviepy") is None:
        raise UsageError(f"recording videos needs one more package; {installation('video')}")
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame renders without a display
    if sys.platform == "linux" and "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")  # and so does MuJoCo
    _check_drawable(env_config, "rgb_array")


def write_gif(film: Path, gif: Path, seconds: float | None = None) -> None:
    """A film as an animated picture of 20 frames a second.

    Args:
        film: An MP4 file.
        gif: The file to write.
        seconds: How much of it at most; ``None`` takes all.

    Raises:
        RunFailure: If it cannot be written.
    """
    from moviepy.config import FFMPEG_BINARY  # it may not be there

    limit = [] if seconds is None else ["-t", str(seconds)]
    # Its own colours for each film, rather than a fixed choice of 256.
    picture = ["-vf", f"fps={GIF_FPS},split[a][b];[a]palettegen[colours];[b][colours]paletteuse", "-loop", "0"]
    files = ["-i", str(film), *limit, *picture, "-f", "gif", str(gif)]
    done = subprocess.run([FFMPEG_BINARY, "-v", "error", "-y", *files], stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        said = " ".join(done.stderr.decode(errors="replace").split())
        raise RunFailure(f"{str(gif)!r} cannot be written: {said or f'ffmpeg ended with status {done.returncode}'}")


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
