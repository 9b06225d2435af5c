"""Threads that share out calls of machine code, which releases the interpreter's lock."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

Calls = Sequence[Callable[[], None]]


class Threads:
    """Threads that make calls at once, the caller's among them.

    Args:
        count: How many.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool = ThreadPoolExecutor(max(1, count - 1), initializer=torch.set_num_threads, initargs=(1,))

    def run(self, calls: Calls) -> None:
        """Make all calls; each thread makes every ``count``-th of them."""
        others = [self._pool.submit(_make, calls[thread :: self._count]) for thread in range(1, self._count)]
        _make(calls[:: self._count])
        for other in others:
            other.result()

    def close(self) -> None:
        """End them."""
        self._pool.shutdown()


def _make(calls: Calls) -> None:
    for call in calls:
        call()
