"""What is done to runs, and what must come of it: the very same run, or one sentence that says why not."""

import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pl_rl.checkpoints.format import Damaged, load_sound
from pl_rl.errors import UsageError
from pl_rl.runs.directory import newest_sound_checkpoint
from pl_rl.runs.log_files import EVENT_FILES
from tests.chaos.processes import ITERATION, LONGER, Run, differences, fit_command, moment, newest_run

NOBODY = 65534
UNCERTAIN = "tests.uncertain_environments"


@dataclass
class Outcome:
    """What came of one kind of trouble."""

    what: str
    tried: int = 0
    exact: int = 0
    refused: int = 0
    lost: list[str] = field(default_factory=list)

    def judge(self, whole: Path, parts: Path, tried: int = 1) -> None:
        """A run came to its end after some troubles: is it the same as the one that was left alone?"""
        self.tried += tried
        different = differences(whole, parts)
        if different:
            self.lost.append(f"{parts}: {different}")
        else:
            self.exact += tried

    def expect_sentence(self, status: int, output: str, expected: int, words: str) -> None:
        """A process must have ended with a status and, last of all, one sentence."""
        self.tried += 1
        last = output.strip().splitlines()[-1:] or [""]
        if status == expected and last[0].startswith("error: ") and words in last[0] and "Traceback" not in output:
            self.refused += 1
        else:
            self.lost.append(f"status {status} instead of {expected}: {output[-2000:]}")


