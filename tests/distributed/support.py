"""Several processes of one run, forked from the test's: what imports cost is paid once."""

import multiprocessing
import os
import socket
import traceback

import torch.distributed as dist

SECONDS = 120


def _child(function, rank, world, port, answers):
    try:
        local = {"RANK": rank, "LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": world}
        os.environ |= {name: str(value) for name, value in local.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        from lightning.pytorch.utilities import rank_zero_only

        rank_zero_only.rank = rank
        dist.init_process_group("gloo", rank=rank, world_size=world)
        answers.put((rank, "", function(rank)))
    except BaseException as error:
        answers.put((rank, f"{type(error).__name__}: {error}", traceback.format_exc()))


def in_processes(world, function):
    """Run ``function(rank)`` in each of some processes that form a group.

    Returns:
        For each what it gave, or the exception that ended it, in words.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    children = [
        context.Process(target=_child, args=(function, rank, world, port, answers), daemon=False)
        for rank in range(world)
    ]
    for child in children:
        child.start()
    try:
        given = dict(_answer(answers, children) for _ in children)
    finally:
        for child in children:
            child.join(SECONDS)
            child.kill()
    return [given[rank] for rank in range(world)]


def _answer(answers, children):
    rank, fault, value = answers.get()
    return rank, fault or value


def same_everywhere(values):
    """The one value that all processes gave."""
    assert all(str(value) == str(values[0]) for value in values), values
    return values[0]
