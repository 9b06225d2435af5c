"""PPO as a PyTorch Lightning module whose runs can be stopped and continued."""

from pl_rl.agent import Agent
from pl_rl.deploy.loading import load_policy
from pl_rl.envs import EnvConfig
from pl_rl.errors import RunFailure, UsageError
from pl_rl.networks.actor_critic import ActorCritic, CNNActorCritic, MLPActorCritic
from pl_rl.ppo import PPO
from pl_rl.trainer import Trainer

__all__ = [
    "PPO",
    "ActorCritic",
    "Agent",
    "CNNActorCritic",
    "EnvConfig",
    "MLPActorCritic",
    "RunFailure",
    "Trainer",
    "UsageError",
    "load_policy",
]
