"""A resume with other environments, or other shards, than its checkpoint has.

Shapes: ``N`` environments, ``S`` shards, before and from here on; ``...`` of what an environment has.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from pl_rl.distributed.collector import join_episodes
from pl_rl.envs import AnyVectorEnv, keep_envs
from pl_rl.errors import UsageError
from pl_rl.networks.records import leaves, rows, split, tree_map

State = dict[str, Any]


class Dealt(NamedTuple):
    """What shards go on from."""

    shards: list[State]
    """``[S]``"""
    failure: str | None
    """Why all environments begin afresh, in words; ``None`` if as many as there is room for go on."""


def is_dealt(saved: Sequence[State], num_envs: int, shards: int) -> bool:
    """Whether the states of shards are of so many environments in so many shards."""
    return (_num_envs(saved), len(saved)) == (num_envs, shards)


def deal(env: AnyVectorEnv, saved: Sequence[State], fresh: Sequence[State]) -> Dealt:
    """The states of new shards, with the environments of those that a checkpoint has, as far as there is room.

    Episodes that go on keep all that belongs to them. Shards keep their random numbers if there are as many as before.

    Args:
        env: Of this process.
        saved: States of the checkpoint's shards.
        fresh: States of the new ones, all of whose environments have just begun.

    Raises:
        UsageError: If what an environment has is of another shape than before.
    """
    environments = keep_envs(env, *([state["environments"] for state in states] for states in (saved, fresh)))
    failure = environments if isinstance(environments, str) else None
    if isinstance(environments, str):
        environments = [state["environments"] for state in fresh]
    kept = 0 if failure else min(_num_envs(saved), _num_envs(fresh))
    before, after = _by_environment(saved), _by_environment(fresh)
    shapes = [[tuple(leaf.shape[1:]) for leaf in leaves(each)] for each in (before, after)]
    if shapes[0] != shapes[1]:
        raise UsageError(
            f"the checkpoint's environments are of the shapes {shapes[0]}, and those here of {shapes[1]}; use another "
            "copy of it"
        )
    by_environment = tree_map(lambda new, old: torch.cat([old[:kept], new[kept:]]), after, before)
    parts = split(by_environment, _num_envs(fresh) // len(fresh))
    generators = [state["generator"] for state in (saved if len(saved) == len(fresh) else fresh)]
    each = zip(parts, _ended_episodes(saved, len(fresh)), environments, generators, strict=True)
    dealt = [
        {**part, "episodes": {**part["episodes"], **ended}, "environments": of_envs, "generator": generator}
        for part, ended, of_envs, generator in each
    ]
    return Dealt(dealt, failure)


def account(saved: Sequence[State], num_envs: int, shards: int, keeps: bool) -> list[str]:
    """What goes on and what is new, in words.

    Args:
        saved: States of the checkpoint's shards.
        num_envs: ``N``, from here on.
        shards: ``S``, likewise.
        keeps: Whether environments go on, as many as there is room for.
    """
    lines, before = [], _num_envs(saved)
    if keeps and num_envs != before:
        begin = "begins" if num_envs == before + 1 else "begin"
        fate = (
            f"{_named(before, num_envs)} {begin}" if num_envs > before else f"those of {_named(num_envs, before)} end"
        )
        lines.append(f"environments: the episodes of {_named(0, min(before, num_envs))} go on, {fate}")
    if shards != len(saved):
        lines.append(
            f"shards: {shards} in the place of {len(saved)} have new random numbers, for actions, orders of samples "
            "and evaluations; their statistics are those of all before"
        )
    return lines


def _named(first: int, stop: int) -> str:
    return f"environment {first}" if stop - first == 1 else f"environments {first} to {stop - 1}"


def _num_envs(states: Sequence[State]) -> int:
    return sum(len(state["episodes"]["open_returns"]) for state in states)


def _by_environment(states: Sequence[State]) -> State:
    """What each environment has besides its own state, ``[N, ...]``."""
    parts = [
        {
            **{name: state[name] for name in ("obs", "discounted_sums", "memory") if name in state},
            "episodes": {name: state["episodes"][name] for name in ("open_returns", "open_lengths")},
        }
        for state in states
    ]
    joined: State = tree_map(lambda *each: torch.cat(each), *parts)
    return joined


def _ended_episodes(saved: Sequence[State], shards: int) -> list[State]:
    """The latest episodes that have ended, dealt to shards."""
    ended = join_episodes([state["episodes"] for state in saved]).state_dict()
    lists = {name: ended[name] for name in ("recent", "info") if name in ended}
    totals = [ended["total"], *[0] * (shards - 1)]
    return [{"total": total, **rows(lists, slice(k, None, shards))} for k, total in enumerate(totals)]
