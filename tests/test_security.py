"""A stranger's file can do no harm: whatever is read, nothing in it runs."""

import pickle
import socket
import zipfile
from pathlib import Path

import pytest
import torch
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter

import pl_rl
from pl_rl import cli
from pl_rl.checkpoints.format import read_checkpoint
from pl_rl.pretrained import read_weights
from pl_rl.tools.inspection import describe_checkpoint
from pl_rl.tools.plotting import plot_runs
from tests.resume.test_resume import run_of, train
from tests.support import fit, small_ppo


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


@pytest.fixture(autouse=True)
def _nothing_runs():
    yield
    assert not Path("exploded").exists() and not Path("ran").exists()


def test_the_bomb_works():
    pickle.loads(pickle.dumps(Bomb()))
    assert Path("exploded").exists()
    Path("exploded").unlink()


def bombs():
    """Files in each of the formats, by name."""
    content = {"pl_rl": {"format_version": 1}, "state_dict": Bomb()}
    torch.save(content, "zip.ckpt")
    torch.save(content, "old.ckpt", _use_new_zipfile_serialization=False)
    Path("raw.ckpt").write_bytes(pickle.dumps(content))
    with zipfile.ZipFile("sb3.zip", "w") as archive:
        archive.writestr("data", '{"policy_class": {":serialized:": "gASVLg=="}}')
        for name in ("policy.pth", "pytorch_variables.pth"):
            archive.writestr(name, pickle.dumps(Bomb()))
        archive.writestr("../escaped.txt", "outside")
    return [Path(name) for name in ("zip.ckpt", "old.ckpt", "raw.ckpt", "sb3.zip")]


def test_checkpoints_are_not_unpickled(tmp_path):
    for path in bombs():
        for read in (read_checkpoint, describe_checkpoint, lambda path: train(tmp_path, 1, path)):
            with pytest.raises(pl_rl.UsageError):
                read(path)


def test_weights_are_not_unpickled_and_archives_not_unpacked():
    for path in bombs():
        with pytest.raises(pl_rl.UsageError):
            read_weights(path, None)
    assert not Path("../escaped.txt").exists()


@pytest.mark.parametrize("verb", ["fit", "validate", "predict", "inspect"])
def test_no_verb_unpickles(verb):
    for path in bombs():
        with pytest.raises(SystemExit) as end:
            cli.main([verb, *(["--ckpt_path"] if verb != "inspect" else []), str(path)])
        assert end.value.code == 2


@pytest.mark.parametrize("tag", ["!!python/object/apply:pathlib.Path.touch", "!!python/object/new:os.system"])
def test_configurations_are_plain_data(tag, capsys):
    Path("evil.yaml").write_text(f"model: {tag} [[ran]]\n")
    with pytest.raises(SystemExit) as end:
        cli.main(["fit", "--config", "evil.yaml"])
    assert end.value.code == 2
    assert "not valid YAML" in capsys.readouterr().err


@pytest.mark.slow
def test_a_runs_own_configuration_is_plain_data(tmp_path):
    train(tmp_path, 1)
    run = run_of(tmp_path)
    (run / "config.yaml").write_text("model: !!python/object/apply:pathlib.Path.touch [[ran]]\n")
    (run / "hparams.yaml").write_text("a: !!python/object/apply:pathlib.Path.touch [[ran]]\n")
    (run / "command.yaml").write_text("a: !!python/object/apply:pathlib.Path.touch [[ran]]\n")
    for args in (["--ckpt_path", "last"], ["--config", "cartpole.yaml", "--auto_resume", "--trainer.max_epochs", "1"]):
        try:
            cli.main(["fit", *args])
        except SystemExit as end:
            assert end.code == 2


def test_event_files_are_not_unpickled():
    folder = Path("run")
    folder.mkdir()
    with (folder / "events.out.tfevents.1.a").open("wb") as file:
        writer = RecordWriter(file)
        event = Event(step=1, wall_time=1.0)
        value = event.summary.value.add(tag="evaluator_iter/return_mean")
        value.tensor.string_val.append(pickle.dumps(Bomb()))
        value.metadata.plugin_data.plugin_name = "scalars"
        writer.write(event.SerializeToString())
        writer.write(pickle.dumps(Bomb()))
    with pytest.raises(Exception):  # noqa: B017  (whatever it is, nothing ran)
        plot_runs([folder], folder)


@pytest.mark.slow
def test_nothing_phones_home(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"a connection to {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    fit(small_ppo(eval_freq=8))
    train(Path.cwd(), 2)
