"""Imports that take less time."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Collect no garbage meanwhile.

    PyTorch and Lightning make more than a million objects that stay, and to look through them again and again takes two
    fifths of the time in which they are imported.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
