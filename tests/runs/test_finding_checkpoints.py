"""``last`` is the newest checkpoint that is sound, and what was passed over is said."""

import pytest

import pl_rl
from pl_rl.callbacks import RunCheckpoint
from pl_rl.runs.directory import find_checkpoint
from tests.resume.test_resume import account, differences, last_of, run_of, train
from tests.support import counters_in


def keeping():
    return [RunCheckpoint(last_every_n_iterations=2, keep_every_n_iterations=3, keep_last_n=-1)]


@pytest.fixture
def folder(tmp_path):
    train(tmp_path / "whole", 10, callbacks=keeping())
    train(tmp_path, 8, callbacks=keeping())
    return run_of(tmp_path) / "checkpoints"


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.slow
def test_a_sound_last_checkpoint_is_taken_without_a_word(tmp_path, folder, capsys):
    capsys.readouterr()
    assert find_checkpoint("last", tmp_path / "lightning_logs") == folder / "last.ckpt"
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_the_last_but_one_takes_the_place_of_a_broken_one_and_the_run_is_the_same(tmp_path, folder, capsys):
    cut(folder / "last.ckpt")
    capsys.readouterr()
    model, _ = train(tmp_path, 10, "last", callbacks=keeping())
    assert "passed over lightning_logs/version_0/checkpoints/last.ckpt: it is cut short\n" in capsys.readouterr().out
    assert model.iteration == 10
    assert differences(tmp_path / "whole", tmp_path) == {}


@pytest.mark.slow
def test_the_furthest_of_the_others_is_taken(tmp_path, folder, capsys):
    (folder / "last.ckpt").write_text("not a checkpoint")
    for name in ("previous.ckpt", "best.ckpt"):
        (folder / name).unlink()
    capsys.readouterr()
    assert find_checkpoint("last.ckpt", tmp_path / "lightning_logs") == folder / "iteration_6.ckpt"
    (folder / "last.ckpt").unlink()
    assert find_checkpoint("last", tmp_path / "lightning_logs") == folder / "iteration_6.ckpt"
    out = capsys.readouterr().out
    assert "last.ckpt: it is not what torch.save writes" in out and "last.ckpt: it is not there" in out


@pytest.mark.slow
def test_nothing_is_begun_from_scratch_where_nothing_is_sound(tmp_path, folder, capsys):
    for path in folder.glob("*.ckpt"):
        cut(path)
    with pytest.raises(pl_rl.UsageError, match=r"has no sound checkpoint: last\.ckpt \(it is cut short\), best\.ckpt"):
        train(tmp_path, 10, "last")
    assert not run_of(tmp_path, version=1).exists()


@pytest.mark.slow
def test_a_broken_checkpoint_that_is_named_is_refused(tmp_path, folder):
    cut(folder / "last.ckpt")
    with pytest.raises(pl_rl.UsageError, match=r"damaged one: it is cut short; use another one \(--ckpt_path last"):
        train(tmp_path, 10, last_of(tmp_path))


@pytest.mark.slow
def test_a_resume_from_a_broken_last_checkpoint_keeps_it_aside(tmp_path, folder, capsys):
    cut(folder / "last.ckpt")
    broken = (folder / "last.ckpt").read_bytes()
    train(tmp_path, 10, "last", callbacks=keeping())
    assert (run_of(tmp_path) / "replaced" / "last.ckpt.1").read_bytes() == broken
    assert account(capsys)[-1] == "fidelity: exact"
    assert counters_in(folder / "previous.ckpt")["iteration"] < counters_in(folder / "last.ckpt")["iteration"] == 10
