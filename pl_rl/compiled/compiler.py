"""The C++ compiler of this machine, run as a subprocess."""

import contextlib
import fcntl
import os
import platform
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import weakref
from functools import cache
from pathlib import Path

from pl_rl.compiled import code_cache
from pl_rl.errors import CompilationError, CompilerFailure

KERNELS = Path(__file__).parent / "kernels"
CHILD = Path(__file__).with_name("compiler_child.py")
# On ARM and POWER it is -mcpu that says for which processor.
THIS_PROCESSOR = "-march=native" if platform.machine() in ("x86_64", "i686") else "-mcpu=native"
FLAGS = [
    *("-std=c++17", "-shared", "-fPIC", THIS_PROCESSOR),
    *("-O2", "-ftree-vectorize", "-fopenmp-simd"),
    # Nobody reads errno or floating-point exceptions. Sums are reassociated only where the source asks for it.
    # Products and sums may be contracted to FMA (-ffp-contract=fast is the default of GCC), so bits depend on the
    # compiler, which is therefore part of a run's description.
    *("-fno-math-errno", "-fno-trapping-math"),
]
# The second keeps numbers of the loop's last round in registers: filters of three columns take two thirds of the time.
OF_GCC = ["-fvect-cost-model=dynamic", "-fpredictive-commoning"]
# AMD's processors with AVX2 alone: by GCC's own model of Zen an update with convolutions takes an eighth longer than by
# that of Haswell, a policy's step a third. The parameter is Zen's, so that the same products and sums are contracted.
OF_ZEN = ["-mtune=haswell", "--param", "avoid-fma-max-bits=256"]
SCRATCH = "pl_rl-compiler-"
OF_PROCESSOR = (
    *("model name", "flags"),  # x86
    *("Features", "CPU implementer", "CPU architecture", "CPU variant", "CPU part"),  # ARM
    *("cpu\t", "isa", "uarch", "features"),  # POWER, RISC-V, s390
)
# Messages of a compiler that lacked memory or disk: it may succeed another time.
WANTS = ("out of memory", "memory exhausted", "Cannot allocate memory", "No space left", "Resource temporarily")


class Compiler:
    """A compiler's process, in a scratch folder that is removed when it is done, or when this process ends.

    Args:
        source: In C++; it may include files of ``kernels/``.

    Raises:
        CompilerFailure: If it cannot be started.
    """

    def __init__(self, source: str) -> None:
        try:
            with contextlib.ExitStack() as undo:
                folder, lock = _scratch()
                undo.callback(shutil.rmtree, folder, ignore_errors=True)
                undo.callback(os.close, lock)
                reader, writer = os.pipe()
                undo.callback(os.close, writer)
                try:
                    self._process = self._start(source, folder, reader)
                finally:
                    os.close(reader)
                undo.pop_all()
        except OSError as error:
            raise CompilerFailure(f"the compiler cannot be started: {error}") from error
        # A run that is interrupted does not wait for it.
        self._end = weakref.finalize(self, _end, self._process, folder, (lock, writer))

    def _start(self, source: str, folder: Path, stdin: int) -> subprocess.Popen[str]:
        written, self._library = folder / "source.cpp", folder / "library.so"
        written.write_text(source)
        child = [sys.executable, "-I", "-S", str(CHILD), str(os.getpid()), str(folder)]
        compiler = [*command(), *flags(), f"-I{KERNELS}", "-o", str(self._library), str(written)]
        return subprocess.Popen(
            [*child, *compiler],
            stdin=stdin,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
            env={**os.environ, "LC_ALL": "C", "TMPDIR": str(folder)},
        )

    def finish(self) -> bytes:
        """Wait for it; returns the content of the library.

        Raises:
            CompilationError: With the compiler's first error.
            CompilerFailure: If it was killed, or lacked memory or disk.
        """
        _, errors = self._process.communicate()
        try:
            if self._process.returncode == 0:
                return self._library.read_bytes()
        except OSError as error:
            raise CompilerFailure(f"what was compiled cannot be read: {error}") from error
        finally:
            self._end()
        raise _error(self._process.returncode, errors)


def _end(process: subprocess.Popen[str], folder: Path, descriptors: tuple[int, ...]) -> None:
    """End the process and remove its folder."""
    for descriptor in descriptors:
        os.close(descriptor)  # the child ends when the pipe is closed
    process.wait()
    if process.stderr is not None:
        process.stderr.close()
    shutil.rmtree(folder, ignore_errors=True)


