"""Changes of a network that the shapes of its weights do not show."""

import re
import sys
from collections.abc import Mapping
from inspect import Parameter, signature
from typing import Any

from pl_rl.checkpoints import plain_data


def changed_network(there: Mapping[str, Any], here: Mapping[str, Any], cls: type) -> tuple[str, Any, Any] | None:
    """The first setting by which two networks of the same shapes differ: its name and both values.

    What is not known, such as the arguments in a function of a script, is not compared.

    Args:
        there: Its ``class_path`` and ``init_args``; the latter are ``None`` where only a script knows them.
        here: Likewise.
        cls: The class of the second one.
    """
    if not _names_class(there["class_path"], cls):
        return "class_path", there["class_path"], here["class_path"]
    if there["init_args"] is None or here["init_args"] is None:
        return None
    defaults = _defaults(cls)
    before, after = ({**defaults, **_comparable(description["init_args"])} for description in (there, here))
    for name in before:  # one without a default that only one of them names has a value that nobody knows
        if name in after and before[name] != after[name]:
            return name, before[name], after[name]
    return None


def _names_class(path: str, cls: type) -> bool:
    """Whether a path is that of a class, under this name or an older one; a script's ``__main__`` may be any module."""
    module, _, name = path.rpartition(".")
    if getattr(sys.modules.get(module), name, None) is cls:
        return True
    return "__main__" in (module, cls.__module__) and name == cls.__qualname__


def _defaults(cls: type) -> dict[str, Any]:
    """Of a class's arguments, those that are passed on to its bases included."""
    defaults: dict[str, Any] = {}
    for base in cls.__mro__:
        if "__init__" in vars(base):
            parameters = signature(vars(base)["__init__"]).parameters
            found = {name: p.default for name, p in parameters.items() if p.default is not Parameter.empty}
            defaults = {**found, **defaults}
            if all(parameter.kind != Parameter.VAR_KEYWORD for parameter in parameters.values()):
                break
    return _comparable(defaults)


def _comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As plain data, in which an object that is known by its address alone is known by its type."""
    return {
        name: re.sub(r" at 0x[0-9a-f]+", "", value) if isinstance(value, str) else value
        for name, value in plain_data(settings).items()
    }
