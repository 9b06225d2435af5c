"""A run writes to its own files, whatever a checkpoint says and whatever stands in their place."""

import contextlib
import csv
import os
import shutil
import signal
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

import pl_rl
from pl_rl.callbacks import RunCheckpoint
from tests.resume.test_resume import account
from tests.support import SMALL, event_scalars, read_checkpoint

LAST = "checkpoints/last.ckpt"
EVENTS = "events.out.tfevents.1111111111.x"


def train(root, until, ckpt_path=None, csv_root=None, name="lightning_logs", seed=0, trainer_class=pl_rl.Trainer):
    """Train with the usual log, and with a CSV log in a folder of its own if one is named."""
    L.seed_everything(seed, verbose=False)
    loggers = [TensorBoardLogger(root, name)]
    if csv_root is not None:
        loggers.append(CSVLogger(csv_root, "csv", flush_logs_every_n_steps=1))
    trainer = trainer_class(
        accelerator="cpu", default_root_dir=root, logger=loggers, max_epochs=until, log_every_n_steps=1,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[RunCheckpoint(last_every_n_iterations=1)],
    )  # fmt: skip
    trainer.fit(pl_rl.PPO(**{**SMALL, "total_env_steps": 6400, "compile_update": False}), ckpt_path=ckpt_path)
    return Path(trainer.log_dir)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two iterations with a CSV log beside it."""
    root = tmp_path_factory.mktemp("trained")
    train(root, 2, csv_root=root)
    return root


@pytest.fixture
def run(trained, tmp_path):
    """The directory of a copy of it."""
    shutil.copytree(trained, tmp_path / "root", symlinks=True)
    return tmp_path / "root" / "lightning_logs" / "version_0"


@pytest.fixture
def home(tmp_path):
    """A folder of the user's, with a file in it."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "precious").write_text("precious")
    yield tmp_path / "home"
    left = {path.relative_to(tmp_path): path.is_file() and path.read_bytes() for path in (tmp_path / "home").rglob("*")}
    assert left == {Path("home/precious"): b"precious"}


@contextlib.contextmanager
def soon(seconds=60):
    """Fail rather than hang."""

    def hangs(*_):
        raise AssertionError("hangs")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def change(path, **state):
    """Say something else in a checkpoint."""
    checkpoint = read_checkpoint(path)
    checkpoint.update({name: value for name, value in state.items() if name != "pl_rl"})
    checkpoint["pl_rl"].update(state.get("pl_rl", {}))
    torch.save(checkpoint, path)