def command() -> list[str]:
    """The compiler's command: ``$CXX``, which may have arguments, or ``g++``.

    Raises:
        CompilationError: If it cannot be split into words.
    """
    given = os.environ.get("CXX", "")
    try:
        return shlex.split(given) or ["g++"]
    except ValueError as error:
        raise CompilationError(f"CXX={given!r} cannot be split into words: {error}") from error


def flags() -> list[str]:
    """The compiler's flags.

    Raises:
        CompilationError: If the processor cannot be told.
    """
    if "clang" in (find_compiler() or ""):
        return FLAGS
    words = set(processor().split())
    return [*FLAGS, *OF_GCC, *(OF_ZEN if {"AMD", "avx2"} <= words and "avx512f" not in words else [])]


def find_compiler() -> str | None:
    """Name and version of the C++ compiler; ``None`` without one, and on systems other than Linux.

    Raises:
        CompilerFailure: If it was killed.
    """
    return _version(tuple(command())) if sys.platform == "linux" else None


@cache
def _version(words: tuple[str, ...]) -> str | None:
    if shutil.which(words[0]) is None:
        return None
    try:
        asked = subprocess.run([*words, "--version"], capture_output=True, text=True, errors="replace", check=False)
    except OSError:
        return None
    if asked.returncode < 0:
        raise _error(asked.returncode, "")
    first_line = asked.stdout.partition("\n")[0]
    return " ".join([first_line, *words[1:]]) if first_line and asked.returncode == 0 else None


@cache
def processor() -> str:
    """The processor that code is compiled for, and the version of the C library, whose mathematics it calls.

    Raises:
        CompilationError: If ``/proc/cpuinfo`` cannot be read.
    """
    try:
        told = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError as error:
        raise CompilationError(f"the processor cannot be told: {error}") from error
    return "\n".join([platform.machine(), *platform.libc_ver(), *_of_processor(told)])


def _of_processor(told: str) -> list[str]:
    """The lines of ``/proc/cpuinfo`` that tell models and features of processors, and do not vary with time."""
    return sorted({line for line in told.splitlines() if line.startswith(OF_PROCESSOR)})


def remove_leftovers() -> None:
    """Remove scratch folders of killed processes."""
    with contextlib.suppress(OSError):
        for folder in _scratch_root().glob(f"{SCRATCH}*"):
            if _is_left(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_left(folder: Path) -> bool:
    """Whether a scratch folder is the user's and no process compiles there."""
    try:
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            return False
        try:
            with (folder / "lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return time.time() - status.st_mtime > 60  # a younger one is being made
    except OSError:
        return False
    return True


def _scratch_root() -> Path:
    """A folder in which nobody else can change what is compiled.

    Raises:
        OSError: If there is none.
    """
    root = Path(tempfile.gettempdir()).absolute()
    if (fault := code_cache.others_can_change(root)) is None:
        return root
    try:
        return code_cache.folder()
    except code_cache.NotKept as error:
        raise PermissionError(f"{fault}; set TMPDIR to a folder of your own") from error


def _scratch() -> tuple[Path, int]:
    """A new scratch folder, and the descriptor of a lock in it, which ends with this process.

    Raises:
        OSError: If none can be made.
    """
    folder = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=_scratch_root()))
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with contextlib.suppress(OSError):  # a file system without locks: leftovers stay there
        fcntl.flock(lock, fcntl.LOCK_EX)
    return folder, lock


def _error(status: int, errors: str) -> CompilationError:
    """The exception for a compiler that failed.

    Args:
        status: Its exit status, negative for a signal.
        errors: What it wrote to standard error.
    """
    if (killer := _signal(status, errors)) is not None:
        cause = ", as systems do that run out of memory" if killer == signal.SIGKILL else ""
        return CompilerFailure(f"the compiler was killed by {killer.name}{cause}")
    lines = [line for line in errors.splitlines() if "error" in line] or [errors.strip() or f"status {status}"]
    kind = CompilerFailure if any(want in errors for want in WANTS) else CompilationError
    return kind(f"compiling failed: {lines[0]}")


def _signal(status: int, errors: str) -> signal.Signals | None:
    """The signal that killed the compiler or a subprocess of it, as the drivers of GCC, linker and Clang report it."""
    for number in signal.Signals:
        name = re.escape(signal.strsignal(number) or number.name)
        told = rf"{name} signal terminated|terminated with signal {int(number)}\b|execute command: {name}"
        if status in (-number, 128 + number) or re.search(told, errors):
            return number
    return None
