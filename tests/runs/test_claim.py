"""Each run has a directory of its own, whatever writes its logs, and is found there."""

import multiprocessing
import os
import re
import shutil
import sys
from pathlib import Path

import lightning as L
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

import pl_rl
from pl_rl.callbacks import RunCheckpoint
from pl_rl.callbacks.run_directory import run_directory
from pl_rl.errors import UsageError
from pl_rl.runs.claim import claim
from pl_rl.runs.directory import LOG_ROOT, find_checkpoint, run_of_checkpoint
from pl_rl.runs.identity import IDENTITY_FILE, identity_of, new_run_id
from tests.resume.test_auto_resume import _config, go  # noqa: F401  (a fixture)
from tests.support import MemoryLogger, counters_in, event_scalars, small_ppo

LAST = Path("checkpoints", "last.ckpt")
LOGGERS = {
    "none": lambda: False,
    "default": lambda: True,
    "tensorboard elsewhere": lambda: TensorBoardLogger("elsewhere"),
    "csv elsewhere": lambda: CSVLogger("elsewhere", "runs"),
    "with files in one folder": lambda: [TensorBoardLogger("."), CSVLogger(".")],
    "without files": MemoryLogger,
    "without files first": lambda: [MemoryLogger(), CSVLogger("elsewhere")],
}


def trainer(logger, until=2, trainer_class=pl_rl.Trainer, callbacks=None, **settings):
    return trainer_class(
        accelerator="cpu", logger=logger, max_epochs=until, log_every_n_steps=1, enable_progress_bar=False,
        enable_model_summary=False, callbacks=callbacks or [RunCheckpoint(last_every_n_iterations=1)], **settings,
    )  # fmt: skip


def train(logger=False, until=2, seed=0, ckpt_path=None, **settings):
    """The directory of a run."""
    model, of_run = small_ppo(seed, eval_freq=2), trainer(logger, until, **settings)
    of_run.fit(model, ckpt_path=ckpt_path)
    return run_directory(of_run)


