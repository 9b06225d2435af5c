"""What the user has said by options: the values of those that name environments, modules and classes."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from pl_rl.cli.configs import find_config
from pl_rl.errors import UsageError
from pl_rl.files.plain_yaml import parse_yaml, read_yaml
from pl_rl.runs.trust import names_in

OPTION = re.compile(r"config|model(\.(env|network)(\.[\w.]+)?)?")


def names_said(args: list[str]) -> set[str]:
    """What is named by the options of environment and network, and by those settings of a file given by ``--config``.

    No other word on the command line counts: not the verb, a path, a checkpoint's name.

    Args:
        args: What the user typed.
    """
    said: set[str] = set()
    for option, text in _options(args):
        with contextlib.suppress(UsageError):  # which parsing will say
            if option == "config":
                settings = read_yaml(find_config(text))
                value = settings.get("model") if isinstance(settings, dict) else None
            else:
                value = parse_yaml(text)
            for key in reversed(option.split(".")[1:]):
                value = {key: value}
            said |= _names(value)
    return said


def _options(args: list[str]) -> Iterator[tuple[str, str]]:
    """Name and value of each option that counts."""
    for arg, following in zip(args, [*args[1:], ""], strict=True):
        name, equals, value = arg.partition("=")
        option = "config" if name in ("-c", "--config") else name.removeprefix("--").removesuffix("+")
        if name.startswith("-") and OPTION.fullmatch(option):
            yield option, value if equals else following


def _names(model: Any) -> set[str]:
    """What settings of a model name; of an environment or a network by its name alone too."""
    said: set[str] = set()
    for part, name in (("env", "id"), ("network", "class_path")):
        value = model.get(part) if isinstance(model, dict) else None
        value = {name: value} if isinstance(value, str) else value
        for key, item in value.items() if isinstance(value, dict) else ():
            listed = [item] if key in ("imports", "wrappers", "train_wrappers") and not isinstance(item, list) else item
            with contextlib.suppress(UsageError):
                said |= names_in({part: {key: listed}})
    return said
