"""The help of Lightning's verbs: what is asked for most comes first, and Lightning's own options on request."""

import argparse
import re
from collections.abc import Callable
from typing import Any

from jsonargparse import DefaultHelpFormatter

# By the first option of each group; what is not named here comes after them.
ORDER = ("model", "ckpt_path", "pretrained", "checkpoint", "eval", "config")
ON_REQUEST = ("trainer", "data")


class TrainerHelp(argparse._HelpAction):
    """``--help_trainer``: the options that Lightning's Trainer has."""

    def __call__(self, parser: Any, *args: Any, **kwargs: Any) -> None:
        """Print them, and end the process."""
        print(help_of(parser, parser.full_help, lambda name: name == "trainer"), end="")
        parser.exit()


def help_of(
    parser: Any, full_help: Callable[[], str], wanted: Callable[[str], bool] = lambda name: name not in ON_REQUEST
) -> str:
    """A verb's help.

    Args:
        parser: Of the verb.
        full_help: Gives the help of all groups that the parser has.
        wanted: Says whether a group of options is shown, by its name.
    """
    groups, usage = parser._action_groups, parser.usage
    shown = [group for group in groups if wanted(_name(group))]
    parser._action_groups = sorted(shown, key=lambda group: (*ORDER, _name(group)).index(_name(group)))
    parser.usage = "%(prog)s [OPTION ...]"
    try:
        return without_markup(full_help()).replace(" [options]", "", 1)
    finally:
        parser._action_groups, parser.usage = groups, usage


class PlainTypes(DefaultHelpFormatter):
    """Shows choices and functions in plain words, as far as the library shows types by this method."""

    def _get_type_str(self, action: argparse.Action) -> str | None:
        shown = super()._get_type_str(action)
        if shown is None:
            return None
        shown = re.sub(r"Literal\[([^\]]*)\]", lambda match: match[1].replace("'", "").replace(", ", " | "), shown)
        shown = shown.replace("Callable[[float], float]", "function")
        shown = re.sub(r"^Optional\[(.*)\]$", r"\1 | null", shown)
        return re.sub(r"Union\[([^\[\]]*)\]", lambda match: match[1].replace(", ", " | "), shown)


def without_markup(text: str) -> str:
    """Help without the marks by which Sphinx makes pages of docstrings, and without a type that says nothing."""
    text = re.sub(r":[a-z]+:`~?([^`]+)`", lambda match: match[1].rpartition(".")[2], text)
    text = re.sub(r"\s+\((?:required,\s+)?type:\s+<class\s+'Path'>\)", "", text)  # of a positional argument
    return text.replace("``", "")


def _name(group: Any) -> str:
    """The first part of the name of a group's options."""
    options = [action.dest for action in group._group_actions if not isinstance(action, argparse._HelpAction)]
    names = [dest.partition(".")[0] for dest in options if isinstance(dest, str) and not dest.endswith("help")]
    return names[0] if names else ""
