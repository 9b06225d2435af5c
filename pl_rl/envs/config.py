"""Which environment, and how copies of it are stepped together."""

from dataclasses import dataclass, field
from typing import Any, Literal

Vectorization = Literal["auto", "sync", "async", "native"]
ClassPath = str | dict[str, Any]


@dataclass(frozen=True)
class EnvConfig:
    """An environment by name, as a config file states it.

    A wrapper is the path of its class, such as ``gymnasium.wrappers.FlattenObservation``, or a mapping with that as
    ``class_path`` and its arguments beyond the environment as ``init_args``. Tuples, which YAML and JSON have not, are
    written as lists: an environment or a wrapper gets a tuple where its annotation asks for one or it does not take the
    list.

    Args:
        id: Name in gymnasium's registry, such as ``CartPole-v1``; ``package.module:Name-v0`` imports the module
            that registers it first.
        vectorization: ``sync`` steps the environments one after another in this process, ``async`` in worker
            processes, ``native`` all at once in vectorized or C++ code, where the environment has such code. ``auto``
            is ``native`` where there is one, elsewhere ``async`` if environments are slow enough for it to pay and
            ``sync`` if not; evaluation starts no worker processes.
        kwargs: Keyword arguments of the environment (and of ``gymnasium.make``, such as ``max_episode_steps``).
        imports: Modules to import first, which register environments.
        wrappers: Wrappers of each environment, from the innermost to the outermost.
        train_wrappers: Further wrappers, outside the others, of the environments that are trained in and not of those
            that evaluate.
        info_keys: Names of numbers in the ``info`` of an episode's last step, whose means over episodes are logged
            beside the return's; ``is_success`` or ``success`` is logged as ``success_rate`` without being named.
        timeout: Seconds after which making, resetting or stepping an environment in a worker process counts as hung.
        action_mask: Where the environment says which actions are allowed: ``info.KEY``, an entry of its dictionary of
            observations as ``obs.ENTRY``, or ``method.NAME``. It gives zeros and ones, one for each choice, those of a
            MultiDiscrete's dimensions one after another. Goes with a network such as MultiInputActorCritic.
    """

    id: str
    vectorization: Vectorization = "auto"
    kwargs: dict[str, Any] = field(default_factory=dict)
    imports: list[str] = field(default_factory=list)
    wrappers: list[ClassPath] = field(default_factory=list)
    train_wrappers: list[ClassPath] = field(default_factory=list)
    info_keys: list[str] = field(default_factory=list)
    timeout: float = 300.0
    action_mask: str | None = None

    def wrapped(self, training: bool) -> list[ClassPath]:
        """The wrappers for training or for evaluation, from the innermost to the outermost."""
        return [*self.wrappers, *self.train_wrappers] if training else self.wrappers
