"""Signals that ask a run to leave, as schedulers and people send them.

Exit statuses are the shell's, 128 and the signal's number: 143 for SIGTERM, 130 for SIGINT (Ctrl-C), 129 for SIGHUP (a
closed terminal), 138 for SIGUSR1.
"""

import contextlib
import mmap
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from pl_rl.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)

# Within which a signal to a group of processes has reached all of them.
GROUP_SECONDS = 0.05


class Interruption:
    """Listens to signals and either leaves at once or remembers them, as the run allows.

    A second signal ends the process at once, whatever it does.

    Attributes:
        safe_to_raise: True while nothing would be lost, as a restorable snapshot exists; the handler may raise then.
        received: The signal that has come, if one has.
    """

    def __init__(self) -> None:
        self.safe_to_raise = True
        self.received: int | None = None
        self._process = 0
        self._has_alarm = False
        # Shared with worker processes, which are forked later and inherit the handler.
        self._finishing = mmap.mmap(-1, 1)

    @contextmanager
    def listening(self, signals: Iterable[int] = SIGNALS) -> Iterator[None]:
        """Handle the signals in this block; only the main thread can, so in others nothing happens.

        Handlers are put back afterwards, and with SIGALRM's a timer that somebody else had set. Left alone are a signal
        whose handler is not Python's, which could not be put back, and SIGHUP where it is ignored, as ``nohup`` asks.
        """
        self.safe_to_raise, self.received, self._process = True, None, os.getpid()
        self._finishing[0] = 0
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {signum: signal.getsignal(signum) for signum in signals}
        if before.get(signal.SIGHUP) is signal.SIG_IGN:
            del before[signal.SIGHUP]
        before = {signum: handler for signum, handler in before.items() if handler is not None}
        for signum in before:
            signal.signal(signum, self._handle)
        self._has_alarm, began = signal.SIGALRM in before, time.monotonic()
        others_alarm, interval = signal.setitimer(signal.ITIMER_REAL, 0) if self._has_alarm else (0.0, 0.0)
        try:
            yield
        finally:
            self.set_alarm(0)
            self._has_alarm = False
            for signum, handler in before.items():
                signal.signal(signum, handler)
            if others_alarm > 0:
                signal.setitimer(signal.ITIMER_REAL, max(others_alarm - (time.monotonic() - began), 1e-3), interval)

    def set_alarm(self, seconds: float) -> None:
        """Have SIGALRM sent after so many seconds, or not any more for 0; nothing where it is not listened to."""
        if self._has_alarm:
            signal.setitimer(signal.ITIMER_REAL, seconds)

    def leave(self) -> None:
        """End the run if a signal has come.

        Raises:
            Interrupted: If one has.
        """
        if self.received is not None:
            self._finishing[0] = 0
            raise Interrupted(self.received)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            self._handle_in_worker(signum)
        elif signum == signal.SIGALRM:
            if self.safe_to_raise:  # elsewhere Lightning's Timer ends the run after this iteration
                self.received = signum
                self.leave()
        elif self.received is not None:
            _die(signum)
        else:
            self.received = signum
            when = "now" if self.safe_to_raise else "after this iteration"
            # Not print, which must not be called while it is interrupted itself.
            with contextlib.suppress(OSError):  # the terminal may be gone
                os.write(2, f"\n{Interrupted(signum).name}: stopping {when}; once more stops at once\n".encode())
            if self.safe_to_raise:
                self.leave()
            self._finishing[0] = 1

    def _handle_in_worker(self, signum: int) -> None:
        """Environments go on until the run lets them go, unless they are terminated by it alone."""
        if signum == signal.SIGTERM:
            time.sleep(GROUP_SECONDS)
            if not self._finishing[0]:
                _die(signum)


@contextmanager
def held_back() -> Iterator[None]:
    """Have signals wait for the end of this block, within which an exception would be worse than a delay.

    PyTorch's dispatch modes are such blocks: where a handler raises while one is entered or left, C++ aborts the
    process. A signal that comes twice ends the process at once. Only the main thread runs handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def remember(signum: int, frame: FrameType | None) -> None:
        if signum in came:
            _die(signum)
        came.append(signum)

    handlers = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGALRM)}
    of_python = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in of_python:
        signal.signal(number, remember)
    try:
        yield
    finally:
        for number, handler in of_python.items():
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)


def _die(signum: int) -> None:
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)
