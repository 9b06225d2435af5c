"""Arguments: what can be told before parsing, shipped configs, and one sentence for each mistake."""

import argparse
import contextlib
import difflib
import re
import sys
from typing import Any, NoReturn, get_args

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, _loaders_dumpers
from jsonargparse._loaders_dumpers import get_yaml_default_loader

from pl_rl.cli.configs import find_config
from pl_rl.errors import UsageError
from pl_rl.files.plain_yaml import check_yaml, read_yaml
from pl_rl.files.terminal import printable, shortened
from pl_rl.trackers import LoggerName

PROG = "python -m pl_rl"


class _CheckedLoader(get_yaml_default_loader()):  # type: ignore[misc]
    """The parser's YAML, of files and of arguments, after it was checked as :mod:`pl_rl.files.plain_yaml` does."""

    def __init__(self, stream: str) -> None:
        check_yaml(stream)
        super().__init__(stream)

    def get_single_data(self) -> Any:
        """The data; what cannot be made is an error of YAML, after which the parser takes a value for a text."""
        try:
            return super().get_single_data()
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise yaml.YAMLError(f"{type(error).__name__}: {error}") from error


# The one place through which all YAML of the parser goes: its public set_loader leaves out values within values.
_loaders_dumpers.yaml_default_loader = _CheckedLoader  # type: ignore[assignment]


class ConfigFile(ActionConfigFile):
    """``--config`` that also knows the configs shipped with the package."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Parse the file.

        Raises:
            UsageError: If there is none, or it is no YAML with settings in it.
        """
        path = find_config(values)
        settings = read_yaml(path)
        if not isinstance(settings, dict):
            raise UsageError(
                f"config file {str(path)!r} holds {'nothing' if settings is None else f'a {type(settings).__name__}'}, "
                "where there are to be settings by name; --print_config prints what it may say"
            )
        self.apply_config(parser, namespace, self.dest, str(path))


class Parser(ArgumentParser):
    """Says in one sentence what is wrong with an argument."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the sentence and exit with status 2."""
        options = [option for parser in self._parsers() for option in parser._option_string_actions]
        fail(_sentence(message, options), status=2)

    def _parsers(self) -> list[ArgumentParser]:
        subcommands = self._subcommands_action
        return [self, *(subcommands.choices.values() if subcommands else [])]


def option(args: list[str], *names: str) -> str | None:
    """The value of an option, as far as it can be told before parsing."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    peek.add_argument(*names, dest="value")
    try:
        value: str | None = peek.parse_known_args(args)[0].value
    except argparse.ArgumentError:
        return None  # the value is missing, which parsing will say
    return value


def setting(args: list[str], name: str) -> str | None:
    """The value of a setting, from the options or else the config file, as far as it can be told before parsing.

    Args:
        args: Arguments.
        name: Dotted, such as ``trainer.default_root_dir``.
    """
    given = option(args, f"--{name}")
    config = option(args, "-c", "--config")
    if given is None and config is not None:
        with contextlib.suppress(TypeError, KeyError):
            value = read_yaml(find_config(config))
            for part in name.split("."):
                value = value[part]
            return value if value is None else str(value)
    return given


def fail(error: object, status: int) -> NoReturn:
    """Say why in one line and end the process."""
    sys.stderr.write(f"error: {shortened(printable(error))}\n")
    sys.exit(status)


def _sentence(message: str, options: list[str]) -> str:
    """The parser's message on one line, with the nearest option where one is unknown."""
    sentence = " ".join(message.split())
    if "arguments are required" in sentence and "model.env" in sentence:
        return "no environment is named; add --model.env ID or --config FILE"
    if sentence.endswith("arguments are required: id"):
        return "an environment with settings of its own is named by --model.env.id ID, not by --model.env ID"
    # The type of a network factory, spelled out, helps nobody.
    sentence = re.sub(r"Type collections\.abc\.Callable\S.* expects a function or", "expects", sentence)
    logger = re.search(r"\"trainer\.logger\": .*Given value: (\S+)$", sentence)
    if logger is not None:
        words = ", ".join(get_args(LoggerName))
        return f"there is no logger {logger[1]!r}; use {words}, a list of them, or the class of one with its settings"
    unknown = re.search(r"(?:does not accept option|[Uu]nrecognized arguments:|Unknown option) '?-*([\w.]+)", sentence)
    if unknown is None:
        return sentence
    settings = [option for option in options if not any(other.startswith(f"{option}.") for other in options)]
    nearest = difflib.get_close_matches(f"--{unknown[1]}", settings, n=1, cutoff=0.75)
    return f"{sentence}; did you mean {nearest[0]}?" if nearest else sentence
