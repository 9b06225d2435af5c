"""Processes of ``python -m pl_rl`` that are forked from one in which everything has been imported.

They are what new ones would be, but for the seconds of processor time that importing takes. A server forks them, as a
process that has computed something has threads, which do not live through a fork.
"""

import contextlib
import ctypes
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
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pl_rl
from pl_rl.imports import quick_imports

LONGEST = 1 << 20
"""Bytes of a request."""
LAUNCHER = "torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler"
"""The module of torchrun that starts processes."""
SIMULATORS = (
    "ale_py",
    "cv2",
    "gymnasium.envs.box2d",
    "gymnasium.envs.mujoco",
    "gymnasium.wrappers",
    "minigrid",
    "pygame",
)
"""Packages that environments import when they are made."""
PR_SET_CHILD_SUBREAPER = 36
STARTER = "starter"
NAME = Path("/proc/self/comm")


class Server:
    """Forks processes until it is closed, or its owner is gone."""

    def __init__(self):
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "tests.warm", str(theirs.fileno())]
        root = str(Path(__file__).parents[1])
        # Not the variables of the test that happens to be the first.
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=root)
        theirs.close()

    def popen(
        self, command, cwd=None, stdout=None, stderr=None, text=True, env=None, start_new_session=False, family=False
    ):
        """As ``subprocess.Popen``, for what the tests ask of it: ``-m`` and a module or ``-c`` and a program.

        With ``family``, processes of this project that the process starts are forked like itself.
        """
        assert text
        request = _request(command, cwd, env, start_new_session, family)
        return Process(self._requests, request, stdout, stderr)

    def run(self, command, timeout=None, **options):
        """As ``subprocess.run`` that captures what is printed."""
        with self.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
            said = process.communicate(timeout)
        return subprocess.CompletedProcess(command, process.returncode, *said)

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


def _request(command, cwd, env, new_session, family=False):
    interpreter, option, program, *arguments = [part for part in command if part != "-u"]
    assert interpreter == sys.executable and option in ("-c", "-m")
    return {
        "option": option,
        "program": program,
        "arguments": arguments,
        "folder": str(cwd or Path.cwd()),
        "variables": dict(os.environ if env is None else env),
        "new_session": new_session,
        "family": family,
    }


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
        for name in ("torch.utils.tensorboard", LAUNCHER):
            importlib.import_module(name)
        for name in SIMULATORS:
            with contextlib.suppress(ImportError):  # of an extra
                importlib.import_module(name)
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
    for signum in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(signum, signal.SIG_DFL)
    if request["new_session"]:
        os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["variables"])
    found = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:1] = [request["folder"] if request["option"] == "-m" else "", *found]
    sys.argv = [request["program"] if request["option"] == "-m" else "-c", *request["arguments"]]
    if request["family"]:
        subprocess.Popen = sys.modules[LAUNCHER].Popen = _popen_of(_Starter())
    try:
        if request["option"] == "-m":
            runpy.run_module(request["program"], run_name="__main__", alter_sys=True)
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


class _Starter:
    """A process that forks others for the one that makes it, from before that had threads.

    They are children of the latter, and in its group, as those that it starts by itself: each is forked twice, and a
    process whose parent has ended goes to the next one above that takes such in.
    """

    def __init__(self):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        parent, (self._requests, theirs) = os.getpid(), socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            self._requests.close()
            _start_for(parent, theirs)
            os._exit(0)
        theirs.close()

    def start(self, request, out, err):
        """The number of a new process."""
        socket.send_fds(self._requests, [json.dumps(request).encode()], [out, err])
        return int(self._requests.recv(100))


def _start_for(parent, requests):
    NAME.write_text(STARTER)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # to all of a group
        signal.signal(signum, signal.SIG_IGN)
    with Path(os.devnull).open("w") as nowhere:
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)  # or whoever reads them would wait for this process
    while True:
        request, streams, _, _ = socket.recv_fds(requests, LONGEST, 2)
        if not request:
            return
        told, tell = os.pipe()
        between = os.fork()
        if between == 0:
            between, pid = os.getpid(), os.fork()
            if pid == 0:
                while os.getppid() == between:
                    time.sleep(0.001)
                NAME.write_text("python")
                for descriptor in (told, tell, requests.detach()):
                    os.close(descriptor)
                os._exit(_work(json.loads(request), *streams))
            os.write(tell, str(pid).encode())
            os._exit(0)
        os.waitpid(between, 0)  # after which the process has its parent
        requests.send(os.read(told, 100))
        for descriptor in (told, tell, *streams):
            os.close(descriptor)


def _popen_of(starter):
    """``subprocess.Popen``, which lets a starter start what runs this project."""

    class Popen(subprocess.Popen):
        def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *others):
            if isinstance(args, str) or not {"pl_rl", "pl_rl.__main__"} & set(args[1:4]):
                super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *others)
                return
            pipes, new_session = others[3:9], others[-2]
            out, err = (theirs if theirs != -1 else own for theirs, own in ((pipes[3], 1), (pipes[5], 2)))
            self.pid = starter.start(_request(args, cwd, env, new_session), out, err)
            self._child_created = True
            self._close_pipe_fds(*pipes)

    return Popen


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
