"""Running the readers in processes that may die, hang or ask for too much memory."""

import collections
import contextlib
import gc
import logging
import multiprocessing
import os
import random
import resource
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import pl_rl
from tests.fuzz.readers import READERS, SHARES
from tests.fuzz.sound import make_sound

SECONDS = 10
MEMORY = 2**30
SILENT = 30 * SECONDS  # of the clock, as a machine may be busy


class TooLong(BaseException):
    """A reader took more than ``SECONDS`` seconds of processor time."""


def run(readers, files, seed, workers=1, only=None):
    """Fuzz; prints the failures and the counts.

    Args:
        readers: Names.
        files: How many, over all readers by their shares.
        seed: Of all mutations: the same files each time.
        workers: Processes.
        only: The number of one file of the one reader, which alone is read, in this process.

    Returns:
        How many failed.
    """
    with _quiet(), tempfile.TemporaryDirectory(prefix="fuzz-", dir=_memory()) as folder:
        folder = Path(folder)
        sound = make_sound(folder / "sound")
        torch.set_num_threads(1)
        if only is not None:
            _case(readers[0], seed, only, sound, folder / "only")()
            return 0
        total = sum(SHARES[name] for name in readers)
        cases = [
            (name, number)
            for name in readers
            for number in range(max(1, round(files * SHARES[name] / total)))
        ]  # fmt: skip
        random.Random(seed).shuffle(cases)
        started = time.monotonic()
        counts, failures = _read_all(cases, seed, sound, folder, workers)
    for name in readers:
        words = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(counts[name].items()))
        print(f"{name:18} {sum(counts[name].values()):8,}: {words}")
    print(f"{sum(map(sum, (c.values() for c in counts.values()))):,} files, {failures} failed, "
          f"seed {seed}, {time.monotonic() - started:,.0f} s")  # fmt: skip
    return failures


def _memory():
    """A folder that is not on a disk, where there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@contextlib.contextmanager
def _quiet():
    """Without what Lightning says, and workers inherit it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def _read_all(cases, seed, sound, folder, workers):
    counts = {name: collections.Counter() for name, _ in cases}
    shares = [collections.deque(cases[i::workers]) for i in range(workers)]
    running = {}
    shown = collections.Counter()
    told = time.monotonic()
    try:
        while any(shares):
            if time.monotonic() - told > 60:
                told = time.monotonic()
                print(f"{sum(map(len, shares)):,} files are left", flush=True)
            for index, share in enumerate(shares):
                if share and index not in running:
                    running[index] = _start(share, seed, sound, folder / str(index))
            for index, share in enumerate(shares):
                if not share:
                    continue
                for outcome, words in _heard(running[index]):
                    name, number = share.popleft()
                    counts[name][outcome] += 1
                    if outcome not in ("read", "refused"):
                        _show(shown, outcome, name, number, seed, words)
                if running[index].ended and share:
                    name, number = share.popleft()
                    counts[name]["died or hung"] += 1
                    _show(shown, f"died, status {running[index].process.exitcode}", name, number, seed, "")
                if running[index].ended:
                    del running[index]
    except KeyboardInterrupt:  # what was read until now counts
        for one in running.values():
            one.process.kill()
    failures = sum(n for c in counts.values() for outcome, n in c.items() if outcome not in ("read", "refused"))
    return counts, failures


@dataclass
class _Running:
    process: Any
    channel: Any
    heard: float
    ended: bool = False


def _start(share, seed, sound, folder):
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(list(share), seed, sound, folder, there), daemon=True)
    process.start()
    there.close()
    return _Running(process, here, time.monotonic())


def _heard(running):
    """What a process has said by now; one that says nothing for long, or ever more, is ended."""
    said = []
    try:
        while running.channel.poll(0.05) and len(said) < 1000:
            said.append(running.channel.recv())
            running.heard = time.monotonic()
    except EOFError:
        running.ended = True
    if time.monotonic() - running.heard > SILENT:
        running.ended = True
    if running.ended:
        running.process.kill()
        running.process.join()
    return said


def _show(shown, outcome, name, number, seed, words):
    """A failure and how to repeat it; two of a kind."""
    kind = (name, outcome, words.strip().rpartition("\n")[2][:60])
    shown[kind] += 1
    if shown[kind] <= 2:
        print(f"--- {outcome}: python -m tests.fuzz --seed {seed} --reader {name} --only {number}\n{words}", flush=True)


def _work(cases, seed, sound, folder, channel):
    """Read each case, and say how it went."""
    gc.freeze()  # what was there before is not garbage
    with contextlib.suppress(OSError, ValueError):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    signal.signal(signal.SIGVTALRM, _too_long)
    for name, number in cases:
        channel.send(_outcome(name, seed, number, sound, folder))
    channel.close()
    os._exit(0)


def _outcome(name, seed, number, sound, folder):
    try:
        read = _case(name, seed, number, sound, folder)
        # Of processor time: the machine may be busy with other things.
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        try:
            read()
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    except (pl_rl.UsageError, pl_rl.RunFailure) as error:
        return ("too much memory", traceback.format_exc()) if _wanted_memory(error) else ("refused", "")
    except TooLong:
        return "too long", traceback.format_exc()
    except BaseException:
        return "failed", traceback.format_exc()
    return "read", ""


def _case(name, seed, number, sound, folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return READERS[name](random.Random(f"{seed} {name} {number}"), sound, folder)


def _wanted_memory(error):
    """Whether what was refused had asked for more than there was first."""
    while error is not None:
        if isinstance(error, MemoryError) or any(w in str(error) for w in ("bad_alloc", "can't allocate memory")):
            return True
        error = error.__cause__ or error.__context__
    return False


def _too_long(signum, frame):
    raise TooLong
