"""What the user has changed of callbacks' settings since a checkpoint, however they keep it."""

from dataclasses import dataclass

import lightning as L
import pytest
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

import pl_rl
from pl_rl.callbacks import RunCheckpoint
from pl_rl.callbacks.settings import changes_of, note_given, note_left, settings_of
from tests.support import small_ppo


class Schedule(L.Callback):
    """Keeps what it makes of an argument under the argument's name."""

    def __init__(self, coef=0.5):
        self.coef = coef

    def on_train_epoch_end(self, trainer, pl_module):
        self.coef *= 0.5

    def state_dict(self):
        return {"coef": self.coef}

    def load_state_dict(self, state_dict):
        self.coef = state_dict["coef"]


class Private(L.Callback):
    """Keeps an argument under another name."""

    def __init__(self, rate=1.0):
        self._rate = rate

    def state_dict(self):
        return {"_rate": self._rate}

    def load_state_dict(self, state_dict):
        self._rate = state_dict["_rate"]


@dataclass
class Unhashable(L.Callback):
    """Equal to another one of the same settings."""

    coef: float = 0.5


def fit(root, *callbacks, total_env_steps=192, ckpt_path=None):
    trainer = pl_rl.Trainer(
        accelerator="cpu", default_root_dir=root, max_epochs=-1, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[RunCheckpoint(keep_every_n_iterations=1), *callbacks],
    )  # fmt: skip
    trainer.fit(small_ppo(total_env_steps=total_env_steps), ckpt_path=ckpt_path)
    return root / "lightning_logs/version_0/checkpoints"


def resumed(tmp_path, before, after, capsys):
    checkpoints = fit(tmp_path, before)
    capsys.readouterr()
    fit(tmp_path, after, total_env_steps=256, ckpt_path=checkpoints / "last.ckpt")
    return [line.strip() for line in capsys.readouterr().out.splitlines() if type(after).__name__ in line]


@pytest.mark.slow
def test_what_a_fit_has_made_of_a_setting_is_no_change(tmp_path, capsys):
    schedule = Schedule()
    checkpoints = fit(tmp_path, schedule)
    assert schedule.coef == 0.5**4
    fit(tmp_path / "again", schedule, ckpt_path=checkpoints / "iteration_1.ckpt")
    assert schedule.coef == 0.5**4
    assert "Schedule.coef" not in capsys.readouterr().out


@pytest.mark.slow
def test_what_the_user_makes_of_it_between_two_fits_is_one(tmp_path, capsys):
    schedule = Schedule()
    checkpoints = fit(tmp_path, schedule)
    schedule.coef = 8.0
    fit(tmp_path / "again", schedule, ckpt_path=checkpoints / "iteration_1.ckpt")
    assert schedule.coef == 2.0
    assert "changed: Schedule.coef: 0.5 -> 8.0" in capsys.readouterr().out


def test_callbacks_that_cannot_be_remembered_are_taken_as_they_are():
    callback = Unhashable()
    note_given([callback])
    callback.coef = 1.0
    note_left([callback])
    assert settings_of([callback]) == {"Unhashable": {"coef": 1.0}}


def test_an_argument_may_be_kept_with_an_underscore(tmp_path, capsys):
    after = Private(2.0)
    assert resumed(tmp_path, Private(), after, capsys) == ["changed: Private.rate: 1.0 -> 2.0"]
    assert after._rate == 2.0


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`", "ignore:Checkpoint directory")
@pytest.mark.parametrize(
    "cls, name, before, after",
    [
        (EarlyStopping, "mode", "max", "min"),
        (EarlyStopping, "monitor", "evaluator/return_mean", "evaluator/return_max"),
        (ModelCheckpoint, "every_n_epochs", 1, 2),
    ],
)
def test_a_state_that_is_not_restored_for_a_changed_setting_is_told_of(cls, name, before, after, tmp_path, capsys):
    def callback(value):
        if cls is ModelCheckpoint:
            return ModelCheckpoint(dirpath=tmp_path / "more", save_top_k=-1, **{name: value})
        return EarlyStopping(
            **{"monitor": "evaluator/return_mean", "patience": 99, "strict": False, "mode": "max", name: value}
        )

    (line,) = resumed(tmp_path, callback(before), callback(after), capsys)
    assert line == f"changed: {cls.__name__}.{name}: {before} -> {after}, with which its state begins anew"


def test_which_of_several_was_changed_nobody_could_tell():
    before = [EarlyStopping(monitor) for monitor in ("a", "b")]
    after = [EarlyStopping(monitor) for monitor in ("c", "d")]
    checkpoint = {"callbacks": {}, "pl_rl": {"callback_settings": settings_of(before)}}
    assert changes_of(after, settings_of(after), checkpoint) == []
    kept = [EarlyStopping("a"), EarlyStopping("c")]
    assert [change.after for change in changes_of(kept, settings_of(kept), checkpoint)] == ["c"]
