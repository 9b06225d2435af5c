"""Machine code on disk: nobody else's is executed, a damaged file is compiled again, a killed run leaves nothing."""

import errno
import fcntl
import gc
import os
import signal
import stat
import sys
import tempfile
import time
from pathlib import Path

import pytest

from pl_rl.compiled import code_cache, compiler
from pl_rl.compiled import function as compilation
from pl_rl.compiled.function import Library
from pl_rl.errors import CompilationError, CompilerFailure

SOURCE = 'extern "C" int answer() { return 42; }\n'
POISON = 'extern "C" int answer() { return 13; }\n'
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture(scope="module")
def poison():
    """A sound library that is not what its name says."""
    return compiler.Compiler(POISON).finish()


@pytest.fixture(autouse=True)
def _own_tmp(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("tmp")))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and what is said about it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code_cache.say.cache_clear()
    return tmp_path / "cache" / "pl_rl"


@pytest.fixture
def said(monkeypatch):
    sentences = []
    monkeypatch.setattr(code_cache, "rank_zero_info", sentences.append)
    return sentences


@pytest.fixture
def compiled(monkeypatch):
    """Sources that were compiled, one after another."""
    sources = []

    class Counting(compiler.Compiler):
        def __init__(self, source):
            sources.append(source)
            super().__init__(source)

    monkeypatch.setattr(compilation, "Compiler", Counting)
    return sources


def place(cache):
    return cache / f"{compilation._key(SOURCE)}.so"


def answer():
    return Library(SOURCE).load().answer()


def plant(cache, library):
    """Let a library lie where the one of ``SOURCE`` is looked for, as if it was kept there."""
    code_cache.keep(compilation._key(SOURCE), library)
    return place(cache)


def test_what_is_kept_is_loaded_without_a_compiler(cache, compiled):
    assert [answer(), answer()] == [42, 42]
    assert len(compiled) == 1
    assert [stat.S_IMODE(path.stat().st_mode) for path in (cache.parent, cache, place(cache))] == [0o700, 0o700, 0o600]
    assert [path.name for path in cache.iterdir()] == [place(cache).name]


def other_library(path, poison):
    """Another sound file of the cache, digest and all."""
    code_cache.keep("another", poison)
    path.write_bytes(path.with_name("another.so").read_bytes())


DAMAGES = {
    "cut": lambda path, _: os.truncate(path, path.stat().st_size // 2),
    "cut by a byte": lambda path, _: os.truncate(path, path.stat().st_size - 1),
    "zeros": lambda path, _: path.write_bytes(bytes(path.stat().st_size)),
    "empty": lambda path, _: path.write_bytes(b""),
    "text": lambda path, _: path.write_bytes(b"not a library"),
    "another library": other_library,
    "a library without a digest": lambda path, poison: path.write_bytes(poison),
    "one bit": lambda path, _: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_library_is_compiled_again(damage, cache, poison, compiled, said):
    assert answer() == 42
    DAMAGES[damage](place(cache), poison)
    assert answer() == 42
    assert answer() == 42
    assert compiled == [SOURCE] * 2
    assert said == [f"{place(cache)} is not used (it is damaged); it is compiled again."]


def test_what_is_no_file_is_compiled_again(cache, tmp_path, poison, compiled, said):
    path = plant(cache, poison)
    elsewhere = path.rename(tmp_path / "elsewhere.so")
    path.symlink_to(elsewhere)
    assert answer() == 42, "a link is not followed"
    path.unlink()
    os.mkfifo(path)
    assert answer() == 42, "nobody waits for a pipe"
    assert answer() == 42
    assert len(compiled) == 2 and len(said) == 2
    path.unlink()
    path.mkdir()
    assert answer() == 42, "what cannot be replaced is in nobody's way"
    assert len(compiled) == 3 and len(said) == 3


def foreign(path):
    os.chown(path, 1234, 1234)


OPEN = {
    "a file that a group can write": (lambda path: path.chmod(0o660), "can be written by others (mode 660)"),
    "a file that all can write": (lambda path: path.chmod(0o602), "can be written by others (mode 602)"),
    "a folder that a group can write": (lambda path: path.parent.chmod(0o770), "can be written by others (mode 770)"),
    "a folder like /tmp": (lambda path: path.parent.chmod(0o1777), "can be written by others (mode 1777)"),
    "a parent that all can write": (
        lambda path: path.parent.parent.chmod(0o777),
        "can be written by others (mode 777)",
    ),
    "a grandparent": (lambda path: path.parents[2].chmod(0o777), "can be written by others (mode 777)"),
    "another's file": (foreign, "belongs to user 1234"),
    "another's folder": (lambda path: foreign(path.parent), "belongs to user 1234"),
    "another's parent": (lambda path: foreign(path.parent.parent), "belongs to user 1234"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=as_root) if name.startswith("another") else name for name in OPEN]
)
def test_what_others_can_write_is_not_executed(name, cache, poison, said):
    open_up, told = OPEN[name]
    open_up(plant(cache, poison))
    assert answer() == 42
    assert answer() == 42
    assert len(said) == 1 and told in said[0], said


def test_a_link_of_the_users_is_followed_and_one_through_an_open_folder_is_not(cache, tmp_path, compiled, said):
    (tmp_path / "large-disk").mkdir()
    cache.parent.symlink_to("open/../large-disk")
    (tmp_path / "open").mkdir()
    assert [answer(), answer()] == [42, 42]
    assert len(compiled) == 1 and not said
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "open" / "link").symlink_to(tmp_path / "large-disk")
    cache.parent.unlink()
    cache.parent.symlink_to("open/link")
    assert answer() == 42
    assert len(compiled) == 2 and "open can be written by others" in said[0]