class Chaos:
    """A folder in which runs are troubled.

    Args:
        folder: To work in.
        seed: Of all random moments.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.chance = random.Random(seed)
        self._wholes: dict[tuple[str, ...], Path] = {}

    def whole(self, command: list[str]) -> Path:
        """The folder of a run that is left alone; one for each command, to be looked at only."""
        if tuple(command) not in self._wholes:
            folder = self.new(f"whole-{len(self._wholes)}")
            self.end(folder, command)
            self._wholes[tuple(command)] = folder
        return self._wholes[tuple(command)]

    def new(self, name: str) -> Path:
        """An empty folder."""
        folder = self.folder / name
        folder.mkdir()
        return folder

    def copy(self, folder: Path, name: str) -> Path:
        """Another folder with what is in one."""
        shutil.copytree(folder, self.folder / name)
        return self.folder / name

    def end(self, folder: Path, command: list[str], prepare: Callable[[], None] | None = None) -> None:
        """Let a run come to its end."""
        status, output = Run(folder, command, prepare).wait()
        assert status == 0, output

    # --- what is done to runs ----------------------------------------------------------------------------------------

    def kills(self, rounds: int = 10, kills: int = 5) -> Outcome:
        """SIGKILL at random moments of every phase, several times in a run."""
        outcome = Outcome("SIGKILL at random moments: collecting, updating, evaluating, saving, writing logs")
        variants = {
            "native": fit_command(),
            "sync": fit_command(model__env__vectorization="sync"),
            "async": fit_command(model__env__vectorization="async"),
            "background": fit_command(),
        }
        prepare = {"background": _all_files_are_large}
        whole = {name: self.whole(command) for name, command in variants.items()}
        for number in range(rounds):
            name = list(variants)[number % len(variants)]
            folder, killed = self.new(f"kills-{number}-{name}"), 0
            while killed < kills:
                phase, times, seconds = moment(self.chance)
                run = Run(folder, variants[name], prepare.get(name))
                if run.wait_for(phase, times):
                    time.sleep(seconds)
                run.kill()
                status, output = run.wait()
                assert status in (0, -signal.SIGKILL), output
                if status == 0:
                    break  # the run was over before its moment came
                killed += 1
            self.end(folder, variants[name], prepare.get(name))
            outcome.judge(whole[name], folder, tried=killed)
        while outcome.tried < rounds * kills:  # those that came too late
            self._one_more_kill(outcome, whole["native"], variants["native"])
        return outcome

    def _one_more_kill(self, outcome: Outcome, whole: Path, command: list[str]) -> None:
        folder = self.new(f"kills-more-{outcome.tried}")
        phase, _, seconds = moment(self.chance)
        run = Run(folder, command)
        run.wait_for(phase, self.chance.randint(1, 3))
        time.sleep(seconds)
        run.kill()
        if run.wait()[0] == -signal.SIGKILL:
            self.end(folder, command)
            outcome.judge(whole, folder)

    def signals(self, rounds: int = 12) -> Outcome:
        """A signal at a random moment: the documented status, and nothing is lost."""
        outcome = Outcome("SIGTERM, SIGINT and SIGUSR1 at random moments")
        command = fit_command()
        whole = self.whole(command)
        for number in range(rounds):
            signum = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)[number % 3]
            folder = self.new(f"signals-{number}")
            phase, times, seconds = moment(self.chance)
            run = Run(folder, command)
            run.wait_for(phase, times)
            time.sleep(seconds)
            run.kill(signum)
            status, output = run.wait()
            if status != 128 + signum or "Traceback" in output:
                outcome.tried += 1
                outcome.lost.append(f"status {status} after {signum.name}: {output[-2000:]}")
                continue
            self.end(folder, command)
            outcome.judge(whole, folder)
        return outcome

    def full_disk(self, rounds: int = 4) -> Outcome:
        """No room on the disk from some moment on: one sentence; with room again, the same run."""
        outcome = Outcome("disk full at random moments, then with room again")
        command = fit_command()
        whole = self.whole(command)
        for number in range(rounds):
            folder = self.new(f"disk-{number}")
            mounted = _mount(folder)
            try:
                run = Run(folder, command)
                run.wait_for("collecting", self.chance.randint(2, 20))
                if mounted:
                    _fill(folder / "filler")
                else:
                    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (2000, 2000))
                status, _ = run.wait()
                (folder / "filler").unlink(missing_ok=True)
                output = run.output.read_text(errors="replace")
                if status != 1 or "Traceback" in output:
                    outcome.tried += 1
                    outcome.lost.append(f"status {status}: {output[-2000:]}")
                    continue
                self.end(folder, command)
                outcome.judge(whole, folder)
            finally:
                if mounted:
                    subprocess.run(["umount", "-l", folder], check=True)
        return outcome

    def read_only(self) -> Outcome:
        """A directory that cannot be written: one sentence, for a new run and for one that is continued."""
        outcome = Outcome("read-only directory, for a new run and to continue one")
        command = fit_command()
        folder = self.new("read-only")
        run = Run(folder, command)
        run.wait_for("updating", 8)
        run.kill()
        run.wait()
        self.folder.chmod(0o755)
        new, made = self.new("read-only-new"), "no run directory can be made under 'lightning_logs': Permission denied"
        for target, words in ((new, made), (folder, "cannot be written: Permission denied")):
            (target / "output.txt").touch()
            for path in [target, *target.rglob("*")]:
                path.chmod(0o555 if path.is_dir() else 0o444)
            (target / "output.txt").chmod(0o666)
            status, output = Run(target, command, _as_nobody).wait()
            outcome.expect_sentence(status, output, 2, words)
        return outcome

    def cut_and_flipped(self, flips: int = 1000) -> list[Outcome]:
        """A damaged file is known as such, and the one before it takes its place."""
        command = fit_command()
        whole = self.whole(command)
        last = newest_run(self.copy(whole, "damage")) / "checkpoints" / "last.ckpt"
        content = last.read_bytes()
        cut = Outcome("last.ckpt cut short at every 1,000th byte")
        for length in range(0, len(content), 1000):
            self._damage(cut, last, content[:length])
        flipped = Outcome("random bits of last.ckpt flipped, 1 to 8 of them")
        for _ in range(flips):
            damaged = bytearray(content)
            for bit in self.chance.sample(range(8 * len(content)), self.chance.randint(1, 8)):
                damaged[bit // 8] ^= 1 << bit % 8
            self._damage(flipped, last, bytes(damaged))
        passed = Outcome("runs continued from the checkpoint before a damaged one")
        for number in range(4):
            parts = self.new(f"damage-{number}")
            run = Run(parts, command)
            run.wait_for("saving", self.chance.randint(4, 8))
            run.kill()
            run.wait()
            path = newest_run(parts) / "checkpoints" / "last.ckpt"
            path.write_bytes(path.read_bytes()[: self.chance.randint(0, 100_000)])
            self.end(parts, command)
            passed.judge(whole, parts)
        return [cut, flipped, passed]

    def _damage(self, outcome: Outcome, path: Path, damaged: bytes) -> None:
        path.write_bytes(damaged)
        outcome.tried += 1
        try:
            load_sound(path)
        except Damaged:
            outcome.refused += 1
        else:
            outcome.lost.append(f"{path} was taken for sound")

    def two_processes(self) -> Outcome:
        """The second is refused and told of the first, which goes on undisturbed; a dead one's lock is taken over."""
        outcome = Outcome("a second process in the run's directory")
        command = fit_command()
        whole = self.whole(command)
        folder = self.new("two")
        first = Run(folder, command, slow=0.4)
        first.wait_for("updating", 3)
        last = str(newest_run(folder) / "checkpoints" / "last.ckpt")
        for second in (command, ["fit", "--ckpt_path", "last"], ["fit", "--ckpt_path", last]):
            (folder / "second").mkdir()
            (folder / "second" / "lightning_logs").symlink_to(folder / "lightning_logs")
            status, output = Run(folder / "second", second).wait()
            outcome.expect_sentence(status, output, 2, f"is in use by process {first.pid} on ")
            shutil.rmtree(folder / "second")
        first.kill()
        first.wait()
        self.end(folder, command)
        outcome.judge(whole, folder)
        return outcome

    def clock(self) -> Outcome:
        """The clock is set back between a run's death and its resume."""
        outcome = Outcome("clock set back by a second, an hour, a year")
        command = fit_command()
        whole = self.whole(command)
        for back in (1, 3600, 365 * 86400):
            folder = self.new(f"clock-{back}")
            run = Run(folder, command)
            run.wait_for("updating", self.chance.randint(4, 18))
            run.kill()
            run.wait()
            self.end(folder, command, lambda back=back: _set_back(back))
            files = sorted(path.name for path in newest_run(folder).glob(EVENT_FILES))
            assert len(files) == 2, files
            outcome.judge(whole, folder)
        return outcome

    def workers(self, rounds: int = 3) -> Outcome:
        """A worker process of asynchronous environments is killed: the last checkpoint stays, and a resume is exact."""
        outcome = Outcome("a worker process of the environments killed")
        command = fit_command(model__env__vectorization="async")
        whole = self.whole(command)
        for number in range(rounds):
            folder = self.new(f"workers-{number}")
            run = Run(folder, command)
            run.wait_for("collecting", self.chance.randint(4, 18))
            children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
            os.kill(int(self.chance.choice(children)), signal.SIGKILL)
            deadline = time.monotonic() + 60
            while not has_ended(run.pid) and time.monotonic() < deadline:
                time.sleep(0.05)
            if not has_ended(run.pid):
                run.kill()
                run.wait()
                outcome.tried += 1
                outcome.lost.append(f"{folder}: the run hangs")
                continue
            run.wait()
            self.end(folder, command)
            outcome.judge(whole, folder)
        return outcome

    def hidden_state(self) -> list[Outcome]:
        """State that outlives seeded resets: a resume cannot be exact, and must not say that it is."""
        kinds = {
            "a curriculum": {"model__env__id": f"{UNCERTAIN}:PlRlTest/Curriculum-v0"},
            "unseeded rewards at the end of episodes": {"model__env__id": f"{UNCERTAIN}:PlRlTest/UnseededEnd-v0"},
            "a wrapper that counts all steps": {"model__env__wrappers": f"[{UNCERTAIN}.CountsAllSteps]"},
        }
        outcomes = []
        for kind, settings in kinds.items():
            outcome = Outcome(f"{kind}, killed and continued: told that it is not exact")
            for vectorization in ("sync", "async"):
                folder = self.new(f"hidden-{len(outcomes)}-{vectorization}")
                longer = {"model__total_env_steps": 2 * ITERATION * 24, **LONGER}  # for episodes to end
                command = fit_command(model__env__vectorization=vectorization, **longer, **settings)
                run = Run(folder, command)
                # Its first episodes since an anchor are over by then.
                run.wait_for("collecting", self.chance.randint(15, 21))
                run.kill()
                run.wait()
                run.output.unlink()
                status, output = Run(folder, command).wait()
                outcome.tried += 1
                said = "not exact: environments: restarted, as a replay of environment 0's seed and actions led"
                if status == 0 and said in output and "fidelity: exact" not in output:
                    outcome.refused += 1
                else:
                    outcome.lost.append(f"status {status}: {output[-2000:]}")
            outcomes.append(outcome)
        return outcomes

    def nothing_sound(self) -> Outcome:
        """Where no checkpoint is left, a run is refused and never begun from scratch in silence."""
        outcome = Outcome("no sound checkpoint left")
        folder = self.copy(self.whole(fit_command()), "nothing")
        run = newest_run(folder)
        for path in (run / "checkpoints").glob("*.ckpt"):
            path.write_bytes(path.read_bytes()[:-1])
        try:
            newest_sound_checkpoint(run)
        except UsageError:
            status, output = Run(folder, fit_command()).wait()
            outcome.expect_sentence(status, output, 2, "has no sound checkpoint")
        return outcome


def _all_files_are_large() -> None:
    """Write every checkpoint in the background."""
    from pl_rl.checkpoints import saving as checkpoint_io

    checkpoint_io.LARGE = 0


def _as_nobody() -> None:
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def _set_back(seconds: float) -> None:
    now = time.time
    time.time = lambda: now() - seconds


def has_ended(pid: int) -> bool:
    """Whether a child has, though nobody has waited for it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def _mount(folder: Path) -> bool:
    """A small disk of the folder's own, where that is allowed."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder]
    try:
        return subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return
