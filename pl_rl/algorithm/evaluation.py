"""Evaluation: playing whole episodes."""

import dataclasses
import os
import sys
import traceback
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from pl_rl.envs import AnyVectorEnv, EnvConfig, make_env, make_vector_env
from pl_rl.envs.episode_info import EpisodeInfo, info_statistics
from pl_rl.envs.faults import STOPS, check_finite, close_each, closing, number_of
from pl_rl.envs.parallel import SyncEnvs
from pl_rl.errors import EnvironmentFailure, UsageError, installation, missing_package
from pl_rl.networks.actor_critic import ActorCritic
from pl_rl.networks.distributions import to_numpy
from pl_rl.networks.modes import evaluation_mode
from pl_rl.networks.normalization import ObservationNormalizer
from pl_rl.seeding.random_state import restore_random_state, save_random_state

# The largest limit in common use is Atari's, 27,000 steps of four frames.
LONGEST_EPISODE = 100_000
LIMIT_EPISODES = "give the environment a limit with --model.env.kwargs '{\"max_episode_steps\": N}'"


class Episodes(NamedTuple):
    """Episodes in the order in which they ended."""

    returns: list[float]
    """Undiscounted sums of rewards."""
    lengths: list[int]
    """Steps."""
    infos: list[EpisodeInfo]
    """What environments say at their ends, see :mod:`pl_rl.envs.episode_info`."""

    def statistics(self) -> dict[str, float]:
        """Mean, minimum, maximum and standard deviation of return and length; ``success_rate`` where it is known."""
        statistics: dict[str, float] = {}
        for name, numbers in [("return", np.array(self.returns)), ("length", np.array(self.lengths))]:
            statistics[f"{name}_mean"] = float(numbers.mean())
            statistics[f"{name}_min"] = float(numbers.min())
            statistics[f"{name}_max"] = float(numbers.max())
            statistics[f"{name}_std"] = float(numbers.std())
        return {**statistics, **info_statistics(self.infos)}


def format_return(value: float) -> str:
    """A return as text: three decimals below 10, as many environments' returns lie between 0 and 1, else one."""
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def evaluate(
    network: ActorCritic,
    env_config: EnvConfig,
    num_envs: int,
    num_episodes: int,
    seed: int,
    deterministic: bool = True,
    normalizer: ObservationNormalizer | None = None,
) -> Episodes:
    """Play episodes in environments made for this call: the outcome depends on the arguments alone.

    Args:
        network: The policy.
        env_config: The environment; worker processes are not started for it.
        num_envs: Environments that are stepped together.
        num_episodes: Episodes in all. Each environment plays a share fixed beforehand, so that short episodes do not
            bias the mean.
        seed: Of the environments and of sampled actions.
        deterministic: Take the most probable actions rather than sampled ones.
        normalizer: Normalizes observations for the network; not updated.
    """
    if env_config.vectorization == "async":
        env_config = dataclasses.replace(env_config, vectorization="auto")
    env = make_vector_env(env_config, min(num_envs, num_episodes))
    with closing(env):
        return play(network, env, num_episodes, seed, deterministic, normalizer)


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


@torch.no_grad()
def play(
    network: ActorCritic,
    env: AnyVectorEnv,
    num_episodes: int,
    seed: int,
    deterministic: bool,
    normalizer: ObservationNormalizer | None = None,
) -> Episodes:
    """Play ``num_episodes`` episodes in ``env`` from a seeded reset on; arguments as in :func:`evaluate`.

    The network is in evaluation mode. Afterwards the modes of its submodules and the states of the global random
    generators are restored, as an environment or a custom network may draw from these: evaluating more often changes
    nothing in training, and the same weights give the same episodes anywhere.

    An episode that has not ended after 100,000 steps counts as it is, and is the last of its environment.

    Raises:
        EnvironmentFailure: If an environment fails, or gives numbers that are not finite.
    """
    random_state = save_random_state()
    try:
        with evaluation_mode(network, normalizer):
            return _play(network, env, num_episodes, seed, deterministic, normalizer)
    finally:
        restore_random_state(random_state)


def _play(
    network: ActorCritic,
    env: AnyVectorEnv,
    num_episodes: int,
    seed: int,
    deterministic: bool,
    normalizer: ObservationNormalizer | None,
) -> Episodes:
    parameter = next(network.parameters())
    generator = torch.Generator().manual_seed(seed)
    remaining = np.full(env.num_envs, num_episodes // env.num_envs)
    remaining[: num_episodes % env.num_envs] += 1
    open_returns, open_lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, dtype=np.int64)
    episodes = Episodes([], [], [])
    try:
        obs, _ = env.reset(seed=seed)
    except EnvironmentFailure as failure:
        failure.when = "at the beginning of an evaluation"
        raise
    step = 0
    while remaining.any():
        step += 1
        actions = choose_actions(network, network_input(obs, parameter, normalizer), generator, deterministic)
        try:
            obs, rewards, terminated, truncated, infos = env.step(network.distribution.to_env(to_numpy(actions)))
            if not (np.isfinite(rewards).all() and (obs.dtype.kind != "f" or np.isfinite(obs).all())):
                check_finite(torch.empty(0), rewards[None], obs, {})
        except EnvironmentFailure as failure:
            failure.when = f"at step {step:,} of an evaluation"
            raise
        open_returns += rewards
        open_lengths += 1
        endless = (open_lengths >= LONGEST_EPISODE) & (remaining > 0)
        if endless.any():
            first = int(np.argmax(endless))
            rank_zero_info(
                f"Evaluation cut {endless.sum()} episode(s) that had not ended after {LONGEST_EPISODE:,} steps, "
                f"the first of environment {first} at a return of {format_return(float(open_returns[first]))}; "
                f"{LIMIT_EPISODES}."
            )
        for i in np.flatnonzero(terminated | truncated | endless):
            if remaining[i]:
                episodes.returns.append(float(open_returns[i]))
                episodes.lengths.append(int(open_lengths[i]))
                episodes.infos.append(infos.get("episode_info", {}).get(int(i), {}))
                remaining[i] = 0 if endless[i] else remaining[i] - 1
            open_returns[i] = open_lengths[i] = 0
    return episodes


def choose_actions(network: ActorCritic, obs: Tensor, generator: torch.Generator, deterministic: bool) -> Tensor:
    """What a network does, ``[B]`` or ``[B, A]``, before :meth:`ActionDistribution.to_env`.

    Args:
        network: The policy, in evaluation mode.
        obs: Its input ``[B, ...]``, as :func:`network_input` gives it.
        generator: Of sampled actions, on the CPU.
        deterministic: Take the most probable actions rather than sampled ones.
    """
    outputs = network.policy(obs)
    if deterministic:
        return network.distribution.mode(outputs)
    noise = network.distribution.noise(tuple(outputs.shape[:-1]), generator)
    return network.distribution.sample(outputs, noise.to(outputs.device))


def network_input(obs: Any, parameter: Tensor, normalizer: ObservationNormalizer | None) -> Tensor:
    """Observations ``[B, ...]`` of environments on a network's device.

    Args:
        obs: A NumPy array.
        parameter: One of the network, for its device and type, which floats are given; integers stay as they are.
        normalizer: Stands between the observations and the network.
    """
    tensor = torch.from_numpy(obs)
    if normalizer is not None:
        tensor = normalizer(tensor)
    return tensor.to(parameter.device, parameter.dtype if tensor.is_floating_point() else tensor.dtype)
