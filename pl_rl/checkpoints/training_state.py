"""What a run needs, beyond weights and optimizer, to go on as if it had never stopped.

All of it is plain data, so that a checkpoint opens with ``torch.load(..., weights_only=True)``.
"""

import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info

from pl_rl.agent import Agent
from pl_rl.checkpoints.schema import shards_of
from pl_rl.distributed.elastic import account, deal, is_dealt
from pl_rl.envs import SNAPSHOTS, replayed_steps
from pl_rl.envs.spaces import describe_spaces
from pl_rl.seeding.random_state import restore_random_state, save_random_state
from pl_rl.seeding.streams import Stream, derive_seed

LIBRARIES = ("torch", "lightning", "gymnasium", "numpy")


def save_training_state(agent: Agent) -> dict[str, Any]:
    """The state of an agent that is being trained."""
    return {
        "counters": agent.counters(),
        "collector": _collector_state(agent),
        "random": save_random_state(),
        "platform": describe_platform(agent),
        "seed_everything": torch.initial_seed(),
        "between_iterations": agent.between_iterations,
        "parent": agent.parent,
        "network": list(agent.structures),
        "spaces": describe_spaces(agent.network.observation_space, agent.network.action_space),
    }


def save_after_failure(agent: Agent) -> dict[str, Any] | None:
    """The state of an agent whose training an exception has ended; ``None`` before there was one.

    Environments that were left in the middle of a request are not asked for theirs: they might never answer.
    """
    if not agent.has_environments:
        return None
    for _ in range(2):
        try:
            return save_training_state(agent)
        except Exception:  # whatever it is, the exception that ended training is the one to be seen
            agent.environments_busy = True
    return None


def restore_training_state(agent: Agent, state: dict[str, Any], branch: bool) -> list[str]:
    """Bring an agent, whose environments have been made, into a saved state.

    Args:
        agent: Set up for training.
        state: From :func:`save_training_state`.
        branch: Take new random numbers from here on.

    Returns:
        What does not go on exactly, and why; empty for an exact continuation.
    """
    losses = list(agent.missing_logs)
    if not state["between_iterations"]:
        losses.append("the checkpoint was saved in the middle of an iteration, whose rest is lost")
    here = describe_platform(agent)
    losses += [
        f"{name}: {there} -> {here.get(name)}, which may round differently"
        for name, there in state["platform"].items()
        if here.get(name) != there
    ]
    losses += _restore_collector(agent, state["collector"])
    agent.parent = state["parent"]
    if branch:
        agent.run_seed = derive_seed(agent.shards_here.of_first(torch.initial_seed()), Stream.BRANCH, agent.train_iter)
        agent.collector.reseed(agent.run_seed)
    else:
        # Last, as a replay may draw numbers too.
        restore_random_state(state["random"])
    return losses


def _restore_collector(agent: Agent, state: dict[str, Any]) -> list[str]:
    """Bring environments, shards and their random numbers into a saved state; returns what does not go on, in words."""
    fresh_episodes = derive_seed(agent.run_seed, Stream.ENVIRONMENTS, agent.train_iter)
    shards, not_dealt = shards_of(state), None
    environments = [shard["environments"] for shard in shards]
    with _progress(sum(map(replayed_steps, environments))), agent.asking_environments():
        if not is_dealt(shards, agent.num_envs, agent.shards):
            agent.collector.reseed(derive_seed(agent.run_seed, Stream.DEALING, agent.train_iter, agent.shards))
            agent.collector.reset(fresh_episodes)
            fresh = agent.collector.state_dict()
            dealt, not_dealt = deal(agent.collector.env, shards, shards_of(fresh))
            state = {"shards": dealt} if "shards" in fresh else dealt[0]
        failure = agent.collector.load_state_dict(state, fresh_episodes) or not_dealt
    losses = account(shards, agent.num_envs, agent.shards, keeps=failure is None)
    if failure is not None:
        if None in environments and type(agent.collector.env) in SNAPSHOTS:
            failure = "they were left in the middle of a step"
        losses.insert(0, f"environments: restarted, as {failure}")
    return losses


def _collector_state(agent: Agent) -> dict[str, Any]:
    if agent.environments_busy:
        return agent.collector.state_dict(with_environments=False)
    with agent.asking_environments():
        return agent.collector.state_dict()


@contextmanager
def _progress(steps: int) -> Iterator[None]:
    """Say every few seconds that steps are being replayed, where that takes more than one."""
    began, over = time.monotonic(), threading.Event()

    def tell() -> None:
        wait = 1.0
        while not over.wait(wait):
            seconds = time.monotonic() - began
            rank_zero_info(
                f"Replaying {steps:,} steps of the environments since their anchors: {seconds:.0f} s so far."
            )
            wait = min(2 * wait, 30.0)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@cache
def _library_versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}


def describe_platform(agent: Agent) -> dict[str, str]:
    """What decides how numbers are rounded: libraries, processor and its instructions, device, precision, threads."""
    return {
        **_library_versions(),
        "machine": platform.machine(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "device": agent.device.type,
        "precision": str(agent.trainer.precision),
        "threads": str(torch.get_num_threads()),
        **agent.numerics(),
    }


def tell_of_other_platforms(agent: Agent) -> None:
    """Say where processes of a run may round differently, which ends it as soon as they do."""
    first, *others = agent.shards_here.gather_plain(describe_platform(agent))
    different = [
        f"{name} {first[name]} and {value}" for other in others for name, value in other.items() - first.items()
    ]
    if different:
        rank_zero_info(
            f"Processes run on platforms that may round differently, which would end the run: {', '.join(different)}; "
            "use machines and libraries of one kind."
        )
