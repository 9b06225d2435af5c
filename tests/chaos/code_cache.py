"""What happens to machine code on disk, and to the compiler that makes it."""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.chaos.processes import ITERATION, Run, fit_command
from tests.chaos.scenarios import NOBODY, Chaos, Outcome

COMMAND = fit_command(model__compile_update="true", model__total_env_steps=ITERATION * 8)
# Has the version of the compiler that it stands for, so that it is asked for the same libraries.
COMPILER = '#!/bin/sh\nif [ "$1" = --version ]; then exec g++ --version; fi\n{}\n'


def cut(libraries: list[Path]) -> None:
    """As after a loss of power."""
    for path in libraries:
        os.truncate(path, path.stat().st_size // 2)


def zeroed(libraries: list[Path]) -> None:
    """As by a file system that lost their blocks."""
    for path in libraries:
        path.write_bytes(bytes(path.stat().st_size))


def swapped(libraries: list[Path]) -> None:
    """Each under another's name."""
    contents = [path.read_bytes() for path in libraries]
    for path, content in zip(libraries, [*contents[1:], contents[0]], strict=True):
        path.write_bytes(content)


def open_files(libraries: list[Path]) -> None:
    """Others can write them."""
    for path in libraries:
        path.chmod(0o666)


def open_folder(libraries: list[Path]) -> None:
    """Others can replace them."""
    libraries[0].parent.chmod(0o777)


def of_another(libraries: list[Path]) -> None:
    """As they are where several share a cache; only root can try."""
    if os.geteuid() == 0:
        for path in (libraries[0].parent, *libraries):
            os.chown(path, NOBODY, NOBODY)


def links(libraries: list[Path]) -> None:
    """To sound libraries elsewhere."""
    for path in libraries:
        path.symlink_to(path.rename(path.parent.parent / path.name))


def code_cache(chaos: Chaos) -> list[Outcome]:
    """A cache that is damaged or not the user's alone, and compilers that are killed."""
    whole = chaos.whole(COMMAND)
    damaged = Outcome("machine code on disk cut, zeroed, swapped; open to others; another user's; links")
    sound = chaos.new("cache-sound")
    chaos.end(chaos.new("cache-filled"), COMMAND, _with(XDG_CACHE_HOME=sound))
    for damage in (cut, zeroed, swapped, open_files, open_folder, of_another, links):
        cache, parts = chaos.folder / f"cache-{damage.__name__}", chaos.new(f"cache-{damage.__name__}-run")
        shutil.copytree(sound, cache)
        damage(sorted(cache.glob("pl_rl/*.so")))
        chaos.end(parts, COMMAND, _with(XDG_CACHE_HOME=cache))
        damaged.judge(whole, parts)
    killed = Outcome("the compiler killed; then the command again")
    place = chaos.new("compiler-killed")
    compiler = _compiler(place, "kill -KILL $$")
    status, output = Run(place, COMMAND, _with(XDG_CACHE_HOME=place / "cache", CXX=compiler)).wait()
    killed.expect_sentence(status, output, 1, "the compiler was killed by SIGKILL")
    chaos.end(place, COMMAND, _with(XDG_CACHE_HOME=place / "cache"))
    killed.judge(whole, place)
    return [damaged, killed, _killed_while_compiling(chaos, whole)]


def _killed_while_compiling(chaos: Chaos, whole: Path) -> Outcome:
    outcome = Outcome("SIGKILL while compiling: no process, no folder is left")
    place, temporary = chaos.new("killed-compiling"), chaos.new("killed-compiling-tmp")
    compiler = _compiler(place, f"touch {place}/started; sleep 1000 & wait")
    prepare = _with(XDG_CACHE_HOME=place / "cache", TMPDIR=temporary, CXX=compiler)
    run = Run(place, COMMAND, prepare)
    _wait_until(lambda: (place / "started").exists())
    run.kill(signal.SIGKILL)
    run.wait()
    if not _wait_until(lambda: not any(temporary.iterdir()) and not _processes(temporary)):
        outcome.tried += 1
        outcome.lost.append(f"{sorted(temporary.iterdir())} and processes {_processes(temporary)} are left")
    shutil.rmtree(temporary)
    chaos.end(place, COMMAND, _with(XDG_CACHE_HOME=place / "cache"))
    outcome.judge(whole, place)
    return outcome


def _with(**environment: object) -> Callable[[], None]:
    def prepare() -> None:
        os.environ.update({name: str(value) for name, value in environment.items()})
        tempfile.tempdir = None

    return prepare


def _compiler(place: Path, does: str) -> Path:
    path = place / "compiler"
    path.write_text(COMPILER.format(does))
    path.chmod(0o755)
    return path


def _processes(place: Path) -> list[str]:
    """Those that were started with a path in a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(place) in path.read_text():
                found.append(path.parent.name)
        except OSError:  # it is over
            continue
    return found


def _wait_until(condition: Callable[[], bool], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
