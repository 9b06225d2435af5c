"""Environments: which one, and many copies of it stepped together."""

from pl_rl.envs.config import EnvConfig
from pl_rl.envs.vector import AnyVectorEnv, make_env, make_vector_env

__all__ = ["AnyVectorEnv", "EnvConfig", "make_env", "make_vector_env"]
