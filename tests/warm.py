"""Processes of ``python -m pl_rl`` that are forked from one in which everything has been imported.

They are what new ones would be, but for the seconds of processor time that importing takes. A server forks them, as a
process that has computed something has threads, which do not live through a fork.
"""

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pl_rl
from pl_rl.imports import quick_imports

LONGEST = 1 << 20
"""Bytes of a request."""


class Server:
    """Forks processes until it is closed, or its owner is gone."""

    def __init__(self):
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "tests.warm", str(theirs.fileno())]
        root = str(Path(__file__).parents[1])
        # Not the variables of the test that happens to be the first.
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=root)
        theirs.close()

    def popen(self, command, cwd=None, stdout=None, stderr=None, text=True, env=None, start_new_session=False):
        """As ``subprocess.Popen``, for what the tests ask of it: ``-m pl_rl`` or ``-c`` and a program."""
        interpreter, option, program, *arguments = command
        assert interpreter == sys.executable and text and (option == "-c" or [option, program] == ["-m", "pl_rl"])
        request = {
            "program": program if option == "-c" else None,
            "arguments": arguments,
            "folder": str(cwd or Path.cwd()),
            "variables": dict(os.environ if env is None else env),
            "new_session": start_new_session,
        }
        return Process(self._requests, request, stdout, stderr)

    def close(self):
        self._requests.close()
        self._process.wait()


class Process:
    """A forked process; its methods are those of ``subprocess.Popen``."""

    def __init__(self, requests, request, stdout, stderr):
        told, tell = os.pipe()
        self.stdout, out = _stream(stdout, 1)
        self.stderr, err = (None, os.dup(out)) if stderr == subprocess.STDOUT else _stream(stderr, 2)
        socket.send_fds(requests, [json.dumps(request).encode()], [out, err, tell])
        os.close(tell)
        if self.stdout is not None:
            os.close(out)
        if self.stderr is not None or stderr == subprocess.STDOUT:
            os.close(err)
        self._told = os.fdopen(told)
        self.pid = int(self._told.readline())
        self.returncode = None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if error[0] is not None:
            self.kill()
        self.wait()
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()

    def send_signal(self, signum):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signum)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def poll(self):
        return self.returncode if self.returncode is None and not self._has_ended(0) else self.wait()

    def wait(self, timeout=None):
        if self.returncode is None:
            if not self._has_ended(timeout):
                raise subprocess.TimeoutExpired("pl_rl", timeout)
            with self._told:
                self.returncode = int(self._told.readline())
        return self.returncode

    def _has_ended(self, timeout):
        return bool(select.select([self._told], [], [], timeout)[0])

    def communicate(self, timeout=None):
        """What it still prints until it ends."""
        streams = [stream for stream in (self.stdout, self.stderr) if stream is not None]
        with ThreadPoolExecutor(len(streams)) as pool:
            reading = {stream: pool.submit(_read_all, stream) for stream in streams}
            self.wait(timeout)
        return tuple(reading[stream].result() if stream else None for stream in (self.stdout, self.stderr))


def _stream(asked, number):
    """Where this process reads a stream of the forked one, if it asked for that, and where that writes."""
    if asked != subprocess.PIPE:
        return None, number if asked is None else asked.fileno()
    reader, writer = os.pipe()
    return os.fdopen(reader), writer


def _read_all(stream):
    with stream:
        return stream.read()


def _serve(requests):
    with quick_imports():
        for module in pkgutil.walk_packages(pl_rl.__path__, "pl_rl."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
        importlib.import_module("torch.utils.tensorboard")
    gc.freeze()  # or collections in the forked processes would copy all that they share
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait for the processes
    while True:
        request, streams, _, _ = socket.recv_fds(requests, LONGEST, 3)
        if not request:
            return
        if os.fork() == 0:
            requests.close()
            _attend(json.loads(request), *streams)
            os._exit(0)
        for stream in streams:
            os.close(stream)


def _attend(request, out, err, tell):
    """Fork the process, and tell its number and exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        os.close(tell)
        os._exit(_work(request, out, err))
    os.close(out)
    os.close(err)
    os.write(tell, f"{pid}\n".encode())
    os.write(tell, f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n".encode())


def _work(request, out, err):
    """Run the command; returns its exit status."""
    for stream, number in ((out, 1), (err, 2)):
        os.dup2(stream, number)
        os.close(stream)
    # As in a terminal, whoever runs the tests.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if request["new_session"]:
        os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["variables"])
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.argv = ["pl_rl", *request["arguments"]]
    try:
        if request["program"] is None:
            runpy.run_module("pl_rl", run_name="__main__", alter_sys=True)
        else:
            sys.modules["__main__"] = main = types.ModuleType("__main__")
            exec(request["program"], vars(main))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
