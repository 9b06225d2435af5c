"""What validate, test and predict print."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from pl_rl.algorithm.evaluation import Episodes


def print_episodes(episodes: Episodes) -> None:
    """A row for each episode, and what they have in common."""
    table = _table("episode")
    for number, (episode_return, length) in enumerate(zip(*episodes, strict=True)):
        table.add_row(str(number), f"{episode_return:,.2f}", f"{length:,}")
    table.add_section()
    _add_statistics(table, episodes.statistics())
    Console().print(table)


def print_statistics(logged: Mapping[str, float], episodes: int) -> None:
    """What an evaluation's episodes have in common.

    Args:
        logged: Such as ``evaluator/return_mean``.
        episodes: How many they are.
    """
    table = _table(f"{episodes:,} episodes")
    _add_statistics(table, {name.rpartition("/")[2]: float(value) for name, value in logged.items()})
    Console().print(table)


def _table(first: str) -> Table:
    table = Table(first)
    for name in ("return", "length"):
        table.add_column(name, justify="right")
    return table


def _add_statistics(table: Table, statistics: Mapping[str, float]) -> None:
    for name in ("mean", "std", "min", "max"):
        table.add_row(name, f"{statistics[f'return_{name}']:,.2f}", f"{statistics[f'length_{name}']:,.1f}")