def stamps(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def with_loggers(*names):
    """Once with each kind of loggers; the others are for the slow tests."""
    marks = {name: [] if name in names else [pytest.mark.slow] for name in LOGGERS}
    return pytest.mark.parametrize(
        "logger", [pytest.param(logger, id=name, marks=marks[name]) for name, logger in LOGGERS.items()]
    )


@pytest.mark.parametrize("trainer_class", [pl_rl.Trainer, pytest.param(L.Trainer, marks=pytest.mark.slow)])
@with_loggers("none", "default", "csv elsewhere", "without files")
def test_no_run_touches_another(logger, trainer_class):
    first = train(logger(), trainer_class=trainer_class)
    before = stamps(first)
    second = train(logger(), seed=1, trainer_class=trainer_class)
    assert before == stamps(first)
    assert first != second and first.name == "version_0" and second.name == "version_1"
    for run in (first, second):
        assert (run / LAST).is_file() and not (run / "replaced").exists()
        assert identity_of(run).run == run.resolve()
    assert not Path("checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize("logger", [LOGGERS["none"], LOGGERS["without files"]])
def test_lightnings_own_checkpoints_are_in_the_runs_directory_too(logger):
    callback = ModelCheckpoint(filename="mine", every_n_epochs=1)
    runs = [train(logger(), callbacks=[callback]) for _ in range(2)]
    assert [(run / "checkpoints" / "mine.ckpt").is_file() for run in runs] == [True, True]
    assert sorted(path.name for path in Path("lightning_logs").iterdir()) == ["version_0", "version_1"]


def test_nothing_is_made_for_a_run_that_writes_nothing():
    of_run = pl_rl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=1)
    of_run.fit(small_ppo())
    trainer(LOGGERS["default"](), fast_dev_run=True).fit(small_ppo())
    assert not Path("lightning_logs").exists()


@pytest.mark.parametrize("trainer_class", [pl_rl.Trainer, L.Trainer])
@pytest.mark.parametrize("name", ["default", "csv elsewhere"])
def test_a_second_fit_of_one_trainer_is_refused_where_its_logger_has_a_run(name, trainer_class):
    of_runs = trainer(LOGGERS[name](), trainer_class=trainer_class)
    of_runs.fit(small_ppo())
    before = stamps(Path.cwd())
    of_runs.fit_loop.max_epochs = 4
    with pytest.raises(UsageError, match=r"version_0' is the directory of a run, and each has its own; to go on"):
        of_runs.fit(small_ppo())
    after = stamps(Path.cwd())
    # A plain Trainer has opened the logger by then.
    assert {path: after[path] for path in before} == before


@pytest.mark.slow
def test_a_second_fit_of_one_trainer_without_a_logger_is_a_run_of_its_own():
    of_runs = trainer(False)
    runs = []
    for _ in range(2):
        of_runs.fit_loop.max_epochs += 2
        of_runs.fit(small_ppo())
        runs.append(run_directory(of_runs))
    assert [run.name for run in runs] == ["version_0", "version_1"]


@pytest.mark.slow
def test_a_second_fit_of_one_trainer_goes_on_from_a_checkpoint():
    whole = train(True, until=4)
    of_run = trainer(True)
    model = small_ppo(eval_freq=2)
    of_run.fit(model)
    of_run.fit_loop.max_epochs = 4
    of_run.fit(model, ckpt_path="last")
    assert run_directory(of_run).name == "version_1"
    points = {tag: values for tag, values in event_scalars(of_run.log_dir).items() if not tag.startswith("time/")}
    expected = {tag: values for tag, values in event_scalars(whole).items() if not tag.startswith("time/")}
    assert points == expected and len(points) > 10


@pytest.mark.parametrize("left", [IDENTITY_FILE, "events.out.tfevents.1.x", "metrics.csv", "checkpoints/last.ckpt"])
def test_a_version_that_is_a_runs_is_refused_before_anything_is_touched(left):
    (Path("elsewhere") / "mine" / left).parent.mkdir(parents=True)
    (Path("elsewhere") / "mine" / left).write_text("precious")
    before = stamps(Path.cwd())
    for logger in (CSVLogger("elsewhere", "", "mine"), TensorBoardLogger("elsewhere", "", "mine")):
        with pytest.raises(UsageError, match="'elsewhere/mine' is the directory of a run"):
            train(logger)
    assert before == stamps(Path.cwd())


def test_a_version_that_the_user_has_chosen_and_prepared_is_taken():
    (Path("elsewhere") / "mine").mkdir(parents=True)
    Path("elsewhere/mine/notes.txt").write_text("mine")
    assert train(CSVLogger("elsewhere", "", "mine")) == Path("elsewhere/mine").absolute()


@pytest.mark.slow
@with_loggers("none", "with files in one folder", "without files first")
def test_a_resume_is_in_the_runs_directory_whatever_the_loggers_are(logger, capsys):
    run = train(logger(), until=2)
    assert train(logger(), until=3, ckpt_path="last") == run
    # With other loggers than before.
    assert train([MemoryLogger(), CSVLogger(run.parents[1], run.parent.name)], until=4, ckpt_path=run / LAST) == run
    assert len(list(run.rglob("metrics.csv"))) == 1
    assert train(False, until=5, ckpt_path=run / LAST) == run
    assert counters_in(run / LAST)["iteration"] == 5 and len(list(run.parent.glob("version_*"))) == 1
    assert capsys.readouterr().out.count(f"Continued in {run.relative_to(Path.cwd())}.") == 3


@pytest.mark.slow
def test_a_checkpoint_in_a_folder_that_only_has_the_name_begins_a_directory():
    run = train(True)
    Path("mine", "checkpoints").mkdir(parents=True)
    shutil.copy(run / LAST, Path("mine") / LAST)
    before = stamps(Path.cwd())
    assert train(True, 3, ckpt_path=Path("mine") / LAST).name == "version_1"
    assert {path: path.read_bytes() for path in before} == before and list(Path("mine").rglob("*.*")) == [
        Path("mine") / LAST
    ]


def test_a_plain_trainer_says_from_where_it_goes_on(capsys):
    run = train(True)
    train(True, 3, ckpt_path=run / LAST, trainer_class=L.Trainer)
    assert "Continued from lightning_logs/version_0 in lightning_logs/version_1." in capsys.readouterr().out


# --- many at once ----------------------------------------------------------------------------------------------------


def begin(barrier, folder, queue):
    os.chdir(folder)
    for _ in range(5):
        logger = TensorBoardLogger("elsewhere")
        for loggers in ([], [MemoryLogger()], [TensorBoardLogger(".")], [logger, CSVLogger("elsewhere")]):
            barrier.wait(60)
            run = claim(loggers, LOG_ROOT, new_run_id())
            queue.put((str(run.resolve()), [Path(logger.log_dir) for logger in loggers if loggers[1:]]))


def test_each_of_many_that_start_in_one_moment_has_its_own(tmp_path):
    context = multiprocessing.get_context("fork")
    queue, barrier = context.Queue(), context.Barrier(4)
    processes = [context.Process(target=begin, args=(barrier, tmp_path, queue)) for _ in range(4)]
    for process in processes:
        process.start()
    begun = [queue.get(timeout=100) for _ in range(4 * 20)]
    for process in processes:
        process.join()
    assert len({run for run, _ in begun}) == len(begun)
    assert all(len(set(folders)) < 2 for _, folders in begun)
    # Each is noted, in its order.
    assert {str(path.resolve()) for path in Path("lightning_logs").iterdir()} == {run for run, _ in begun}


# --- found again -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_newest_run_is_found_wherever_it_is():
    first = train(True)
    second = train(CSVLogger("elsewhere"))
    assert find_checkpoint("last") == second / LAST
    third = train(MemoryLogger())
    assert find_checkpoint("last") == third / LAST and third.parent == first.parent
    shutil.rmtree(third)
    shutil.rmtree(second)  # which leaves a link to nothing
    assert find_checkpoint("last") == first / LAST
    assert train(True).name == "version_2"


@pytest.mark.slow
def test_runs_are_found_after_a_move(tmp_path, monkeypatch):
    (tmp_path / "one").mkdir()
    monkeypatch.chdir(tmp_path / "one")
    train(CSVLogger("elsewhere"))
    (tmp_path / "one").rename(tmp_path / "other")
    monkeypatch.chdir(tmp_path / "other")
    run = train(CSVLogger("elsewhere"), 3, ckpt_path="last")
    assert run == tmp_path / "other" / "elsewhere" / "lightning_logs" / "version_0"
    assert len((run / "metrics.csv").read_text().splitlines()) > 3


@pytest.mark.slow
@pytest.mark.parametrize("link", ["mine.ckpt", "mine/last.ckpt"])
def test_a_link_to_a_checkpoint_leads_to_its_run(link):
    run = train(True)
    if link == "mine.ckpt":
        Path(link).symlink_to(run / LAST)
    else:
        Path("mine").symlink_to(run / "checkpoints")
    assert run_of_checkpoint(Path(link)) == run
    assert train(True, 3, ckpt_path=link) == run


@pytest.mark.skipif(sys.platform == "win32", reason="links")
def test_a_run_that_cannot_be_noted_trains_and_says_so(capsys):
    Path("lightning_logs").write_text("a file")
    run = train(CSVLogger("elsewhere"))
    assert (run / LAST).is_file()
    assert "cannot be noted under lightning_logs" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "logger",
    [
        ["--trainer.logger", "false"],
        ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "elsewhere"],
        ["--trainer.logger", "tests.support.MemoryLogger"],
    ],
)
def test_the_same_command_goes_on_whatever_the_logger_is(logger, capsys):
    assert go(*logger, "--trainer.max_epochs", "2") == 0
    assert go(*logger, "--trainer.max_epochs", "2") == 0
    out = capsys.readouterr().out
    run = find_checkpoint("last").parents[1]
    assert re.search(r"auto_resume: \S*version_0 is finished: max_epochs=2 reached", out)
    assert (run / "command.yaml").is_file() and (run / "config.yaml").is_file()
    assert len(list(Path("lightning_logs").iterdir())) == 1
