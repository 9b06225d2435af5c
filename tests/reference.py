"""All options, from the signatures, docstrings and parsers that define them.

``python -m tests.reference`` writes ``configs/REFERENCE.md``.
"""

import collections.abc
import dataclasses
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import docstring_parser

import pl_rl
from pl_rl.callbacks import EvaluationVideos, PretrainedCheckpoint, RunCheckpoint
from pl_rl.cli.trainer_verbs import TrainerParser
from pl_rl.cli.training import CLI
from pl_rl.cli.verbs import OWN_VERBS

PAGE = Path(__file__).parents[1] / "configs" / "REFERENCE.md"
HEAD = """# All options

Made from signatures and docstrings by `python -m tests.reference`; a test holds the two equal.

- On the command line and in config files, values are YAML: `null`, `true`, `[64, 64]`, `'{"difficulty": 3}'`.
- `--config NAME` takes a path or the name of a shipped config; its keys are the options below, nested at each point.
- `--seed_everything N` (0) is the seed of everything; a run repeats itself bit for bit.
- `--trainer.*` are Lightning's own; `accelerator` is `cpu` by default, and `max_epochs` counts iterations.
- `predict --video FOLDER` writes an MP4 file of each episode that `predict` plays, `--gif FOLDER` an animated GIF.
- What the counters mean, and the names in other libraries: [README.md](README.md).
"""
SPACES = ("observation_space", "action_space")
CLASSES = [
    ("The model", "--model.", pl_rl.PPO),
    ("The environment", "--model.env.", pl_rl.EnvConfig),
    ("The network `MLPActorCritic`, for vectors", "--model.network.init_args.", pl_rl.MLPActorCritic),
    ("The network `CNNActorCritic`, for images", "--model.network.init_args.", pl_rl.CNNActorCritic),
    (
        "The network `MultiInputActorCritic`",
        "--model.network.init_args.",
        pl_rl.MultiInputActorCritic,
    ),
    ("The network `RecurrentActorCritic`", "--model.network.init_args.", pl_rl.RecurrentActorCritic),
    ("Checkpoints", "--checkpoint.", RunCheckpoint),
    ("Videos of evaluations", "--eval.", EvaluationVideos),
    ("Pre-trained weights", "--pretrained.", PretrainedCheckpoint),
]
OF_A_RUN = ("ckpt_path", "branch", "auto_resume")
NAMES = {
    int: "integer",
    float: "number",
    bool: "boolean",
    str: "text",
    dict: "mapping",
    Path: "path",
    NoneType: "`null`",
}


def type_in_words(annotation: Any) -> str:
    """What an option takes."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(type_in_words, parts)))
    if annotation == Callable[[float], float]:
        return "a function, by its import path"
    if origin in (list, collections.abc.Sequence):
        return f"list ({type_in_words(parts[0])})"
    return NAMES.get(origin or annotation) or "class or settings"


def default_in_words(default: Any) -> str:
    """A default as it would be written in a config file."""
    if default is inspect.Parameter.empty:
        return "required"
    if isinstance(default, type):
        return f"`{default.__module__}.{default.__name__}`"
    return f"`{default}`" if isinstance(default, str) else f"`{json.dumps(default)}`"


def plain(description: str | None) -> str:
    """A docstring's words in a cell: one line, Markdown instead of Sphinx."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", " ".join((description or "").split()))
    return text.replace("``", "`").replace("|", "\\|")


def described(function: Any) -> list[tuple[str, str, str, str]]:
    """Name, type, default and meaning of each argument that a user can give.

    Raises:
        ValueError: If the docstring leaves one out.
    """
    documented = (function, function.__init__)  # a class may describe its arguments in either
    entries = [entry for thing in documented for entry in docstring_parser.parse(inspect.getdoc(thing) or "").params]
    meanings = {entry.arg_name: entry.description for entry in entries}
    rows = []
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        if name in ("self", *SPACES):
            continue
        if not meanings.get(name):
            raise ValueError(f"{function} does not describe {name}")
        default = parameter.default
        if dataclasses.is_dataclass(function):
            made = next(field.default_factory for field in dataclasses.fields(function) if field.name == name)
            default = made() if made is not dataclasses.MISSING else default
        rows.append((name, type_in_words(parameter.annotation), default_in_words(default), plain(meanings[name])))
    return rows


def of_the_command_line(group: str, name: str) -> tuple[str, str, str, str]:
    """As :func:`described`, of an option that is no argument of a class."""
    parser = TrainerParser()
    CLI.add_arguments_to_parser(None, parser)  # type: ignore[arg-type]
    action = next(action for action in parser._actions if action.dest == f"{group}.{name}")
    return name, "boolean", default_in_words(action.default), plain(action.help)


def table(prefix: str, rows: list[tuple[str, str, str, str]]) -> list[str]:
    """Markdown."""
    cells = [f"| `{name}` | {takes} | {default} | {meaning} |" for name, takes, default, meaning in rows]
    return [f"| `{prefix}`... | takes | default | |", "|---|---|---|---|", *cells, ""]


def actions(parser: Any) -> list[str]:
    """The options of a parser as a table."""
    rows = ["| option | |", "|---|---|"]
    for action in parser._actions:
        if action.dest in ("help", "print_shtab"):
            continue
        name = action.option_strings[-1] if action.option_strings else str(action.metavar or action.dest)
        choices = "".join(f" `{choice}`" for choice in action.choices or ())
        rows.append(f"| `{name}`{choices} | {plain(action.help).replace('%(default)s', str(action.default))} |")
    return rows


def render() -> str:
    """The page."""
    lines = [HEAD, "## Continuing a run: `fit`", ""]
    run = [row for row in described(pl_rl.Trainer.fit) if row[0] in OF_A_RUN]
    lines += table("--", run)
    for title, prefix, cls in CLASSES:
        rows = described(cls)
        if cls is PretrainedCheckpoint:
            rows.append(of_the_command_line("pretrained", "adopt_network"))
        lines += [f"## {title}", "", *table(prefix, rows)]
    for verb in OWN_VERBS:
        parser = OWN_VERBS[verb].parser()
        lines += [f"## The verb `{verb}`", "", plain(parser.description), "", *actions(parser), ""]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(render())
