"""What a checkpoint, or the configuration beside it, may have imported.

Reading them runs no code, but they name classes and environments, and to import a module is to run it. Of a run that
lies under the log root the names are the user's own. A file from elsewhere may name what comes with pl_rl and its
libraries; anything else the user must have typed, or written in the configuration file that is given.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pl_rl.cli.parsing import option
from pl_rl.errors import UsageError
from pl_rl.plain_yaml import read_yaml
from pl_rl.runs import find_config, shown

LIBRARIES = ("pl_rl", "gymnasium", "lightning", "torch", "ale_py", "minigrid")
# Settings that list what is imported.
LISTS = ("imports", "wrappers", "train_wrappers")


def check_names(path: Path, log_root: Path, settings: list[Mapping[str, Any]], args: list[str]) -> None:
    """Refuse to import what a stranger's file asks for.

    Args:
        path: Of the checkpoint.
        log_root: Where the user's own runs are.
        settings: What names classes: the checkpoint's hyperparameters and its run's configuration.
        args: What the user typed.

    Raises:
        UsageError: With the first name that the user has to confirm.
    """
    if path.resolve().is_relative_to(log_root.resolve()):
        return
    said = _said_by(args)
    for setting, name in (pair for part in settings for pair in _names(part)):
        if name.partition(":")[0].partition(".")[0] not in LIBRARIES and name not in said:
            raise UsageError(
                f"{shown(path)} lies outside of {shown(log_root)} and names {name!r}, which to import runs its code; "
                f"if you trust it, add --{setting} {name}"
            )


def _names(settings: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each class and each environment's module, with the option that it is the value of."""
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            named = key == "class_path" or (key == "id" and isinstance(value, str) and ":" in value)
            if named and isinstance(value, str):
                yield f"{prefix}{key}", value
            elif key in LISTS and isinstance(value, list | tuple):
                for item in value:
                    name = item.get("class_path") if isinstance(item, Mapping) else item
                    yield f"{prefix}{key}", str(name)
            else:
                yield from _names(value, f"{prefix}{key}.")
    elif isinstance(settings, list | tuple):
        for value in settings:
            yield from _names(value, prefix)


def _said_by(args: list[str]) -> set[str]:
    """All words that the user typed or wrote in the configuration files that are named."""
    said = {word for arg in args for word in re.findall(r"[\w.:-]+", arg)}
    config = option(args, "-c", "--config")
    if config is not None:
        said |= {name for _, name in _names(read_yaml(find_config(config)))}
    return said
