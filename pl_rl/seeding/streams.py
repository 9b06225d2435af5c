"""Independent random streams from one run seed.

Every consumer of random numbers has a key of its own, so that drawing more in one place (as by evaluating more often)
changes nothing in another.
"""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """Who draws the numbers."""

    ENVIRONMENTS = 0
    SAMPLING = 1
    EVALUATION = 2
    TEST = 3
    PREDICTION = 4
    BRANCH = 5
    VIDEO = 6
    DEALING = 7


def derive_seed(run_seed: int, *key: int) -> int:
    """A seed below 2**32 for one stream of a run.

    Args:
        run_seed: The seed of the whole run, non-negative.
        key: Non-negative numbers that identify the consumer: a ``Stream`` and, say, an evaluation's train iteration.

    Source: ``numpy.random.SeedSequence`` spawn keys,
    https://numpy.org/doc/stable/reference/random/parallel.html
    """
    sequence = np.random.SeedSequence(run_seed, spawn_key=tuple(map(int, key)))
    return int(sequence.generate_state(1)[0])
