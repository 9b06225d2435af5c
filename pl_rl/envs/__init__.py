"""Environments: which one, and many copies of it stepped together."""

from pl_rl.envs.config import EnvConfig
from pl_rl.envs.make import close_single, make_env
from pl_rl.envs.snapshot import SNAPSHOTS, Restored, Snapshot, replayed_steps, restore_envs, save_envs
from pl_rl.envs.vector import AnyVectorEnv, make_vector_env, vectorization_of

__all__ = [
    "SNAPSHOTS",
    "AnyVectorEnv",
    "EnvConfig",
    "Restored",
    "Snapshot",
    "close_single",
    "make_env",
    "make_vector_env",
    "replayed_steps",
    "restore_envs",
    "save_envs",
    "vectorization_of",
]
