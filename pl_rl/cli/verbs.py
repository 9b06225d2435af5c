"""The verbs that are not Lightning's: plot, inspect, export, verify.

Each imports what it works with once its arguments are read: help and a mistake in them do not wait for PyTorch.
Nor is anything imported here that Lightning's own imports come after: whether its Trainer takes ``1`` for ``1`` or for
``1.0`` hangs on who first wrote ``int | float`` with :mod:`typing`, and rich writes ``float, int``.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, get_args

from pl_rl.cli.parsing import PROG, Parser
from pl_rl.deploy import Format
from pl_rl.errors import RunFailure, UsageError
from pl_rl.files.terminal import printable
from pl_rl.imports import quick_imports
from pl_rl.tools import Aggregate, Axis, PictureFormat, Returns


class Verb(NamedTuple):
    """A verb of the command line."""

    run: Callable[[list[str]], None]
    """Does it, given the arguments that follow."""
    parser: Callable[[], argparse.ArgumentParser]
    """Makes the parser of these."""
    description: str


def _plot_parser() -> Parser:
    parser = Parser(prog=f"{PROG} plot", description=OWN_VERBS["plot"].description)
    parser.add_argument(
        "runs",
        nargs="*",
        type=Path,
        metavar="RUN_DIR",
        help="Run directories (version_N), or folders of such; the newest run by default.",
    )
    parser.add_argument("--output", type=Path | None, help="Folder for the files; the first run's by default.")
    parser.add_argument(
        "--aggregate",
        choices=get_args(Aggregate),
        default="iqm",
        help="What is drawn of runs that differ by their seeds: their interquartile mean, their mean, or each.",
    )
    parser.add_argument(
        "--returns", choices=get_args(Returns), default="evaluation", help="Of which episodes the returns are drawn."
    )
    parser.add_argument(
        "--axis", choices=get_args(Axis), help="What they are drawn against; by default train_iter and env_steps."
    )
    parser.add_argument("--smooth", type=int, default=1, help="Points of a curve that are averaged.")
    parser.add_argument("--format", choices=get_args(PictureFormat), default="png", help="Of the pictures.")
    return parser


def _plot(args: list[str]) -> None:
    config = _plot_parser().parse_args(args)

    with quick_imports():
        from pl_rl.runs.directory import display_path
        from pl_rl.tools import plotting

    runs = plotting.find_runs(config.runs)
    drawing = plotting.Drawing(config.aggregate, config.returns, config.axis, config.smooth, config.format)
    for path in plotting.plot_runs(runs, config.output or runs[0], drawing):
        print(display_path(path))


def _verify_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"{PROG} verify", description=OWN_VERBS["verify"].description, allow_abbrev=False, exit_on_error=False
    )
    parser.add_argument("--iterations", type=int, default=30, help="Length of each run (default: 30).")
    parser.add_argument("--kills", type=int, default=3, help="How often to kill (default: 3).")
    parser.add_argument(
        "--devices",
        type=_numbers_of_processes,
        default=[None],
        metavar="N,N",
        help="Numbers of processes, as 1,2,4: a run is left alone with each, the killed one goes on with random ones.",
    )
    return parser


def _numbers_of_processes(text: str) -> list[int]:
    numbers = text.split(",")
    if not all(number.isdecimal() and int(number) > 0 for number in numbers):
        raise argparse.ArgumentTypeError(f"{text} are no numbers of processes; use powers of two, as in 1,2,4")
    return list(map(int, numbers))


def _verify(args: list[str]) -> None:
    try:
        options, fit_args = _verify_parser().parse_known_args(args)
    except argparse.ArgumentError as error:
        raise UsageError(str(error)) from error
    if not 1 <= options.kills < options.iterations:
        raise UsageError(
            f"--kills {options.kills} does not fit into --iterations {options.iterations}; use at least one kill and "
            "more iterations than kills"
        )
    if not fit_args:
        raise UsageError("verify needs what fit would be given; add --config FILE")

    with quick_imports():
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        from pl_rl.tools.verification import verify

    result = verify(fit_args, options.iterations, options.kills, options.devices)
    table = Table("component", *result.differences, title="against a run left alone")
    for component in next(iter(result.differences.values())):
        words = [differences[component] or "identical" for differences in result.differences.values()]
        table.add_row(*(escape(printable(word)) for word in (component, *words)))
    console = Console()
    console.print(table)
    for remark in result.remarks:
        console.print(f"not exact: {printable(remark)}", highlight=False, markup=False, soft_wrap=True)
    moments = ", ".join(map(str, result.killed_after))
    different = [
        component for differences in result.differences.values() for component in differences if differences[component]
    ]
    if different:
        raise RunFailure(
            f"killed after iterations {moments}, the run went on differently: {', '.join(dict.fromkeys(different))}"
        )
    print(f"Killed after iterations {moments}, the run went on bit for bit.")


def _inspect_parser() -> Parser:
    parser = Parser(prog=f"{PROG} inspect", description=OWN_VERBS["inspect"].description)
    parser.add_argument("checkpoint", metavar="CKPT", help="Path, or the name of one in the newest run (last, best).")
    return parser


def _inspect(args: list[str]) -> None:
    config = _inspect_parser().parse_args(args)

    with quick_imports():
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        from pl_rl.runs.directory import find_checkpoint
        from pl_rl.tools.inspection import describe_checkpoint

    table = Table(show_header=False)
    for name, value in describe_checkpoint(find_checkpoint(config.checkpoint)):
        table.add_row(escape(printable(name)), escape(printable(value)))
    Console().print(table)


def _export_parser() -> Parser:
    parser = Parser(prog=f"{PROG} export", description=OWN_VERBS["export"].description)
    parser.add_argument("checkpoint", metavar="CKPT", help="Path, or the name of one in the newest run (last, best).")
    parser.add_argument(
        "--to", choices=get_args(Format), required=True, help="What to write; hub is a folder for a model hub."
    )
    parser.add_argument("--output", type=Path | None, help="Where; by default beside the checkpoint.")
    parser.add_argument(
        "--trust",
        nargs="+",
        default=[],
        metavar="NAME",
        help="What a checkpoint from elsewhere may have imported and called: modules, classes, environments.",
    )
    return parser


def _export(args: list[str]) -> None:
    config = _export_parser().parse_args(args)

    with quick_imports():
        from pl_rl.deploy.export import export
        from pl_rl.runs.directory import find_checkpoint
        from pl_rl.runs.trust import by_trust_option

    written = export(find_checkpoint(config.checkpoint), config.to, config.output, config.trust, by_trust_option)
    print(printable(written))


OWN_VERBS = {
    "plot": Verb(_plot, _plot_parser, "Draw the evaluation curves of runs, seeds together."),
    "inspect": Verb(_inspect, _inspect_parser, "Say what a checkpoint holds."),
    "export": Verb(_export, _export_parser, "Write the policy of a checkpoint for use elsewhere."),
    "verify": Verb(
        _verify,
        _verify_parser,
        "Kill a run at random moments, resume it, and compare with one left alone. Takes all arguments of fit.",
    ),
}
