"""Running the readers in processes that may die, hang or ask for too much memory."""

import collections
import contextlib
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
from pathlib import Path

import torch

import pl_rl
from tests.fuzz.readers import READERS, SHARES
from tests.fuzz.sound import make_sound

SECONDS = 10
MEMORY = 2**30
SHOWN = 40


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
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
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


def _read_all(cases, seed, sound, folder, workers):
    context = multiprocessing.get_context("fork")
    counts, failures, seen = collections.defaultdict(collections.Counter), 0, collections.Counter()
    shares = [collections.deque(cases[i::workers]) for i in range(workers)]
    channels = {}
    while any(shares) or channels:
        for index, share in enumerate(shares):
            if share and index not in channels:
                here, there = context.Pipe(duplex=False)
                process = context.Process(
                    target=_work, args=(list(share), seed, sound, folder / str(index), there), daemon=True
                )
                process.start()
                there.close()
                channels[index] = (process, here, time.monotonic())
        for index, (process, here, heard) in list(channels.items()):
            try:
                while here.poll(0.05):
                    outcome, words = here.recv()
                    name, number = shares[index].popleft()
                    counts[name][outcome] += 1
                    heard = time.monotonic()
                    if outcome not in ("read", "refused"):
                        failures += 1
                        seen[name, words.splitlines()[-1][:60]] += 1
                        if seen[name, words.splitlines()[-1][:60]] <= 2 and len(seen) <= SHOWN:
                            print(
                                f"--- {outcome}: python -m tests.fuzz --seed {seed} --reader {name} --only {number}\n{words}",
                                flush=True,
                            )
                channels[index] = (process, here, heard)
                dead = time.monotonic() - heard > 12 * SECONDS
            except EOFError:
                dead = True
            if dead:
                process.kill()
                process.join()
                del channels[index]
                if shares[index]:
                    name, number = shares[index].popleft()
                    counts[name]["died or hung"] += 1
                    failures += 1
                    print(
                        f"--- died (status {process.exitcode}): --seed {seed} --reader {name} --only {number}",
                        flush=True,
                    )
    return counts, failures


def _work(cases, seed, sound, folder, channel):
    """Read each case, and say how it went."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
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
