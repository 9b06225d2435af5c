"""Checkpoints of every format that there has been load and are continued."""

import re
from pathlib import Path

import lightning as L
import pytest
import torch

import pl_rl
from pl_rl.callbacks import RunCheckpoint
from pl_rl.checkpoints import format as checkpoints
from pl_rl.tools.inspection import describe_checkpoint
from tests.data.checkpoints import make
from tests.resume.test_resume import account, last_of, train

FROZEN = sorted(Path(make.__file__).parent.glob("format_*.ckpt"))


def test_the_present_format_is_frozen():
    names = {path.name for path in FROZEN}
    assert {f"format_{checkpoints.FORMAT_VERSION}_{env}.ckpt" for env in make.ENVIRONMENTS} <= names
    assert set(checkpoints.MIGRATIONS) == set(range(1, checkpoints.FORMAT_VERSION))


@pytest.mark.parametrize("path", FROZEN, ids=lambda path: path.stem)
def test_a_frozen_checkpoint_loads_is_described_and_is_continued(path, tmp_path, capsys):
    content = checkpoints.read_checkpoint(path)
    assert content["pl_rl"]["counters"]["iteration"] == make.ITERATIONS
    assert dict(describe_checkpoint(path))["at"].startswith(f"iteration {make.ITERATIONS}, ")
    model = pl_rl.PPO.load_from_checkpoint(path)
    assert all(torch.equal(tensor, content["state_dict"][name]) for name, tensor in model.state_dict().items())
    L.seed_everything(0, verbose=False)
    trainer = pl_rl.Trainer(
        accelerator="cpu", default_root_dir=tmp_path, max_epochs=8, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[RunCheckpoint()],
    )  # fmt: skip
    trainer.fit(model, ckpt_path=path)
    assert model.iteration == 8
    # Other libraries and machines than those it was saved with may round differently; nothing else may be lost.
    lost = [line for line in account(capsys) if line.startswith("not exact")]
    assert [line for line in lost if "which may round differently" not in line] == []


@pytest.mark.parametrize("trainer_class", [pl_rl.Trainer, L.Trainer])
def test_an_older_format_is_brought_to_the_present_one(tmp_path, monkeypatch, trainer_class):
    train(tmp_path, 3)
    last = last_of(tmp_path)
    older = torch.load(last, weights_only=True)
    older["pl_rl"]["steps"] = older["pl_rl"].pop("counters")
    torch.save(older, last)

    def rename(checkpoint):
        checkpoint["pl_rl"]["counters"] = checkpoint["pl_rl"].pop("steps")

    for module in ("pl_rl.checkpoints.format", "pl_rl.callbacks.resume_state"):
        monkeypatch.setattr(f"{module}.FORMAT_VERSION", checkpoints.FORMAT_VERSION + 1)
    monkeypatch.setitem(checkpoints.MIGRATIONS, older["pl_rl"]["format_version"], rename)
    model, _ = train(tmp_path, 4, last, trainer_class=trainer_class)
    assert model.iteration == 4


def test_a_newer_format_is_one_sentence(tmp_path):
    content = torch.load(FROZEN[0], weights_only=True)
    content["pl_rl"]["format_version"] = 99
    torch.save(content, tmp_path / "newer.ckpt")
    sentence = f"was written by a newer pl_rl (format 99, this one reads {checkpoints.FORMAT_VERSION}), so upgrade"
    with pytest.raises(pl_rl.UsageError, match=re.escape(sentence)):
        train(tmp_path, 1, tmp_path / "newer.ckpt")
