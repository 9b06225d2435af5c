"""What is done to the processes of one run: all end, nobody is left, and it goes on exactly with another number."""

import ctypes
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from pl_rl.distributed import processes, shards
from tests.chaos.processes import ITERATION, LONGER, Run, fit_command, moment
from tests.chaos.scenarios import Chaos, Outcome, has_ended

WORLDS = (1, 2, 4)
COMMAND = fit_command(model__shards=4, model__total_env_steps=2 * ITERATION * 12, **LONGER)
ASKED = 128 + signal.SIGTERM
START_SECONDS, PATIENCE_SECONDS = 60, 20
"""For which processes wait for each other here, on a busy machine, too; instead of five minutes and one."""


class Ranks:
    """A run's processes, started as torchrun and SLURM would.

    Args:
        folder: Their working directory.
        world: Number of processes.
        networks: Of each process, whose first is reached at the address; one for all by default.
    """

    def __init__(self, folder: Path, world: int, networks: "Networks | None" = None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = "127.0.0.1" if networks is None else networks.ADDRESS, free.getsockname()[1]
        prepare = [partial(_as_rank, rank, world, place, networks) for rank in range(world)]
        self.runs = [Run(folder, COMMAND, each) for each in prepare]

    def wait(self, seconds: float = 180, hang: int = 0) -> tuple[list[int | None], str]:
        """Wait for all but those that hang.

        Returns:
            Statuses, ``None`` of those that had to be killed in the end, and what all have printed.
        """
        deadline = time.monotonic() + seconds
        while True:
            hanging = [not has_ended(run.pid) for run in self.runs]
            if sum(hanging) <= hang or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        for run in self.runs:
            run.kill()
        ended = [run.wait() for run in self.runs]
        return [None if hangs else status for hangs, (status, _) in zip(hanging, ended, strict=True)], ended[-1][1]


class Networks:
    """Two network namespaces, one for each of two processes, with a cable between them that can be cut."""

    ADDRESS = "10.77.0.1"

    def __init__(self) -> None:
        self._names = [f"pl_rl_{os.getpid()}_{number}" for number in range(2)]
        for number, name in enumerate(self._names):
            _ip("netns", "add", name)
            if number == 1:
                ends = ["veth0", "netns", self._names[0], "type", "veth", "peer", "veth0", "netns", name]
                _ip("link", "add", *ends)
        for number, name in enumerate(self._names):
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "address", "add", f"10.77.0.{number + 1}/24", "dev", "veth0")
            _ip("-n", name, "link", "set", "veth0", "up")

    def enter(self, rank: int) -> None:
        """Let this process be in one of them."""
        with Path("/run/netns", self._names[rank]).open() as place:
            if ctypes.CDLL(None).setns(place.fileno(), 0):
                raise OSError("setns")
        os.environ["GLOO_SOCKET_IFNAME"] = "veth0"

    def cut(self) -> None:
        """Let nothing pass any more, without a word."""
        for name in self._names:
            _ip("-n", name, "link", "set", "veth0", "down")

    def remove(self) -> None:
        """Take both away."""
        for name in self._names:
            _ip("netns", "delete", name)


def distributed(chaos: Chaos, kills: int) -> list[Outcome]:
    """Ranks killed, stopped and asked to end, a full disk, a cut network."""
    whole = chaos.whole(COMMAND)

    def killed(ranks: Ranks, target: int) -> None:
        ranks.runs[target].kill()

    def stopped(ranks: Ranks, target: int) -> None:
        ranks.runs[target].kill(signal.SIGSTOP)

    def asked(ranks: Ranks, target: int) -> None:
        for run in ranks.runs[-1:] if chaos.chance.random() < 0.5 else ranks.runs:
            run.kill(signal.SIGTERM)

    def first_asked(ranks: Ranks, target: int) -> None:
        ranks.runs[0].kill(signal.SIGTERM)

    def filled(ranks: Ranks, target: int) -> None:
        resource.prlimit(ranks.runs[0].pid, resource.RLIMIT_FSIZE, (2000, 2000))

    trouble = partial(_trouble, chaos, whole)
    return [
        trouble("a process of several killed by SIGKILL", kills, killed, {-signal.SIGKILL, 1}),
        trouble("a process of several stopped by SIGSTOP", 2, stopped, {None, 1}),
        trouble("another than the first of several processes, or all, asked to end by SIGTERM", 2, asked, {ASKED}),
        # It may leave at once, which the others, who were not asked, take for its death.
        trouble("the first of several processes asked to end by SIGTERM", 1, first_asked, {ASKED, 1}),
        trouble("disk full for the first of several processes", 2, filled, {1}),
        _cut_network(chaos, whole),
    ]


def _trouble(
    chaos: Chaos, whole: Path, what: str, rounds: int, make: Callable[[Ranks, int], None], statuses: set[int | None]
) -> Outcome:
    outcome = Outcome(what)
    while outcome.tried < rounds:
        folder = chaos.new(f"ranks-{make.__name__}-{outcome.tried}-{time.monotonic_ns()}")
        ranks = Ranks(folder, chaos.chance.choice(WORLDS[1:]))
        phase, times, seconds = moment(chaos.chance)
        ranks.runs[0].wait_for(phase, times)
        time.sleep(seconds)
        make(ranks, chaos.chance.randrange(len(ranks.runs)))
        _go_on(chaos, outcome, whole, folder, ranks, statuses)
    return outcome


def _go_on(chaos: Chaos, outcome: Outcome, whole: Path, folder: Path, ranks: Ranks, statuses: set[int | None]) -> None:
    """All must have ended as they should, and the run goes on with a random number of processes."""
    ended, output = ranks.wait(hang=1 if None in statuses else 0)
    if set(ended) == {0}:
        return  # it was over before its moment came
    if not set(ended) <= {*statuses, 0} or ended.count(None) > 1 or "Traceback" in output:
        outcome.tried += 1
        outcome.lost.append(f"{outcome.what}: statuses {ended}: {output[-2000:]}")
        return
    ended, output = Ranks(folder, chaos.chance.choice(WORLDS)).wait(600)
    assert set(ended) == {0}, output
    outcome.judge(whole, folder)


def _cut_network(chaos: Chaos, whole: Path) -> Outcome:
    outcome = Outcome("the network between two processes cut")
    try:
        networks = Networks()
    except (OSError, subprocess.CalledProcessError):
        return outcome  # not allowed here
    try:
        folder = chaos.new("ranks-cut")
        ranks = Ranks(folder, 2, networks)
        ranks.runs[0].wait_for("updating", 8)
        networks.cut()
        _go_on(chaos, outcome, whole, folder, ranks, {1})
    finally:
        networks.remove()
    return outcome


def _as_rank(rank: int, world: int, place: tuple[str, int], networks: Networks | None) -> None:
    """What torchrun tells a process."""
    if networks is not None:
        networks.enter(rank)
    of_process = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0}
    of_run = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": place[0], "MASTER_PORT": place[1]}
    os.environ |= {name: str(value) for name, value in {**of_process, **of_run, "TORCHELASTIC_RUN_ID": "chaos"}.items()}
    rank_zero_only.rank = rank
    processes.START_SECONDS, shards.PATIENCE_SECONDS = START_SECONDS, PATIENCE_SECONDS


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
