"""Changes of a network that the shapes of its weights do not show."""

import re
import sys
from collections.abc import Iterable, Mapping
from inspect import Parameter, signature
from typing import Any

from torch import nn

from pl_rl.files.plain_data import plain_data


def changed_network(there: Mapping[str, Any], here: Mapping[str, Any], cls: type) -> tuple[str, Any, Any] | None:
    """The first setting by which two networks of the same shapes differ: its name and both values.

    Settings that are not known, such as arguments within a function of a script, are not compared.

    Args:
        there: ``class_path`` and ``init_args`` of one; the latter are ``None`` where only a script knows them.
        here: Those of the other.
        cls: The class of the other.
    """
    if not _names_class(there["class_path"], cls):
        return "class_path", there["class_path"], here["class_path"]
    if there["init_args"] is None or here["init_args"] is None:
        return None
    defaults = _defaults(cls)
    before, after = ({**defaults, **_comparable(description["init_args"])} for description in (there, here))
    for name in before:  # one without a default that only one of them names has a value that nobody knows
        if name in after and not _same(before[name], after[name]):
            return name, before[name], after[name]
    return None


def structure_of(network: nn.Module) -> str:
    """The layers of a network as text, one per line, with the ``extra_repr`` of PyTorch's own.

    The ``extra_repr`` of other classes is left out, as it may show values that change as they learn.
    """
    lines = []
    for name, layer in network.named_modules():
        about = layer.extra_repr() if type(layer).extra_repr.__module__.startswith("torch.") else ""
        if name:  # the network's own class may have been renamed
            lines.append(f"{name}: {type(layer).__name__}({_without_address(' '.join(about.split()))})")
    return "\n".join(lines)


def changed_structure(there: Iterable[str], here: str) -> tuple[str, str, str] | None:
    """The first layer by which a network differs from another one: its name and both lines.

    Args:
        there: From :func:`structure_of`, at each point of a fit at which its script may have edited the network.
        here: Likewise, now.
    """
    *_, closest = [""] if here in there else ["", *there]
    if not closest:
        return None
    before, after = (dict(line.split(": ", 1) for line in text.splitlines()) for text in (closest, here))
    for name in {**before, **after}:
        if before.get(name) != after.get(name):
            return name, before.get(name, "absent"), after.get(name, "absent")
    return None


def _names_class(path: str, cls: type) -> bool:
    """Whether a path names a class, also by an alias; a script's ``__main__`` may be any module."""
    module, _, name = path.rpartition(".")
    if getattr(sys.modules.get(module), name, None) is cls:
        return True
    return "__main__" in (module, cls.__module__) and name == cls.__qualname__


def _defaults(cls: type) -> dict[str, Any]:
    """Defaults of a class's arguments, including those that it passes on to its bases."""
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
    """As plain data, without the addresses in the text of objects."""
    return {
        name: _without_address(value) if isinstance(value, str) else value
        for name, value in plain_data(settings).items()
    }


def _without_address(words: str) -> str:
    return re.sub(r" at 0x[0-9a-fA-F]+", "", words)


def _same(before: Any, after: Any) -> bool:
    """Equality of plain data, in which NaN equals itself."""
    if isinstance(before, dict) and isinstance(after, dict):
        return before.keys() == after.keys() and all(_same(value, after[name]) for name, value in before.items())
    if isinstance(before, list) and isinstance(after, list):
        return len(before) == len(after) and all(map(_same, before, after))
    return bool(before == after or (before != before and after != after))
