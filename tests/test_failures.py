"""What a user's code raises comes out as it is, rescue checkpoints are saved, and nothing is left open."""

import multiprocessing
import os
import signal
import traceback
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint

import pl_rl
from pl_rl.callbacks import ResumeState, RunCheckpoint
from tests.resume.test_resume import account, differences
from tests.support import SMALL, counters_in, read_checkpoint

SETTINGS = {**SMALL, "eval_freq": 8, "eval_episodes": 2, "eval_num_envs": 2, "compile_update": False}
ASYNC = pl_rl.EnvConfig("CartPole-v1", "async")
LAST = Path("lightning_logs/version_0/checkpoints/last.ckpt")
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*fit\\(ckpt_path", "ignore:Checkpoint directory", "ignore:Be aware that"
)


class UsersOwn(Exception):
    """Nobody else raises it."""


class Failing(L.Callback):
    """Raises in a hook, from an iteration on."""

    def __init__(self, hook, iteration, error):
        self.iteration, self.error, self.failed = iteration, error, False
        setattr(self, hook, self._fail)

    def _fail(self, trainer, pl_module, *args, **kwargs):
        if pl_module.iteration >= self.iteration and not self.failed:
            self.failed = True
            raise self.error


def model(**settings):
    L.seed_everything(0, verbose=False)
    return pl_rl.PPO(**{**SETTINGS, **settings})


def trainer(root, *callbacks, trainer_class=pl_rl.Trainer, **settings):
    return trainer_class(
        accelerator="cpu", default_root_dir=root, callbacks=list(callbacks), enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=1, **{"max_epochs": -1, **settings},
    )  # fmt: skip


