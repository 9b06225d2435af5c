"""Runs a compiler for a process, and ends it when that process ends, however that may be.

``python compiler_child.py PROCESS FOLDER COMMAND...``, whose standard input is a pipe that PROCESS holds. A signal
cannot do this: SIGKILL leaves no time for one, and what asks the system for one ("parent death") reaches the compiler's
driver and not what that has started. It imports nothing of the package, as one of it starts with each compiler.
"""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import threading


def main(process: int, folder: str, command: list[str]) -> int:
    """The compiler's exit status, 128 and its number for a signal; without the process its folder goes, too."""
    compiler = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)

    def is_left() -> bool:
        # The pipe tells at once, but stays open in a worker that the process has forked.
        return os.getppid() != process or bool(select.select([0], [], [], 0)[0])

    def watch() -> None:
        while not is_left():
            select.select([0], [], [], 0.5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(compiler.pid, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    status = compiler.wait()
    if is_left():
        shutil.rmtree(folder, ignore_errors=True)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
