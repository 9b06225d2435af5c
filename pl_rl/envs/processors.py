"""The processor cores of this process."""

import os

PROCESSES_HERE = "LOCAL_WORLD_SIZE"
"""How torchrun, and :mod:`pl_rl.distributed.processes`, call the number of a run's processes on this machine."""


def cores() -> int:
    """Processor cores that this process may use, as one of those that a run has on this machine."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, here // int(os.environ.get(PROCESSES_HERE, 1)))
