"""What a run's directory may hold that came from elsewhere, or was damaged: it reaches nothing else, and is said."""

import os
from pathlib import Path

import torch

from pl_rl.runs.log_files import EVENT_FILES
from tests.chaos import scenarios
from tests.chaos.processes import Run, fit_command, newest_run
from tests.chaos.scenarios import Outcome

NAMES = (
    *(".lock", ".run_id", ".config.partial", ".command.yaml.partial", "command.yaml", "hparams.yaml", "metrics.csv"),
    *("evaluations.csv", "events.out.tfevents.1.x", "replaced"),
    *("checkpoints", "checkpoints/previous.ckpt", "checkpoints/best.ckpt"),
    *("checkpoints/.last.ckpt.partial", "checkpoints/.last.ckpt.replaced", "checkpoints/.best.ckpt.partial"),
)
KINDS = ("link", "dangling link", "hard link", "pipe", "folder")


class Chaos(scenarios.Chaos):
    """With runs in which a stranger had a hand."""

    def links(self, rounds: int = 15) -> Outcome:
        """A link, a pipe or a folder in a file's place: nothing outside of the run changes, and nothing hangs."""
        outcome = Outcome("links, pipes and folders in the place of a run's files")
        whole, killed = self.whole(fit_command()), self._killed("links", fit_command())
        names = self.chance.sample(NAMES, len(NAMES))
        for number in range(rounds):
            folder, home = self.copy(killed, f"links-{number}"), self.new(f"links-{number}-home")
            (home / "precious").write_text("precious")
            name, kind = names[number % len(names)], KINDS[number % len(KINDS)]
            _put(kind, newest_run(folder) / name, home)
            run = Run(folder, fit_command())
            self._judge(outcome, run, whole, folder, f"{kind} for {name}")
            if {path.name: path.read_text() for path in home.iterdir()} != {"precious": "precious"}:
                outcome.lost.append(f"a {kind} for {name} reached a file of the user's")
        return outcome

    def foreign_folders(self, rounds: int = 5) -> Outcome:
        """A checkpoint names another run's directory as its log's: that stays as it is, to the byte."""
        outcome = Outcome("checkpoints that name another run as the folder of their logs")
        killed = self._killed("foreign", fit_command())
        victim = newest_run(self.whole(fit_command(seed_everything=1)))
        before = _content(victim)
        for number in range(rounds):
            folder = self.copy(killed, f"foreign-{number}")
            run_directory = newest_run(folder)
            named = self.chance.choice([str(victim), os.path.relpath(victim, run_directory), "tb"])
            if named == "tb":
                (run_directory / "tb").symlink_to(victim)
            last = run_directory / "checkpoints" / "last.ckpt"
            checkpoint = torch.load(last, weights_only=True)
            for log in checkpoint["pl_rl_logs"]:
                log.update(folder=named, reached={}, digests={})
            if self.chance.random() < 0.5:
                checkpoint["pl_rl"]["run_id"] = None
            torch.save(checkpoint, last)
            status, output = Run(folder, ["fit", "--ckpt_path", str(last)]).wait()
            outcome.tried += 1
            if status == 0 and "may be another run's, so it is left alone" in output and _content(victim) == before:
                outcome.refused += 1
            else:
                outcome.lost.append(f"status {status} for {named}: {output[-2000:]}")
        return outcome

    def flipped_events(self, rounds: int = 5) -> Outcome:
        """Bits of what is kept of an event file are flipped: the resume says so, and its weights are the same."""
        outcome = Outcome("bits flipped in the part of an event file that is kept")
        whole, killed = self.whole(fit_command()), self._killed("flipped", fit_command())
        final = torch.load(newest_run(whole) / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for number in range(rounds):
            folder = self.copy(killed, f"flipped-{number}")
            last = newest_run(folder) / "checkpoints" / "last.ckpt"
            logs = torch.load(last, weights_only=True)["pl_rl_logs"]
            path = next(newest_run(folder).glob(EVENT_FILES))
            content = bytearray(path.read_bytes())
            for bit in self.chance.sample(range(8 * logs[0]["reached"][path.name]), self.chance.randint(1, 5)):
                content[bit // 8] ^= 1 << bit % 8
            path.write_bytes(content)
            status, output = Run(folder, fit_command()).wait()
            outcome.tried += 1
            there = torch.load(last, weights_only=True)["state_dict"]
            same = all(torch.equal(tensor, there[name]) for name, tensor in final.items())
            said = "fidelity: exact" not in output and f"{path.name} " in output.partition("not exact: log: ")[2]
            if status == 0 and same and said:
                outcome.refused += 1
            else:
                outcome.lost.append(f"status {status}, same weights {same}: {output[-2000:]}")
        return outcome

    def _killed(self, name: str, command: list[str]) -> Path:
        """The folder of a run that was killed."""
        killed = self.new(f"{name}-killed")
        run = Run(killed, command)
        run.wait_for("updating", self.chance.randint(5, 18))
        run.kill()
        run.wait()
        run.output.unlink()
        return killed

    def _judge(self, outcome: Outcome, run: Run, whole: Path, folder: Path, what: str) -> None:
        """A run goes on exactly, says that its best checkpoint is gone, or ends with a sentence."""
        status, output = run.wait()
        if status == 0 and "fidelity: exact" not in output and "not exact: best checkpoint: " in output:
            outcome.tried += 1
            outcome.refused += 1
        elif status == 0:
            outcome.judge(whole, folder)
        elif status in (1, 2):
            outcome.expect_sentence(status, output, status, what.rpartition("/")[2].rpartition(" ")[2])
        else:
            outcome.tried += 1
            outcome.lost.append(f"status {status} with a {what}: {output[-2000:]}")


def _put(kind: str, path: Path, home: Path) -> None:
    """Something else in the place of a file or folder."""
    if path.is_dir():
        path.rename(path.with_name("elsewhere"))
    path.unlink(missing_ok=True)
    if kind == "link":
        path.symlink_to(home if path.name in ("replaced", "checkpoints") else home / "precious")
    elif kind == "dangling link":
        path.symlink_to(home / "new")
    elif kind == "hard link":
        os.link(home / "precious", path)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()


def _content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
