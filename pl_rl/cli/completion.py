"""Words that a shell completes."""

import argparse
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from pl_rl.errors import UsageError, installation

SHELLS = ("bash", "zsh", "tcsh")
COMMAND = "pl-rl"
PATHS = ("--config", "--ckpt_path", "--pretrained.path", "--output", "--video", "--gif")


def check_shell(shell: str | None) -> str:
    """The shell's name; refuse what no script can be made for.

    Raises:
        UsageError: For another shell, or if the package that makes it is missing.
    """
    if shell not in SHELLS:
        given = "no shell is named" if shell is None else f"there is no completion for {shell!r}"
        raise UsageError(f"{given}; use --print_completion {', '.join(SHELLS[:-1])} or {SHELLS[-1]}")
    if find_spec("shtab") is None:
        raise UsageError(f"completion needs one more package; {installation('completion')}")
    return shell


def completion_script(shell: str, descriptions: Mapping[str, str], parsers: Mapping[str, Any]) -> str:
    """The script by which a shell completes verbs, options and files of ``pl-rl``.

    Args:
        shell: One of ``SHELLS``.
        descriptions: What each verb does.
        parsers: Of the verbs.
    """
    import shtab  # it may not be there

    program = argparse.ArgumentParser(prog=COMMAND)
    verbs = program.add_subparsers()
    for name, description in descriptions.items():
        verb = verbs.add_parser(name, help=description, add_help=False)
        for action in parsers[name]._actions:
            _add(verb, action, shtab.FILE)
    script: str = shtab.complete(program, shell)
    return script


def _add(verb: argparse.ArgumentParser, action: argparse.Action, files: Any) -> None:
    """An option or argument of a parser, of which the rest needs no more than its words."""
    if action.option_strings:
        takes_none = action.nargs == 0
        made = verb.add_argument(*action.option_strings, action="store_true" if takes_none else "store")
    else:
        made = verb.add_argument(action.dest, nargs=action.nargs if isinstance(action.nargs, str) else None)
    made.choices = action.choices if made.nargs != 0 else None
    if not action.option_strings or set(action.option_strings) & set(PATHS):
        # What shtab looks for, which argparse does not declare.
        made.complete = files  # type: ignore[attr-defined]