@as_root
def test_anothers_link_is_not_followed(cache, tmp_path, said):
    (tmp_path / "users").mkdir()
    cache.parent.symlink_to(tmp_path / "users")
    os.lchown(cache.parent, 1234, 1234)
    assert answer() == 42
    assert said == [
        f"Machine code is compiled for this run alone: {cache.parent} belongs to user 1234; "
        "mend that, or set XDG_CACHE_HOME to a folder that is yours alone."
    ]


@pytest.mark.parametrize(
    ("home", "given", "used"),
    [
        ("home", "", "home/.cache/pl_rl"),
        ("home", "relative", "home/.cache/pl_rl"),
        ("home", None, "home/.cache/pl_rl"),
        ("file", None, None),
        ("no/relative", "", None),
    ],
)
def test_where_the_cache_is(home, given, used, tmp_path, monkeypatch, compiled, said):
    code_cache.say.cache_clear()
    (tmp_path / "home").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", home if home.startswith("no") else str(tmp_path / home))
    monkeypatch.setenv("XDG_CACHE_HOME", given or "")
    if given is None:
        monkeypatch.delenv("XDG_CACHE_HOME")
    assert [answer(), answer()] == [42, 42]
    assert len(compiled) == (1 if used else 2)
    assert len(said) == (0 if used else 1)
    assert sorted(tmp_path.rglob("*.so")) == ([tmp_path / used / place(tmp_path).name] if used else [])


def test_a_cache_that_is_full_or_read_only_is_no_reason_to_stop(cache, monkeypatch, said):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert answer() == 42
    assert said == ["Machine code is compiled for this run alone: [Errno 28] No space left on device."]
    assert list(cache.iterdir()) == []


def test_a_library_stays_loaded_whatever_becomes_of_its_file(cache):
    assert answer() == 42
    library = Library(SOURCE).load()
    os.truncate(place(cache), 0)
    assert library.answer() == 42


def test_files_that_a_killed_process_left_half_written_are_removed(cache):
    cache.mkdir(parents=True)
    old, new = cache / "old.partial", cache / "new.partial"
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))
    assert answer() == 42
    assert sorted(cache.iterdir()) == sorted([new, place(cache)])


def test_a_library_that_cannot_be_loaded_here_is_compiled_again(cache, compiled):
    plant(cache, b"of another system")
    assert answer() == 42
    assert len(compiled) == 1


# Compilers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("does", "told"),
    [
        ("kill -KILL $$", "was killed by SIGKILL, as systems do that run out of memory"),
        ("kill -SEGV $$", "was killed by SIGSEGV$"),
        ("exit 137", "was killed by SIGKILL"),
        ("echo 'g++: fatal error: Killed signal terminated program cc1plus' >&2; exit 1", "was killed by SIGKILL"),
        ("echo 'collect2: fatal error: ld terminated with signal 9 [Killed]' >&2; exit 1", "was killed by SIGKILL"),
        ("echo 'clang: error: unable to execute command: Killed' >&2; exit 254", "was killed by SIGKILL"),
        ("echo 'cc1plus: out of memory allocating 65536 bytes' >&2; exit 1", "compiling failed: .*out of memory"),
        ("echo 'fatal error: error writing to x.s: No space left on device' >&2; exit 1", "No space left on device"),
        ("exit 0", "what was compiled cannot be read"),
    ],
)
def test_a_compiler_that_was_killed_is_a_failure(does, told, fake_compiler):
    fake_compiler(does)
    with pytest.raises(CompilerFailure, match=told):
        answer()
    assert leftovers() == []


def descriptors():
    """Those that are open, but for the one that finds them."""
    return {path.name for path in Path("/proc/self/fd").iterdir() if path.exists()}