def open_workers():
    return [process.name for process in multiprocessing.active_children()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    trainer(root, RunCheckpoint(100)).fit(model())
    return root


HOOKS = {
    "setup": 0, "on_fit_start": 0, "on_train_start": 0, "on_train_epoch_start": 3, "on_train_batch_start": 3,
    "on_train_batch_end": 3, "on_train_epoch_end": 3, "on_save_checkpoint": 3, "on_train_end": 8, "teardown": 8,
}  # fmt: skip
EVERY = {hook: 1 if hook == "on_save_checkpoint" else 100 for hook in HOOKS}
BETWEEN = ("on_train_start", "on_train_epoch_start", "on_train_batch_end", "on_train_epoch_end", "on_train_end")


@pytest.mark.slow
@pytest.mark.parametrize("trainer_class", [pl_rl.Trainer, L.Trainer])
@pytest.mark.parametrize("hook", HOOKS)
def test_an_exception_of_any_hook_comes_out_and_its_rescue_goes_on_exactly(
    hook, trainer_class, whole, tmp_path, capsys
):
    error = UsersOwn(f"raised in {hook}")
    failing = Failing(hook, HOOKS[hook], error)
    rescue = OnExceptionCheckpoint(tmp_path, "rescue")
    exact = hook in BETWEEN and trainer_class is pl_rl.Trainer
    agent = model() if exact else model(env=ASYNC)
    with pytest.raises(UsersOwn) as raised:
        trainer(tmp_path, failing, RunCheckpoint(EVERY[hook]), rescue, trainer_class=trainer_class).fit(agent)
    assert raised.value is error and not hasattr(error, "__notes__")
    assert traceback.extract_tb(error.__traceback__)[-1].name == "_fail"
    assert open_workers() == []
    saved = read_checkpoint(tmp_path / "rescue.ckpt") if (tmp_path / "rescue.ckpt").exists() else {}
    assert ("pl_rl" in saved) == (hook not in ("setup", "on_fit_start"))
    if exact:
        (tmp_path / LAST).parent.mkdir(exist_ok=True)
        (tmp_path / "rescue.ckpt").rename(tmp_path / LAST)
        capsys.readouterr()
        trainer(tmp_path, RunCheckpoint(100)).fit(model(), ckpt_path="last")
        assert account(capsys)[-1:] == ([] if hook == "on_train_end" else ["fidelity: exact"])
        assert differences(whole, tmp_path) == {}


@pytest.mark.slow
@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_train_batch_end"])
def test_model_checkpoint_saves_on_an_exception(hook, tmp_path, capsys):
    saving = ModelCheckpoint(
        tmp_path, "{step}", monitor="evaluator/return_mean", save_on_exception=True, every_n_epochs=100
    )
    with pytest.raises(UsersOwn):
        trainer(tmp_path, Failing(hook, 3, UsersOwn()), saving).fit(model())
    (saved,) = tmp_path.glob("*.ckpt")
    assert counters_in(saved)["iteration"] == 3
    capsys.readouterr()
    trainer(tmp_path / "again", RunCheckpoint()).fit(again := model(), ckpt_path=saved)
    assert again.env_steps >= 512
    said = account(capsys)
    middle = "not exact: the checkpoint was saved in the middle of an iteration, whose rest is lost"
    assert (middle in said) == (hook == "on_train_batch_start") and ("fidelity: exact" in said) == (middle not in said)


@pytest.mark.slow
def test_environments_that_were_left_in_a_step_are_not_asked(tmp_path, capsys, monkeypatch):
    """An exception from within a request would be followed by the answer to it, and be taken for another one's."""
    answers = pl_rl.envs.workers.AsyncEnvs._answers

    def interrupted(env, doing, limited=True):
        if doing == "step" and model_.iteration == 3:
            raise KeyboardInterrupt
        return answers(env, doing, limited)

    model_ = model(env=ASYNC)
    rescue = OnExceptionCheckpoint(tmp_path, "rescue")
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr("pl_rl.envs.workers.AsyncEnvs._answers", interrupted)
        trainer(tmp_path, rescue, trainer_class=L.Trainer).fit(model_)
    assert open_workers() == []
    again = model(env=ASYNC)
    trainer(tmp_path / "again", RunCheckpoint()).fit(again, ckpt_path=tmp_path / "rescue.ckpt")
    assert "not exact: environments: restarted, as they were left in the middle of a step" in account(capsys)


@pytest.mark.slow
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(7), UsersOwn()], ids=lambda error: type(error).__name__
)
@pytest.mark.parametrize("kept", [[], [RunCheckpoint]])
def test_every_end_closes_the_environments_and_leaves_model_and_trainer_usable(error, kept, tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    failing = Failing("on_train_batch_end", 2, error)
    agent = model(env=ASYNC)
    first = trainer(tmp_path, failing, *[kind() for kind in kept], logger=False)
    with pytest.raises(BaseException) as raised:
        first.fit(agent)
    assert raised.value is error or (isinstance(error, KeyboardInterrupt) and raised.value.code == 1)
    assert open_workers() == [] and signal.getsignal(signal.SIGINT) is handler
    first.fit(agent)
    assert agent.iteration == 8 and open_workers() == []
    trainer(tmp_path / "other").fit(agent)
    assert agent.iteration == 8


def test_an_exception_in_the_hook_for_exceptions_closes_them_too(tmp_path):
    failing = Failing("on_train_batch_end", 2, UsersOwn("first"))
    second = Failing("on_exception", 0, UsersOwn("second"))
    with pytest.raises(UsersOwn, match="second") as raised:
        trainer(tmp_path, failing, second).fit(model(env=ASYNC))
    assert raised.value.__context__ is failing.error
    assert open_workers() == []


def test_an_exception_in_configure_optimizers_comes_out(tmp_path):
    class Agent(pl_rl.PPO):
        def configure_optimizers(self):
            raise UsersOwn

    L.seed_everything(0, verbose=False)
    agent = Agent(**{**SETTINGS, "env": ASYNC})
    with pytest.raises(UsersOwn):
        trainer(tmp_path, OnExceptionCheckpoint(tmp_path)).fit(agent)
    assert open_workers() == []


@pytest.mark.slow
def test_a_rescue_of_a_half_restored_run_holds_weights_alone_and_is_no_obstacle(tmp_path):
    trainer(tmp_path, RunCheckpoint(), max_epochs=4).fit(model())
    rescue = OnExceptionCheckpoint(tmp_path, "rescue")
    for ckpt_path in (tmp_path / LAST, None):
        failing = Failing("on_fit_start" if ckpt_path else "setup", 0, UsersOwn())
        with pytest.raises(UsersOwn):
            trainer(tmp_path / "other", failing, rescue).fit(model(), ckpt_path=ckpt_path)
        assert "pl_rl" not in read_checkpoint(rescue.ckpt_path)
    again = trainer(tmp_path / "other", rescue, RunCheckpoint(), max_epochs=2)
    again.fit(agent := model())  # Lightning takes the rescue checkpoint by itself
    assert agent.iteration == 2


@pytest.mark.slow
def test_another_librarys_checkpoint_is_refused_by_a_plain_trainer_too(tmp_path):
    trainer(tmp_path, RunCheckpoint(), max_epochs=4).fit(model())
    checkpoint = read_checkpoint(tmp_path / LAST)
    del checkpoint["pl_rl"]
    torch.save(checkpoint, tmp_path / "other.ckpt")
    plain = trainer(tmp_path / "plain", RunCheckpoint(), trainer_class=L.Trainer)
    with pytest.raises(pl_rl.UsageError, match=r"other.ckpt' is not a checkpoint of pl_rl"):
        plain.fit(model(), ckpt_path=tmp_path / "other.ckpt")


def test_a_close_that_fails_does_not_hide_it(tmp_path, monkeypatch):
    error = UsersOwn("first")
    monkeypatch.setattr(pl_rl.envs.native.SameStepCartPoleVectorEnv, "close", lambda env: 1 / 0)
    with pytest.raises(UsersOwn) as raised:
        trainer(tmp_path, Failing("on_train_batch_end", 2, error)).fit(model(eval_freq=0))
    assert raised.value is error
    assert error.__notes__ == ["Then the environments could not be closed: ZeroDivisionError: division by zero"]


@pytest.mark.slow
@pytest.mark.parametrize("iteration", [4, 8])
def test_a_failed_evaluation_is_made_up_for(iteration, whole, tmp_path, monkeypatch):
    """Also the last one, after which nothing is left to train."""
    play = pl_rl.PPO.play

    def failing(agent, stream):
        if agent.iteration == iteration:
            raise UsersOwn
        return play(agent, stream)

    rescue = OnExceptionCheckpoint(tmp_path / "lightning_logs/version_0/checkpoints", "rescue")
    with monkeypatch.context() as patch, pytest.raises(UsersOwn):
        patch.setattr(pl_rl.PPO, "play", failing)
        trainer(tmp_path, RunCheckpoint(100), rescue).fit(model())
    trainer(tmp_path, RunCheckpoint()).fit(model(), ckpt_path=rescue.ckpt_path)
    assert differences(whole, tmp_path) == {}


@pytest.mark.slow
@pytest.mark.parametrize("trainer_class", [pl_rl.Trainer, L.Trainer])
def test_a_save_before_the_state_is_restored_holds_the_checkpoints_own(trainer_class, tmp_path):
    trainer(tmp_path, RunCheckpoint(), max_epochs=4).fit(model())

    class Early(L.Callback):
        def on_train_start(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "early.ckpt")

    trainer(tmp_path, Early(), max_epochs=5, trainer_class=trainer_class).fit(model(), ckpt_path=tmp_path / LAST)
    one, other = (read_checkpoint(path)["pl_rl"] for path in (tmp_path / "early.ckpt", tmp_path / LAST))
    assert one["random"]["torch"].equal(other["random"]["torch"]) and one["counters"] == other["counters"]


@pytest.mark.slow
def test_what_was_evaluated_is_not_what_is_trained(tmp_path):
    """A checkpoint that was read for ``validate`` has no part in a later fit."""
    trainer(tmp_path, RunCheckpoint(), max_epochs=4).fit(model())
    other = trainer(tmp_path / "other", max_epochs=2)
    other.validate(agent := model(), ckpt_path=tmp_path / LAST, verbose=False)
    other.fit(agent)
    assert agent.iteration == 2
    (state,) = [callback for callback in other.callbacks if isinstance(callback, ResumeState)]
    assert state.losses is None


@pytest.mark.slow
def test_a_signal_with_a_rescue_checkpoint_is_still_that_signal(tmp_path, monkeypatch):
    monkeypatch.setattr("pl_rl.callbacks.stop_on_signal.LONG_SECONDS", 0.0)

    class Signal(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, *args):
            if pl_module.iteration == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    rescue = OnExceptionCheckpoint(tmp_path, "rescue")
    with pytest.raises(SystemExit) as end:
        trainer(tmp_path, Signal(), RunCheckpoint(100), rescue).fit(model(env=ASYNC))
    assert end.value.code == 143
    assert counters_in(tmp_path / LAST)["iteration"] == 3
