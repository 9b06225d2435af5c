"""Building vector environments.

Every vector environment that comes out of here resets an ended episode within the step that ended it
(gymnasium's ``SAME_STEP``): the step's observation is the next episode's first, and the ended episode's last one is in
``infos["final_obs"]``. So each step of a rollout is a real transition.
"""

import difflib
from collections.abc import Callable
from typing import Any

import gymnasium as gym
from gymnasium.vector import VectorEnv

from pl_rl.envs.config import EnvConfig
from pl_rl.envs.native import NATIVE_VECTOR_ENVS
from pl_rl.envs.parallel import AsyncEnvs, SyncEnvs
from pl_rl.envs.replay import ReplayEnv
from pl_rl.errors import UsageError

AnyVectorEnv = VectorEnv[Any, Any, Any]


def make_env(config: EnvConfig, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """A single environment.

    Raises:
        UsageError: If it is not registered, lacks a package or does not take its keyword arguments.
    """
    try:
        # Not every environment takes a render mode, so None is not passed on.
        render: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
        return gym.make(config.id, **render, **config.kwargs)
    except gym.error.DependencyNotInstalled as error:
        raise UsageError(f"environment {config.id!r} needs a package that is not installed: {error}") from error
    except (gym.error.UnregisteredEnv, gym.error.DeprecatedEnv, ModuleNotFoundError) as error:
        nearest = difflib.get_close_matches(config.id, gym.registry, n=3, cutoff=0.4)
        hint = f"; the nearest names are {', '.join(nearest)}" if nearest else ""
        raise UsageError(f"there is no environment {config.id!r}{hint}") from error
    except (TypeError, gym.error.Error) as error:
        raise UsageError(f"environment {config.id!r} with kwargs={config.kwargs} cannot be made: {error}") from error


def make_vector_env(config: EnvConfig, num_envs: int) -> AnyVectorEnv:
    """``num_envs`` copies of an environment, stepped together.

    Raises:
        UsageError: As :func:`make_env`, and where ``native`` is asked of an environment that has no such code.
    """
    native = _native_class(config)
    if config.vectorization == "native" and native is None:
        raise UsageError(f"environment {config.id!r} has no native vectorization; use auto, sync or async")
    if native is not None and config.vectorization in ("auto", "native"):
        return _make_native(native, config, num_envs)
    env_fns = [lambda: ReplayEnv(lambda: make_env(config))] * num_envs
    return AsyncEnvs(env_fns) if config.vectorization == "async" else SyncEnvs(env_fns)


def _native_class(config: EnvConfig) -> Callable[..., AnyVectorEnv] | None:
    registered = gym.registry.get(config.id)
    if registered is None or not isinstance(registered.vector_entry_point, str):
        return None
    return NATIVE_VECTOR_ENVS.get(registered.vector_entry_point)


def _make_native(native: Callable[..., AnyVectorEnv], config: EnvConfig, num_envs: int) -> AnyVectorEnv:
    registered = gym.registry[config.id]
    defaults = {**registered.kwargs, "max_episode_steps": registered.max_episode_steps}
    try:
        return native(num_envs=num_envs, **{**defaults, **config.kwargs})
    except TypeError as error:
        raise UsageError(f"environment {config.id!r} with kwargs={config.kwargs} cannot be made: {error}") from error
