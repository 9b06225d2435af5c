"""Making vector environments.

All of them reset an ended episode within the step that ended it (gymnasium's autoreset mode ``SAME_STEP``): the step's
observation is the next episode's first, the ended episode's last one is in ``infos["final_obs"]``, and what else its
environment says of it is in ``infos["episode_info"]``. So each step of a rollout is a real transition.
"""

from typing import Any

import gymnasium as gym
from gymnasium.vector import VectorEnv

from pl_rl.envs.auto_vectorization import workers_pay
from pl_rl.envs.config import EnvConfig
from pl_rl.envs.make import import_modules, make_env
from pl_rl.envs.mujoco_tasks import TASKS
from pl_rl.envs.native import NATIVE_VECTOR_ENVS, NoNativeVectorization
from pl_rl.envs.native_atari import ATARI_ENTRY_POINT, NativeAtariEnvs, atari_game_fn
from pl_rl.envs.native_mujoco import native_mujoco
from pl_rl.envs.parallel import SyncEnvs
from pl_rl.envs.replay import ReplayEnv
from pl_rl.envs.workers import AsyncEnvs
from pl_rl.errors import UsageError

AnyVectorEnv = VectorEnv[Any, Any, Any]


def make_vector_env(config: EnvConfig, num_envs: int, training: bool = False, shards: int = 1) -> AnyVectorEnv:
    """``num_envs`` copies of an environment, stepped together.

    Args:
        config: The environment.
        num_envs: How many.
        training: Whether they also have ``train_wrappers``.
        shards: Equal blocks of them; what one does, another must not change.

    Raises:
        UsageError: As :func:`~pl_rl.envs.make_env`; or if ``native`` vectorization does not exist, or does not support
            the settings or wrappers; or ``async`` cannot start processes.
    """
    import_modules(config)
    if config.vectorization in ("auto", "native"):
        try:
            return _make_native(config, num_envs, training, shards)
        except NoNativeVectorization:
            if config.vectorization == "native":
                raise
    env_fns = [lambda: ReplayEnv(lambda: make_env(config, training))] * num_envs
    in_workers = config.vectorization == "async"
    if config.vectorization == "auto" and training:
        in_workers = workers_pay(config, num_envs)
    keys = config.info_keys
    return AsyncEnvs(env_fns, config.timeout, keys) if in_workers else SyncEnvs(env_fns, keys)


def vectorization_of(env: AnyVectorEnv) -> str:
    """The ``vectorization`` of a vector environment: ``sync``, ``async`` or ``native``."""
    return {SyncEnvs: "sync", AsyncEnvs: "async"}.get(type(env), "native")


def _make_native(config: EnvConfig, num_envs: int, training: bool, shards: int) -> AnyVectorEnv:
    registered = gym.registry.get(config.id)
    if registered is None:
        raise NoNativeVectorization(config.id)
    if config.action_mask is not None:
        raise NoNativeVectorization(config.id, "an action mask")
    if registered.entry_point == ATARI_ENTRY_POINT:
        make_game = atari_game_fn(config, training)
        return NativeAtariEnvs([lambda: ReplayEnv(make_game)] * num_envs, config.info_keys)
    if registered.entry_point in TASKS:
        return native_mujoco(config, num_envs, training, registered.entry_point)
    entry_point = registered.vector_entry_point
    native = NATIVE_VECTOR_ENVS.get(entry_point) if isinstance(entry_point, str) else None
    if native is None:
        raise NoNativeVectorization(config.id)
    if config.wrapped(training):
        raise NoNativeVectorization(config.id, "wrappers")
    defaults = {**registered.kwargs, "max_episode_steps": registered.max_episode_steps}
    try:
        return native(num_envs=num_envs, shards=shards, **{**defaults, **config.kwargs})
    except TypeError as error:
        raise UsageError(f"environment {config.id!r} with kwargs={config.kwargs} cannot be made: {error}") from error
