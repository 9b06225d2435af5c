"""Runs a compiler for a parent process, and kills it when the parent ends, in whatever way.

``python compiler_child.py PROCESS FOLDER COMMAND...``; standard input is a pipe whose other end PROCESS holds.
The parent cannot do this itself, as SIGKILL leaves it no time, and a parent-death signal reaches the compiler's driver
but not the driver's subprocesses. It imports nothing of the package, to start fast.
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
    """Returns the compiler's exit status, 128 + N for signal N; removes the folder if the parent has ended."""
    compiler = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)

    def is_left() -> bool:
        # The pipe tells at once, but a worker that the parent has forked keeps it open.
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
