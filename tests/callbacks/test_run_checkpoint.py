"""The files of a run: the last state, the best policy, and some on the way."""

from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from pl_rl import PPO, UsageError
from pl_rl.callbacks import RunCheckpoint
from tests.support import MemoryLogger, counters_in, fit, quiet_trainer, read_checkpoint, same_bits, small_ppo


def run(checkpoint, **settings):
    """A model trained with a checkpoint callback, its logger, and the files in the folder."""
    model, logger = small_ppo(**{"eval_freq": 8, **settings}), MemoryLogger()
    fit(model, logger=logger, callbacks=[checkpoint], enable_checkpointing=True, default_root_dir=Path.cwd())
    return model, logger, sorted(path.stem for path in Path(checkpoint.last_model_path).parent.iterdir())


def validation_of(model, path, callback):
    """Mean return when another trainer, with the callback that saved the file, evaluates it."""
    trainer = quiet_trainer(callbacks=[callback], enable_checkpointing=True)
    return trainer.validate(model, ckpt_path=path, verbose=False)[0]["evaluator/return_mean"]


@pytest.mark.slow
def test_the_last_and_the_best_are_kept():
    _, _, files = run(RunCheckpoint())
    assert files == ["best", "last"]


@pytest.mark.slow
def test_the_last_holds_the_final_state():
    checkpoint = RunCheckpoint(last_every_n_iterations=3)
    model, _, _ = run(checkpoint)
    saved, counters = read_checkpoint(checkpoint.last_model_path), counters_in(checkpoint.last_model_path)
    assert same_bits(saved["state_dict"], model.state_dict())
    assert (saved["global_step"], counters["env_steps"], counters["iteration"]) == (32, 512, 8)


def test_there_is_something_to_resume_before_the_first_iteration_ends():
    class Crash(PPO):
        def training_step(self, rollout, batch_idx):
            raise RuntimeError("crash")

    checkpoint = RunCheckpoint()
    with pytest.raises(RuntimeError, match="crash"):
        run(checkpoint, model_class=Crash)
    assert counters_in(checkpoint.last_model_path)["iteration"] == 0


def test_the_last_is_saved_every_so_many_iterations():
    class CrashInIterationSix(PPO):
        def training_step(self, rollout, batch_idx):
            if self.iteration == 5:
                raise RuntimeError("crash")
            super().training_step(rollout, batch_idx)

    checkpoint = RunCheckpoint(last_every_n_iterations=2)
    with pytest.raises(RuntimeError, match="crash"):
        run(checkpoint, model_class=CrashInIterationSix)
    # Five iterations were finished; the fourth was the last that 2 divides.
    assert counters_in(checkpoint.last_model_path)["iteration"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_best_holds_the_weights_that_achieved_the_best_evaluation(seed):
    checkpoint = RunCheckpoint()
    _, logger, _ = run(checkpoint, seed=seed, total_env_steps=2048, learning_rate=3e-3, eval_freq=4)
    returns = logger.values("evaluator_iter/return_mean")
    assert 0 < int(np.argmax(returns)) < len(returns) - 1, "a test in which the best is neither first nor last"
    assert checkpoint.best_model_score == max(returns)
    # Another model and trainer reproduce the very number.
    model = PPO.load_from_checkpoint(checkpoint.best_model_path)
    result = validation_of(model, checkpoint.best_model_path, RunCheckpoint())
    assert result == np.float32(max(returns))
    best_train_iter = logger.points("evaluator_iter/return_mean")[int(np.argmax(returns))][0]
    assert read_checkpoint(checkpoint.best_model_path)["global_step"] == best_train_iter


def test_without_evaluation_there_is_no_best():
    checkpoint = RunCheckpoint()
    assert run(checkpoint, eval_freq=0)[2] == ["last"]
    assert checkpoint.best_model_path == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("every", "keep", "kept"),
    [
        (0, 5, set()),
        (3, 5, {"iteration_3", "iteration_6"}),
        (2, 2, {"iteration_6", "iteration_8"}),
        (1, 1, {"iteration_8"}),
        (2, -1, {"iteration_2", "iteration_4", "iteration_6", "iteration_8"}),
    ],
)
def test_some_are_kept_on_the_way_and_the_oldest_go(every, keep, kept):
    checkpoint = RunCheckpoint(keep_every_n_iterations=every, keep_last_n=keep)
    _, _, files = run(checkpoint)
    assert set(files) == {"best", "last", *kept}
    for name in kept:
        path = Path(checkpoint.last_model_path).with_stem(name)
        assert counters_in(path)["iteration"] == int(name.removeprefix("iteration_"))


@pytest.mark.parametrize(
    "settings",
    [{"last_every_n_iterations": 0}, {"keep_every_n_iterations": -1}, {"keep_last_n": 0}, {"keep_last_n": -2}],
)
def test_a_number_out_of_range_is_refused(settings):
    ((name, value),) = settings.items()
    with pytest.raises(UsageError, match=f"{name}={value}.*must be at least"):
        RunCheckpoint(**settings)


@pytest.mark.slow
def test_lightnings_own_checkpoints_work_too():
    def own_checkpoint():
        return ModelCheckpoint("own", monitor="evaluator/return_mean", mode="max", every_n_epochs=1)

    checkpoint = own_checkpoint()
    model, logger = small_ppo(eval_freq=4), MemoryLogger()
    fit(model, logger=logger, callbacks=[checkpoint], enable_checkpointing=True)
    # Monitored from the first iteration on, so without the untrained policy.
    best = max(logger.values("evaluator_iter/return_mean")[1:])
    assert checkpoint.best_model_score == np.float32(best)
    result = validation_of(small_ppo(eval_freq=4), checkpoint.best_model_path, own_checkpoint())
    assert result == np.float32(best)


def test_lightnings_own_checkpoint_holds_the_runs_state():
    checkpoint = ModelCheckpoint("own", save_top_k=-1, every_n_epochs=1, filename="{epoch}")
    fit(small_ppo(), callbacks=[checkpoint], enable_checkpointing=True)
    counters = counters_in("own/epoch=2.ckpt")
    assert (counters["env_steps"], counters["train_iter"], counters["iteration"]) == (192, 12, 3)


def test_a_trial_run_leaves_no_files():
    fit(small_ppo(eval_freq=8), callbacks=[RunCheckpoint()], enable_checkpointing=True, fast_dev_run=True)
    assert not Path("checkpoints").exists()
