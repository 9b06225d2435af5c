"""How many threads of PyTorch's a policy learns and acts with."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """One alone: a second one slows small matrices down.

    With large ones it does not always give the same bits again, and another number of them gives other bits, down to
    the initial weights.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
