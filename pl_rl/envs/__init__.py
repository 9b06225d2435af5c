"""Environments: which one, and many copies of it stepped together.

What belongs here: making, stepping, saving and restoring environments, what they do wrong, their spaces as plain data.
What does not: the policy that acts in them (``algorithm/``).
"""

from pl_rl.envs.config import EnvConfig
from pl_rl.envs.make import close_single, make_env, make_single
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
    "make_single",
    "make_vector_env",
    "replayed_steps",
    "restore_envs",
    "save_envs",
    "vectorization_of",
]
