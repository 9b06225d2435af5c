"""Reading YAML as plain data, however little or much a text makes of itself.

Aliases let some hundred characters stand for billions, and what nests deeply ends in the recursion limit of whoever
walks it. Both are told from the parser's events, before anything is made of them.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from pl_rl.errors import UsageError

MAX_CHARACTERS = 2**18
"""Of a text, and of what its aliases make of it; a configuration has some thousand."""
MAX_DEPTH = 64
MAX_DIGITS = 1000
"""Of a number; to read one in base 60 takes a time that grows with their square."""

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NUMBER = re.compile(r"[-+]?[0-9][0-9a-fA-Fxob_:.]*")


class NotPlainYAML(UsageError):
    """A text that is no YAML, or stands for more than anybody means.

    Attributes:
        reason: What is wrong with it, as the rest of a sentence that begins with its name.
    """

    def __init__(self, reason: str, name: str = "a value") -> None:
        super().__init__(f"{name} {reason}")
        self.reason = reason


def read_yaml(path: Path) -> Any:
    """The plain data in a YAML file.

    Raises:
        NotPlainYAML: If it cannot be read, is not YAML, asks for more than plain data, or stands for too much.
    """
    text = _text_of(path)
    try:
        return parse_yaml(text)
    except NotPlainYAML as error:
        raise NotPlainYAML(error.reason, _name_of(path)) from error


def _text_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CHARACTERS + 1)
        if len(content) <= MAX_CHARACTERS:
            return content.decode().removeprefix("\ufeff")
    except OSError as error:
        raise NotPlainYAML(f"cannot be read: {error.strerror}", _name_of(path)) from error
    except UnicodeDecodeError as error:
        raise NotPlainYAML(f"is not text in UTF-8: {error.reason} at byte {error.start}", _name_of(path)) from error
    raise NotPlainYAML(f"has more than {MAX_CHARACTERS:,} bytes; a configuration is a small text", _name_of(path))


def _name_of(path: Path) -> str:
    return f"config file {str(path)!r}"


def parse_yaml(text: str) -> Any:
    """The plain data that a text stands for.

    Raises:
        NotPlainYAML: If it is not YAML, asks for more than plain data, or stands for too much.
    """
    try:
        check_yaml(text)
        return yaml.load(text, _LOADER)
    except NotPlainYAML:
        raise
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" in line {where.line + 1}" if where is not None else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise NotPlainYAML(f"is not valid YAML: {problem}{line}") from error
    except Exception as error:  # a date of the 40th of May, a tag on what cannot have it: each fails in its own way
        raise NotPlainYAML(f"is not valid YAML: {type(error).__name__}: {error}") from error


def lines_of(path: Path) -> dict[str, int]:
    """The line of each setting in a YAML file, by its dotted name.

    Args:
        path: Of a file that :func:`read_yaml` takes.

    Raises:
        NotPlainYAML: If a name stands in one place twice, of which YAML would take the last.
    """
    lines: dict[str, int] = {}
    places = [("", yaml.compose(_text_of(path), _LOADER))]
    for prefix, node in places:  # which grows
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            name, line = f"{prefix}{getattr(key, 'value', key)}", key.start_mark.line + 1
            if lines.setdefault(name, line) != line:
                raise NotPlainYAML(f"has {name} twice, in lines {lines[name]} and {line}; leave one", _name_of(path))
            places.append((f"{name}.", value))
    return lines


def check_yaml(text: str) -> None:
    """Refuse a text that stands for too much; it is parsed, and nothing is made of it.

    Raises:
        NotPlainYAML: If it, or what its aliases make of it, is too long or nests too deeply.
        yaml.YAMLError: If it is not YAML.
    """
    if len(text) > MAX_CHARACTERS:
        raise NotPlainYAML(f"has {len(text):,} characters, more than {MAX_CHARACTERS:,}")
    # By anchor: the size with all aliases in their places, and the depth.
    finished: dict[str | None, tuple[int, int]] = {}
    open_nodes: list[tuple[str | None, int, int]] = []  # anchor, what had been counted before it, depth within
    total = 0
    for event in yaml.parse(text, _LOADER):
        depth = 0
        if isinstance(event, yaml.ScalarEvent):
            if len(event.value) > MAX_DIGITS and event.implicit[0] and _NUMBER.fullmatch(event.value):
                raise NotPlainYAML(f"has a number of {len(event.value):,} digits, more than {MAX_DIGITS:,}")
            anchor, before = event.anchor, total
            total += 1 + len(event.value)
        elif isinstance(event, yaml.AliasEvent):
            if any(name == event.anchor for name, _, _ in open_nodes):
                raise NotPlainYAML(f"has an alias *{event.anchor} inside of what it stands for; write it out")
            size, depth = finished.get(event.anchor, (1, 0))
            anchor, before = None, total
            total += size
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, total, 0))
            anchor, before = None, total
            total += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before, depth = open_nodes.pop()
            depth += 1
        else:
            continue
        if anchor is not None:
            finished[anchor] = (total - before, depth)
        if open_nodes:
            outer = open_nodes.pop()
            open_nodes.append((*outer[:2], max(outer[2], depth)))
        if total > 2 * MAX_CHARACTERS:
            raise NotPlainYAML(f"stands for more than {2 * MAX_CHARACTERS:,} characters by its aliases; write it out")
        if len(open_nodes) + depth > MAX_DEPTH:
            raise NotPlainYAML(f"nests deeper than {MAX_DEPTH} levels; use fewer")
