"""Arguments: what can be told before parsing, shipped configs, and one sentence for each mistake."""

import argparse
import contextlib
import re
import sys
from typing import Any, ClassVar, NoReturn

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, _loaders_dumpers
from jsonargparse._loaders_dumpers import get_yaml_default_loader

from pl_rl.cli.configs import find_config, packaged_configs
from pl_rl.cli.help import PlainTypes, help_of, without_markup
from pl_rl.cli.sentences import Places, WithinClass, sentence_of
from pl_rl.errors import UsageError
from pl_rl.files.plain_yaml import check_yaml, lines_of, read_yaml
from pl_rl.files.terminal import printable, shortened

PROG = "python -m pl_rl"
GROUPS = ("model", "trainer", "checkpoint", "eval", "pretrained")

_WHOLE = re.compile(r"[-+]?[0-9_]+[eE]\+?[0-9]{1,2}")


# The base class is what a call gives, which type checkers do not follow.
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

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float | int:
        """A number; ``1e6``, which has no point, is a whole one."""
        number: float = super().construct_yaml_float(node)
        return int(number) if _WHOLE.fullmatch(node.value) else number


_CheckedLoader.add_constructor("tag:yaml.org,2002:float", _CheckedLoader.construct_yaml_float)

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
        lines = lines_of(path)
        for name, group in settings.items():
            if name in GROUPS and isinstance(group, int | float | list):
                raise UsageError(
                    f"{name} is {group!r} in line {lines[name]} of {str(path)!r}, where there are to be settings by "
                    "name; --print_config prints what it may say"
                )
        self.apply_config(parser, namespace, self.dest, str(path))


class Parser(ArgumentParser):
    """Says in one sentence what is wrong with an argument.

    Attributes:
        given: What was typed, which a parser within the parser does not know.
        within: What parsers of classes' arguments have said.
        is_of_trainer: Whether it has the options of Lightning's Trainer.
    """

    given: ClassVar[list[str]] = []
    within: ClassVar[list[WithinClass]] = []
    is_of_trainer = False

    def __init__(self, *args: Any, formatter_class: type = PlainTypes, **kwargs: Any) -> None:
        super().__init__(*args, formatter_class=formatter_class, **kwargs)

    def full_help(self) -> str:
        """The help with all options."""
        return without_markup(super().format_help())

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """The help; a verb of Lightning's Trainer leaves out the Trainer's options."""
        return help_of(self, self.full_help) if self.is_of_trainer else self.full_help()

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the sentence and exit with status 2.

        Raises:
            argparse.ArgumentError: From a parser of a class's arguments, to the one that knows what the class is for.
        """
        if not self.exit_on_error:
            Parser.within.append(WithinClass(" ".join(message.split()), list(self._option_string_actions)))
            raise argparse.ArgumentError(None, message) from ex
        options = [option for parser in self._parsers() for option in parser._option_string_actions]
        args = Parser.given
        config, lines = None, {}
        with contextlib.suppress(UsageError, TypeError):
            config = find_config(str(option(args, "-c", "--config")))
            lines = lines_of(config)
        shipped = [name.removesuffix(".yaml") for name in packaged_configs()]
        places = Places(options, args, lines, config, shipped)
        # Of the kinds of value that an option takes, all are tried; the first says most.
        found = (said for said in Parser.within if said.message in " ".join(message.split()))
        fail(sentence_of(message, places, next(found, None)), status=2)

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


def with_whole_numbers(args: list[str]) -> list[str]:
    """The arguments, of which a value such as ``1e6`` is written out, which would be no whole number."""
    written = []
    for before, arg in zip(["", *args], args, strict=False):
        name, equals, value = arg.rpartition("=") if arg.startswith("--") else (before, "", arg)
        is_number = name.startswith("--") and not name.endswith(("_dir", "path")) and _WHOLE.fullmatch(value)
        written.append(f"{name if equals else ''}{equals}{int(float(value))}" if is_number else arg)
    return written


def fail(error: object, status: int) -> NoReturn:
    """Say why in one line and end the process."""
    sys.stderr.write(f"error: {shortened(printable(error))}\n")
    sys.exit(status)
