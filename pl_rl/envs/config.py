"""Which environment, and how copies of it are stepped together."""

from dataclasses import dataclass, field
from typing import Any, Literal

Vectorization = Literal["auto", "sync", "async", "native"]


@dataclass(frozen=True)
class EnvConfig:
    """An environment by name, as a config file states it.

    Args:
        id: Name in gymnasium's registry, such as ``CartPole-v1``; ``package.module:Name-v0`` imports the module
            that registers it first.
        vectorization: ``sync`` steps the environments one after another in this process, ``async`` each in a worker
            process, ``native`` all at once in vectorised code, where the environment has such code. ``auto``
            is ``native`` where there is one and ``sync`` elsewhere.
        kwargs: Keyword arguments of the environment (and of ``gymnasium.make``, such as ``max_episode_steps``).
    """

    id: str
    vectorization: Vectorization = "auto"
    kwargs: dict[str, Any] = field(default_factory=dict)
