"""PPO as a PyTorch Lightning module whose runs can be stopped and continued."""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from pl_rl.errors import RunFailure, UsageError
from pl_rl.imports import quick_imports

if TYPE_CHECKING:
    from pl_rl.agent import Agent
    from pl_rl.deploy.loading import load_policy
    from pl_rl.envs import EnvConfig
    from pl_rl.networks.actor_critic import ActorCritic, CNNActorCritic, MLPActorCritic
    from pl_rl.networks.multi_input import MultiInputActorCritic
    from pl_rl.networks.recurrent import RecurrentActorCritic
    from pl_rl.ppo import PPO
    from pl_rl.trainer import Trainer

__version__ = "0.1.0"

__all__ = [
    "PPO",
    "ActorCritic",
    "Agent",
    "CNNActorCritic",
    "EnvConfig",
    "MLPActorCritic",
    "MultiInputActorCritic",
    "RecurrentActorCritic",
    "RunFailure",
    "Trainer",
    "UsageError",
    "load_policy",
]

# Imported when they are first asked for, as Lightning takes seconds: ``--help`` and ``plot`` do without it.
_LATE = {
    "PPO": "pl_rl.ppo",
    "ActorCritic": "pl_rl.networks.actor_critic",
    "Agent": "pl_rl.agent",
    "CNNActorCritic": "pl_rl.networks.actor_critic",
    "EnvConfig": "pl_rl.envs",
    "MLPActorCritic": "pl_rl.networks.actor_critic",
    "MultiInputActorCritic": "pl_rl.networks.multi_input",
    "RecurrentActorCritic": "pl_rl.networks.recurrent",
    "Trainer": "pl_rl.trainer",
    "load_policy": "pl_rl.deploy.loading",
}


def __getattr__(name: str) -> Any:
    if name in _LATE:
        with quick_imports():
            globals()[name] = getattr(import_module(_LATE[name]), name)
        return globals()[name]
    if name in _modules():
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _modules() -> set[str]:
    return {module.name for module in iter_modules(__path__)}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
