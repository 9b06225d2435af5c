"""Environments: making them, stepping many copies together, saving and restoring their state.

What belongs here: vector environments, replay and snapshots, faults of environments, their spaces as plain data.
What does not: the policy that acts in them (``algorithm/``), statistics of their outputs (``networks/``).
"""

from pl_rl.envs.config import EnvConfig
from pl_rl.envs.make import close_single, make_env, make_single
from pl_rl.envs.snapshot import (
    SNAPSHOTS,
    Restored,
    Snapshot,
    join_shards,
    keep_envs,
    replayed_steps,
    restore_envs,
    save_envs,
    save_shards,
)
from pl_rl.envs.vector import AnyVectorEnv, make_vector_env, vectorization_of

__all__ = [
    "SNAPSHOTS",
    "AnyVectorEnv",
    "EnvConfig",
    "Restored",
    "Snapshot",
    "close_single",
    "join_shards",
    "keep_envs",
    "make_env",
    "make_single",
    "make_vector_env",
    "replayed_steps",
    "restore_envs",
    "save_envs",
    "save_shards",
    "vectorization_of",
]
