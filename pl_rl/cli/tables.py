"""What validate, test and predict print."""

from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pl_rl.algorithm.evaluation import Episodes
from pl_rl.envs.episode_info import SUCCESS, SUCCESS_RATE
from pl_rl.files.terminal import printable


def print_episodes(episodes: Episodes) -> None:
    """A row for each episode, and what they have in common."""
    names = list(dict.fromkeys(name for info in episodes.infos for name in info))
    table = _table("episode", names)
    for number, (episode_return, length, info) in enumerate(zip(*episodes, strict=True)):
        told = [f"{info[name]:g}" if name in info else "" for name in names]
        table.add_row(str(number), f"{episode_return:,.2f}", f"{length:,}", *told)
    table.add_section()
    _add_statistics(table, episodes.statistics(), names)
    Console().print(table)


def print_statistics(logged: Mapping[str, float], episodes: int) -> None:
    """What an evaluation's episodes have in common.

    Args:
        logged: Such as ``evaluator/return_mean``.
        episodes: How many they are.
    """
    statistics = {name.partition("/")[2]: float(value) for name, value in logged.items()}
    rest = [name for name in statistics if not name.startswith(("return_", "length_"))]
    names = [SUCCESS if name == SUCCESS_RATE else name.removesuffix("_mean") for name in rest]
    table = _table(f"{episodes:,} episodes", names)
    _add_statistics(table, statistics, names)
    Console().print(table)


def _table(first: str, names: Iterable[str]) -> Table:
    table = Table(first)
    for name in ("return", "length", *names):
        table.add_column(escape(printable(name)), justify="right")
    return table


def _add_statistics(table: Table, statistics: Mapping[str, float], names: Iterable[str]) -> None:
    """Rows of statistics; of what else environments say, by name, there is the mean."""
    means = [statistics[SUCCESS_RATE if name == SUCCESS else f"{name}_mean"] for name in names]
    for name in ("mean", "std", "min", "max"):
        told = [f"{value:,.3g}" for value in means] if name == "mean" else []
        table.add_row(name, f"{statistics[f'return_{name}']:,.2f}", f"{statistics[f'length_{name}']:,.1f}", *told)