def stamps(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- what stands in a file's place -----------------------------------------------------------------------------------

NAMES = [
    *(
        ".lock",
        ".run_id",
        ".command.yaml.partial",
        ".config.partial",
        "command.yaml",
        ".metrics.csv.partial",
        "metrics.csv",
    ),
    *("hparams.yaml", EVENTS, "replaced", "checkpoints/.last.ckpt.partial", "checkpoints/.last.ckpt.replaced"),
    *("checkpoints/previous.ckpt", "checkpoints/best.ckpt", "checkpoints/.best.ckpt.partial"),
]


def put(kind, path, home):
    """Something else in the place of a file."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    if kind == "link":
        path.symlink_to(home if path.name == "replaced" else home / "precious")
    elif kind == "dangling":
        path.symlink_to(home / "new")
    elif kind == "hard link":
        os.link(home / "precious", path)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()


@pytest.mark.parametrize("kind", ["link", "dangling", "hard link", "pipe", "folder"])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_written_through_what_stands_in_a_files_place(run, home, name, kind):
    path = run / name
    if name == EVENTS:
        logs = read_checkpoint(run / LAST)["pl_rl_logs"]
        logs[0]["reached"][EVENTS] = 4
        change(run / LAST, pl_rl_logs=logs)
    put(kind, path, home)
    with soon(), contextlib.suppress(pl_rl.UsageError, pl_rl.errors.RunFailure):
        # An explicit path: the last one, from before the last iteration would be put aside too.
        train(run.parent.parent, 3, run / LAST, csv_root=run.parent.parent)


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe"])
def test_a_strangers_link_is_refused_in_a_sentence_and_nothing_is_touched(run, home, kind):
    put(kind, run / ".lock", home)
    before = stamps(run)
    with pytest.raises(
        pl_rl.UsageError, match=r"\.lock' is a (symbolic link|named pipe) where a file of the run belongs"
    ):
        train(run.parent.parent, 3, run / LAST)
    assert stamps(run) == before


def test_no_file_of_one_log_is_touched_where_another_is_refused(run, home):
    root = run.parent.parent
    (root / "csv" / "version_0" / "metrics.before-resume.csv").symlink_to(home / "precious")
    before = stamps(root)
    with pytest.raises(pl_rl.UsageError, match="is a symbolic link where a file of the run belongs"):
        train(root, 3, run / "checkpoints" / "previous.ckpt", csv_root=root)
    assert stamps(root) == before


def test_checkpoints_are_not_written_through_a_link(run, tmp_path):
    shutil.move(run / "checkpoints", tmp_path / "elsewhere")
    (run / "checkpoints").symlink_to(tmp_path / "elsewhere")
    before = stamps(tmp_path / "elsewhere")
    with pytest.raises(pl_rl.UsageError, match=r"checkpoints' is a symbolic link where a folder of the run belongs"):
        train(run.parent.parent, 3, run / LAST)
    assert stamps(tmp_path / "elsewhere") == before


def test_links_above_a_run_are_the_users(run, tmp_path):
    shutil.move(run.parent, tmp_path / "scratch")
    (tmp_path / "scratch" / "version_0").rename(tmp_path / "moved")
    (tmp_path / "scratch" / "version_0").symlink_to(tmp_path / "moved")
    run.parent.symlink_to(tmp_path / "scratch")
    assert train(run.parent.parent, 3, run / LAST) == run
    assert read_checkpoint(tmp_path / "moved" / LAST)["pl_rl"]["counters"]["iteration"] == 3


def test_a_backup_by_hard_links_stays_as_it_was(run, tmp_path):
    shutil.copytree(run.parent.parent, tmp_path / "backup", copy_function=os.link)
    before = stamps(tmp_path / "backup")
    # Back to the first iteration: all that came after it is cut off.
    train(run.parent.parent, 3, run / "checkpoints" / "previous.ckpt", csv_root=run.parent.parent)
    assert stamps(tmp_path / "backup") == before


# --- what a checkpoint says ------------------------------------------------------------------------------------------


@pytest.fixture
def victim(trained, tmp_path):
    """Another run of the user's, with its CSV log."""
    root = tmp_path / "mine"
    train(root, 3, csv_root=root, seed=1)
    before = stamps(root)
    yield root / "lightning_logs" / "version_0"
    assert {path: content for path, content in stamps(root).items() if "version_0" in str(path)} == before


@pytest.mark.slow
@pytest.mark.parametrize("run_id", ["their own", "the victim's", None])
@pytest.mark.parametrize("way", ["absolute", "relative", "csv", "link"])
def test_a_strangers_checkpoint_reaches_no_other_run(run, victim, way, run_id, capsys):
    folder = {
        "absolute": str(victim),
        "relative": os.path.relpath(victim, run),
        "csv": str(victim.parent.parent / "csv" / "version_0"),
        "link": "tb",
    }[way]
    if way == "link":
        (run / "tb").symlink_to(victim)
    logs = read_checkpoint(run / LAST)["pl_rl_logs"]
    for log in logs:
        log.update(folder=folder, reached={}, digests={})
    change(run / LAST, pl_rl_logs=logs)
    if run_id is None:
        change(run / LAST, pl_rl={"run_id": None})
    elif run_id == "the victim's":
        their_id = read_checkpoint(victim / LAST)["pl_rl"].get("run_id")
        change(run / LAST, pl_rl={"run_id": their_id})
        (run / ".run_id").write_text(f"{their_id}\n.\n")
    train(run.parent.parent, 3, run / LAST, csv_root=run.parent.parent)
    assert any("may be another run's, so it is left alone and a new one begins" in line for line in account(capsys))


@pytest.mark.slow
def test_a_checkpoint_put_where_the_users_runs_are_cuts_none_of_them(run, victim):
    """``checkpoints/last.ckpt`` in the working directory, of which all runs are inside."""
    root = victim.parent.parent
    (root / "checkpoints").mkdir()
    logs = [{"class": "TensorBoardLogger", "folder": "lightning_logs/version_0", "reached": {}}]
    for run_id in (None, read_checkpoint(run / LAST)["pl_rl"].get("run_id")):
        shutil.copy(run / LAST, root / LAST)
        change(root / LAST, pl_rl_logs=logs, pl_rl={"run_id": run_id})
        train(root, 3, root / LAST)


def test_a_log_of_ones_own_outside_of_the_run_is_continued(run, capsys):
    root = run.parent.parent
    assert train(root, 3, run / LAST, csv_root=root) == run
    assert account(capsys)[-1] == "fidelity: exact"
    assert [path.name for path in (root / "csv").iterdir()] == ["version_0"]
    with (root / "csv" / "version_0" / "metrics.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row.get("losses/policy_loss")]
    assert steps == sorted(set(steps)) and len(steps) == 3


def test_a_run_is_moved_with_its_logs_and_copied_without(run, tmp_path, capsys):
    root = run.parent.parent
    shutil.copytree(run, tmp_path / "copy" / "version_0")
    shutil.move(root, tmp_path / "moved")
    run = tmp_path / "moved" / "lightning_logs" / "version_0"
    assert train(run.parent.parent, 3, run / LAST, csv_root=run.parent.parent) == run
    assert account(capsys)[-1] == "fidelity: exact"
    before = stamps(tmp_path / "moved")
    copy = tmp_path / "copy" / "version_0"
    assert train(tmp_path / "copy", 3, copy / LAST, csv_root=run.parent.parent) == copy
    assert {path: content for path, content in stamps(tmp_path / "moved").items() if path in before} == before


def log(**changed):
    return [{"class": "TensorBoardLogger", "folder": ".", "reached": {}, **changed}]


NO_LENGTHS = (5, ["x"], {"x": -1}, {"x": "y"}, {"x": 0.5}, {5: 5})
OTHER_KINDS = [
    *(5, None, [5], [{}], ["x"], log(**{"class": 1}), log(folder=5)),
    *(log(reached=reached) for reached in NO_LENGTHS),
    *(log(digests=digests) for digests in (5, None, {"x": 5}, {5: "x"})),
    *(log(lost=lost) for lost in (5, None, "x", [None])),
]
NO_NAMES = [
    *(log(folder=folder) for folder in ("a\0b", "\x1b[2J", "\ud800", "a" * 300, "a/" * 5000)),
    *(log(reached={name: 1}) for name in ("../x", "a" * 300)),
    *(log(digests={"../x": "x"}), log(digests={"x": "\x1b"}), log(lost=["../x"])),
]
DAMAGED_LOGS = [
    *((logs, "a damaged one: .*pl_rl_logs") for logs in OTHER_KINDS),
    *((logs, "account of its log files is damaged") for logs in NO_NAMES),
]


@pytest.mark.parametrize("logs, words", DAMAGED_LOGS)
def test_a_damaged_account_of_logs_is_one_sentence(run, logs, words):
    change(run / LAST, pl_rl_logs=logs)
    with pytest.raises(pl_rl.UsageError, match=words):
        train(run.parent.parent, 3, run / LAST, csv_root=run.parent.parent)


def test_no_file_is_removed_that_a_strangers_checkpoint_names(run, home):
    """Checkpoints to be removed in time, by a path that leads out of the folder."""
    precious = home / "precious"
    folder = run / "checkpoints"
    (folder / "iteration_x").mkdir()
    path = os.path.relpath(precious.with_suffix(""), folder / "iteration_x")
    callbacks = read_checkpoint(run / LAST)["callbacks"]
    state = next(state for name, state in callbacks.items() if name.startswith("RunCheckpoint"))
    state["kept"] = [f"x/{path}"]
    home.joinpath("precious").rename(home / "precious.ckpt")
    change(run / LAST, callbacks=callbacks)
    L.seed_everything(0, verbose=False)
    trainer = pl_rl.Trainer(
        accelerator="cpu", default_root_dir=run.parent.parent, max_epochs=4, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[RunCheckpoint(keep_every_n_iterations=1, keep_last_n=1)],
    )  # fmt: skip
    with pytest.raises(pl_rl.UsageError, match=r"kept\[0\] is .* and should be a whole number"):
        trainer.fit(pl_rl.PPO(**{**SMALL, "total_env_steps": 6400}), ckpt_path=run / LAST)
    (home / "precious.ckpt").rename(precious)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_lightnings_model_checkpoint_removes_nothing_outside_of_its_folder(tmp_path, home):
    def go(until, ckpt_path=None):
        L.seed_everything(0, verbose=False)
        keep = ModelCheckpoint(monitor="step", mode="max", save_top_k=1, every_n_epochs=1)
        trainer = pl_rl.Trainer(
            accelerator="cpu", default_root_dir=tmp_path, max_epochs=until, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[keep], log_every_n_steps=1,
        )  # fmt: skip
        trainer.fit(pl_rl.PPO(**{**SMALL, "total_env_steps": 6400}), ckpt_path=ckpt_path)
        return Path(keep.best_model_path)

    best = go(2)
    callbacks = read_checkpoint(best)["callbacks"]
    state = next(state for name, state in callbacks.items() if name.startswith("ModelCheckpoint"))
    outside = f"{best.parent}/../../../home/precious"
    state.update(best_k_models={outside: torch.tensor(-1.0)}, kth_best_model_path=outside, last_model_path=outside)
    change(best, callbacks=callbacks)
    go(4, best)


# --- whose checkpoint it is ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_keeps_its_id_and_a_branch_has_its_own(run):
    root = run.parent.parent
    first = read_checkpoint(run / LAST)["pl_rl"]["run_id"]
    train(root, 3, run / LAST, csv_root=root)
    assert read_checkpoint(run / LAST)["pl_rl"]["run_id"] == first
    other = train(root, 3, seed=5)
    assert read_checkpoint(other / LAST)["pl_rl"]["run_id"] != first
    trainer = pl_rl.Trainer(
        accelerator="cpu", default_root_dir=root, max_epochs=4, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[RunCheckpoint()],
    )  # fmt: skip
    trainer.fit(pl_rl.PPO(**{**SMALL, "total_env_steps": 6400}), ckpt_path=run / LAST, branch=True)
    branch = Path(trainer.log_dir)
    assert read_checkpoint(branch / LAST)["pl_rl"]["run_id"] != first
    assert (branch / ".run_id").read_text() == f"{read_checkpoint(branch / LAST)['pl_rl']['run_id']}\n.\n"


@pytest.mark.parametrize("run_id", ["x", "a" * 32 + "\n../../..\n"])
def test_what_is_no_id_is_none(run, run_id):
    change(run / LAST, pl_rl={"run_id": run_id})
    before = (run / ".run_id").read_text()
    assert train(run.parent.parent, 3, run / LAST) == run
    assert (run / ".run_id").read_text() == before == f"{read_checkpoint(run / LAST)['pl_rl']['run_id']}\n.\n"


def test_names_with_commands_for_a_terminal_are_not_printed(run, capsys):
    (run / "checkpoints" / "\x1b[2J.ckpt").write_bytes(b"")
    (run / LAST).unlink()
    train(run.parent.parent, 3, "last")
    out = capsys.readouterr().out
    assert "\x1b" not in out and r"\x1b[2J.ckpt" in out


def test_training_does_not_depend_on_the_id(run, trained):
    one, other = (read_checkpoint(path / LAST) for path in (run, train(trained.parent / "again", 2)))
    assert one["pl_rl"]["run_id"] != other["pl_rl"]["run_id"]
    assert all(torch.equal(one["state_dict"][name], tensor) for name, tensor in other["state_dict"].items())
    assert torch.equal(one["pl_rl"]["random"]["torch"], other["pl_rl"]["random"]["torch"])


@pytest.mark.slow
def test_another_runs_checkpoint_in_this_ones_place_is_told(run, victim, capsys):
    shutil.copy(victim / LAST, run / LAST)
    before = stamps(run)
    assert train(run.parent.parent, 4, run / LAST) == run.parent / "version_1"
    assert any("is not of the run that" in line and "stay as they are" in line for line in account(capsys))
    assert stamps(run) == before
    shutil.rmtree(run.parent / "version_1")
    # By name, the run goes on from its own newest one.
    assert train(run.parent.parent, 3, "last") == run
    out = capsys.readouterr().out
    assert "last.ckpt: it is a checkpoint of another run" in out and "previous.ckpt" in out


# --- what is left of a log -------------------------------------------------------------------------------------------


def events_of(run):
    return sorted(run.glob("events.out.tfevents.*"))[0]


def records(path):
    """Where each record begins, and how long its content is."""
    content, offset, found = path.read_bytes(), 0, []
    while offset < len(content):
        size = int.from_bytes(content[offset : offset + 8], "little")
        found.append((offset, size))
        offset += 16 + size
    return found


def flip(path, *places):
    content = bytearray(path.read_bytes())
    for place in places:
        content[place] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("known", [True, False])
def test_damage_within_an_event_file_is_found_and_said(run, known, capsys):
    if not known:  # a checkpoint of the first format
        logs = read_checkpoint(run / LAST)["pl_rl_logs"]
        change(
            run / LAST,
            pl_rl_logs=[
                {name: value for name, value in log.items() if name not in ("digests", "lost")} for log in logs
            ],
            pl_rl={"run_id": None},
        )
    path = events_of(run)
    found = records(path)
    flip(path, *(offset + 12 + size // 2 for offset, size in found[3:6]))
    assert train(run.parent.parent, 3, run / LAST) == run
    assert account(capsys)[-1] == f"not exact: log: 3 of {len(found)} records of {path.name} are damaged"


def test_a_damaged_length_in_an_event_file_is_said(run, capsys):
    path = events_of(run)
    offset, _ = records(path)[4]
    flip(path, offset)
    size = path.stat().st_size
    train(run.parent.parent, 3, run / LAST)
    assert account(capsys)[-1] == f"not exact: log: {path.name} cannot be read from byte {offset:,} of {size:,} on"


@pytest.mark.slow
def test_another_event_file_in_its_place_is_said(run, victim, capsys):
    path = events_of(run)
    path.write_bytes((events_of(victim).read_bytes() * 2)[: path.stat().st_size])
    train(run.parent.parent, 3, run / LAST)
    assert account(capsys)[-1].startswith("not exact: log: ")


@pytest.mark.parametrize("damage", ["bytes", "longer", "number", "null"])
def test_damage_in_a_csv_file_is_found_and_said_and_the_next_resume_works(run, damage, capsys):
    root = run.parent.parent
    path = root / "csv" / "version_0" / "metrics.csv"
    header, first, *lines = path.read_bytes().splitlines()
    index = header.split(b",").index(b"step")
    changed = {
        "bytes": b"\xff\xfe" + first,
        "longer": first + b",1,2,3",
        "number": b",".join([*first.split(b",")[:index], b"7", *first.split(b",")[index + 1 :]]),
        "null": b'"' + first,
    }[damage]
    path.write_bytes(b"\r\n".join([header, changed, *lines]) + b"\r\n")
    train(root, 3, run / LAST, csv_root=root)
    rows = len(lines) + 1
    said = "metrics.csv is not what was logged"
    if damage != "number":
        said = f"1 of {rows:,} rows of metrics.csv are damaged, and left out"
    assert account(capsys)[-1] == f"not exact: log: {said}"
    train(root, 4, run / LAST, csv_root=root)
    assert account(capsys)[-1] == "fidelity: exact"


@pytest.mark.slow
def test_columns_that_come_later_are_no_damage(tmp_path, capsys):
    """The first evaluation comes after checkpoints without its columns, and changes every row of the file."""

    def go(until, ckpt_path=None):
        L.seed_everything(0, verbose=False)
        trainer = pl_rl.Trainer(
            accelerator="cpu", logger=CSVLogger(tmp_path), max_epochs=until, log_every_n_steps=1,
            enable_progress_bar=False, enable_model_summary=False,
            callbacks=[RunCheckpoint(last_every_n_iterations=1, keep_every_n_iterations=1)],
        )  # fmt: skip
        trainer.fit(pl_rl.PPO(**{**SMALL, "total_env_steps": 6400, "eval_freq": 16}), ckpt_path=ckpt_path)
        return Path(trainer.log_dir)

    run = go(5)
    assert go(6, run / "checkpoints" / "iteration_2.ckpt") == run
    assert account(capsys)[-1] == "fidelity: exact"


class Deleting(RunCheckpoint):
    """Deletes a file of the log while the run writes to it."""

    def __init__(self, victim, iteration=-1):
        super().__init__(last_every_n_iterations=1)
        self.victim, self.iteration = victim, iteration

    def on_train_epoch_end(self, trainer, pl_module):
        if pl_module.iteration == self.iteration:
            for path in Path(trainer.log_dir).glob(self.victim):
                path.unlink()
        super().on_train_epoch_end(trainer, pl_module)


@pytest.mark.slow
@pytest.mark.parametrize("logger", [TensorBoardLogger, CSVLogger])
def test_a_log_that_is_deleted_while_the_run_writes_to_it_is_noticed(tmp_path, logger, capsys):
    def go(until, callback, ckpt_path=None):
        L.seed_everything(0, verbose=False)
        trainer = pl_rl.Trainer(
            accelerator="cpu", logger=logger(tmp_path), max_epochs=until, log_every_n_steps=1,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[callback],
        )  # fmt: skip
        trainer.fit(pl_rl.PPO(**{**SMALL, "total_env_steps": 6400}), ckpt_path=ckpt_path)
        return Path(trainer.log_dir)

    name = "events*" if logger is TensorBoardLogger else "metrics.csv"
    run = go(5, Deleting(name, iteration=3))
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1 and "was deleted or changed while the run writes to it" in warnings[0]
    assert go(6, Deleting(name), run / LAST) == run
    assert "was deleted or changed while the run wrote to it" in account(capsys)[-1]
    go(7, Deleting(name), run / LAST)
    assert account(capsys)[-1] == "fidelity: exact"


def test_a_log_that_is_deleted_between_two_resumes_is_said_and_the_run_stays_in_its_directory(run, capsys):
    events_of(run).unlink()
    assert train(run.parent.parent, 3, run / LAST) == run
    assert account(capsys)[-1] == "not exact: log: points before the checkpoint are not in version_0 any more"


@pytest.mark.parametrize(
    "name", ["events.out.tfevents.9999999999999999999999999.x", "events.out.tfevents.x", "config_resume.yaml"]
)
def test_strange_names_do_no_harm(run, name):
    (run / name).write_bytes(b"")
    assert train(run.parent.parent, 3, run / LAST) == run
    steps = [step for step, _ in event_scalars(run)["losses/policy_loss"]]
    assert steps == sorted(set(steps)) and len(steps) == 3