def test_a_compiler_that_cannot_be_started_leaves_nothing(cache, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    before = descriptors()
    with pytest.raises(CompilerFailure, match=r"cannot be started: .*/no/such/python"):
        answer()
    assert leftovers() == [] and descriptors() == before


def test_a_compiler_that_was_killed_when_it_was_asked_is_a_failure(fake_compiler):
    fake_compiler("", asked="kill -KILL $$")
    with pytest.raises(CompilerFailure, match="killed by SIGKILL"):
        answer()


def test_a_compiler_that_refuses_is_no_failure_of_the_system(fake_compiler):
    fake_compiler("echo 'source.cpp:1: error: expected a better program' >&2; exit 1")
    with pytest.raises(CompilationError, match=r"compiling failed: .*a better program") as caught:
        answer()
    assert not isinstance(caught.value, CompilerFailure)


@pytest.mark.parametrize("words", ["g++ -m64", "env g++", " g++ -DX='a b' "])
def test_a_compiler_may_have_arguments(words, cache, monkeypatch, compiled):
    monkeypatch.setenv("CXX", words)
    assert [answer(), answer()] == [42, 42]
    assert len(compiled) == 1
    monkeypatch.setenv("CXX", f"{words} -O1")
    assert answer() == 42
    assert len(compiled) == 2, "which decide what is compiled"


def test_words_that_are_no_command_are_told(monkeypatch):
    monkeypatch.setenv("CXX", "g++ 'unfinished")
    with pytest.raises(CompilationError, match=r"CXX=.*cannot be split into words"):
        answer()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(CompilationError, match=r"no C\+\+ compiler"):
        answer()


GRAVITON = "processor\t: {}\nBogoMIPS\t: 243.75\nFeatures\t: fp asimd {}\nCPU implementer\t: 0x41\nCPU part\t: {}\n"


def test_processors_of_other_kinds_are_told_apart():
    graviton2 = GRAVITON.format(0, "lrcpc", "0xd0c")
    graviton3 = GRAVITON.format(0, "lrcpc sve", "0xd40")
    assert compiler._of_processor(graviton2) != compiler._of_processor(graviton3)
    assert compiler._of_processor(graviton2) == compiler._of_processor(GRAVITON.format(1, "lrcpc", "0xd0c"))
    flags = "processor\t: 0\nmodel name\t: x\ncpu MHz\t\t: {}\nflags\t\t: fpu avx2\n"
    assert compiler._of_processor(flags.format(2000)) == compiler._of_processor(flags.format(3000))
    assert len(compiler._of_processor(flags)) == 2


@pytest.mark.parametrize(
    ("told", "by", "tuned"),
    [
        ("AMD EPYC fpu avx2", "g++ 12", True),
        ("AMD EPYC fpu avx2 avx512f", "g++ 12", False),
        ("Intel Xeon fpu avx2", "g++ 12", False),
        ("AMD EPYC fpu avx2", "Debian clang version 14", False),
    ],
)
def test_the_model_of_haswell_is_for_zen_alone(told, by, tuned, monkeypatch):
    monkeypatch.setattr(compiler, "processor", lambda: f"model name\t: {told}")
    monkeypatch.setattr(compiler, "find_compiler", lambda: by)
    assert ("-mtune=haswell" in compiler.flags()) == tuned


# What a killed run leaves ---------------------------------------------------------------------------------------------

BUSY = "echo $$ > started; sleep 1000 & echo $! > part; wait"


def leftovers():
    return list(Path(tempfile.gettempdir()).glob(f"{compiler.SCRATCH}*"))


def number_in(path):
    """The number in a file, once it is there."""
    deadline = time.monotonic() + 30
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return int(path.read_text())


def is_over(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def forked(fork_a_worker=False):
    """A process that waits for a compiler."""
    process = os.fork()
    if process == 0:
        try:
            library = Library(SOURCE)
            if fork_a_worker and os.fork() == 0:
                time.sleep(20)
                os._exit(0)
            library.load()
        finally:
            os._exit(1)
    return process


@pytest.mark.parametrize("fork_a_worker", [False, True], ids=["alone", "a forked worker lives on"])
def test_a_killed_run_leaves_no_compiler_and_no_folder(fork_a_worker, fake_compiler):
    fake_compiler(BUSY)
    process = forked(fork_a_worker)
    busy = [number_in(Path(name)) for name in ("started", "part")]
    assert len(leftovers()) == 1 and not any(map(is_over, busy))
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    wait_until(lambda: all(map(is_over, busy)) and not leftovers())


def test_a_run_that_is_left_does_not_wait_for_the_compiler(fake_compiler):
    fake_compiler(BUSY)
    library = Library(SOURCE)
    busy = [number_in(Path(name)) for name in ("started", "part")]
    del library
    gc.collect()
    assert all(map(is_over, busy)) and not leftovers()


def test_what_even_the_compilers_keeper_could_not_remove_is_removed_by_the_next_run(cache):
    root = Path(tempfile.gettempdir())
    dead, living, made_now, foreign = (root / f"{compiler.SCRATCH}{name}" for name in ("a", "b", "c", "d"))
    for folder in (dead, living, made_now):
        folder.mkdir()
    for folder in (dead, living):
        (folder / "lock").touch()
    foreign.symlink_to(root)
    with (living / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert answer() == 42
        assert sorted(leftovers()) == [living, made_now, foreign]


def test_a_temporary_folder_of_others_is_not_compiled_in(cache):
    Path(tempfile.gettempdir()).chmod(0o777)
    assert answer() == 42
    assert list(Path(tempfile.gettempdir()).iterdir()) == []
    cache.chmod(0o777)
    with pytest.raises(CompilerFailure, match=r"mode 777\); set TMPDIR to a folder of your own"):
        answer()
