"""Networks as plain data: the class and arguments that checkpoints and configs name, and shapes as text."""

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

import gymnasium as gym

from pl_rl.errors import UsageError
from pl_rl.networks.actor_critic import ActorCritic

NetworkFactory = Callable[[gym.Space[Any], gym.Space[Any]], ActorCritic]


def describe_network(factory: NetworkFactory, network: ActorCritic) -> dict[str, Any]:
    """A network's ``class_path`` and ``init_args``, as a config file would state them.

    The arguments are ``None`` (unknown) if the factory is neither a class nor a ``functools.partial`` of one.
    """
    cls = type(network)
    init_args: dict[str, Any] | None = None
    if isinstance(factory, partial) and cls in (factory.func, *factory.args):
        init_args = dict(factory.keywords)
    elif factory is cls:
        init_args = {}
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": init_args}


def network_from_description(description: Mapping[str, Any]) -> NetworkFactory:
    """The inverse of :func:`describe_network`.

    Raises:
        UsageError: If the arguments are unknown, or the class cannot be imported or is not a network.
    """
    path, init_args = description["class_path"], description["init_args"]
    if init_args is None:
        raise UsageError(
            f"the network, a {path}, was made by a function that only its script knows; pass network=... there, or "
            "make it by a class or a functools.partial of one"
        )
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(import_module(module), name)
    except Exception as error:  # whatever the module does
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UsageError(f"the network class {path!r} cannot be imported: {what}") from error
    if not (isinstance(cls, type) and issubclass(cls, ActorCritic)):
        raise UsageError(f"{path!r} is not a network; it must be a subclass of pl_rl.ActorCritic")
    return partial(cls, **init_args)


def shape_in_words(shape: tuple[int, ...] | None) -> str:
    """A tensor's shape as text; ``None`` stands for a missing tensor."""
    return "absent" if shape is None else "x".join(map(str, shape)) or "a number"
