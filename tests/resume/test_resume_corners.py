"""Resumes off the main road: other checkpoints than the last, other trainers' callbacks, damaged and foreign files."""

import functools
import shutil
import time
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

import pl_rl
from pl_rl.callbacks import RunCheckpoint
from tests.resume.test_resume import RUN, account, differences, last_of, run_of, train
from tests.support import event_scalars


def keeping():
    return [RunCheckpoint(last_every_n_iterations=2, keep_every_n_iterations=2)]


def scalars(root, version=0):
    points = event_scalars(run_of(root, version))
    return {tag: values for tag, values in points.items() if not tag.startswith("time/")}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["iteration_4", "best"])
def test_a_run_goes_on_from_an_earlier_checkpoint_even_if_it_dies_at_once(tmp_path, name):
    class Death(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            raise RuntimeError("killed")

    train(tmp_path / "whole", 12, callbacks=keeping())
    train(tmp_path / "parts", 10, callbacks=keeping())
    earlier = run_of(tmp_path / "parts") / "checkpoints" / f"{name}.ckpt"
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path / "parts", 12, earlier, callbacks=[*keeping(), Death()])
    train(tmp_path / "parts", 12, last_of(tmp_path / "parts"), callbacks=keeping())
    assert differences(tmp_path / "whole", tmp_path / "parts") == {}
    folders = [run_of(tmp_path / root) / "checkpoints" for root in ("whole", "parts")]
    one, other = (sorted(path.name for path in folder.iterdir()) for folder in folders)
    assert one == other


@pytest.mark.slow
def test_a_resume_that_has_nothing_to_do_leaves_the_log_alone(tmp_path):
    train(tmp_path, 10, callbacks=keeping())
    before = scalars(tmp_path)
    train(tmp_path, 4, run_of(tmp_path) / "checkpoints" / "iteration_4.ckpt", callbacks=keeping())
    assert scalars(tmp_path) == before


@pytest.mark.slow
def test_the_last_checkpoint_that_an_earlier_one_replaces_is_kept_aside(tmp_path):
    train(tmp_path, 10, callbacks=keeping())
    before = last_of(tmp_path).read_bytes()
    train(tmp_path, 5, run_of(tmp_path) / "checkpoints" / "iteration_4.ckpt", callbacks=keeping())
    assert (run_of(tmp_path) / "replaced" / "last.ckpt.1").read_bytes() == before


@pytest.mark.slow
def test_points_that_are_missing_in_the_log_are_said(tmp_path, capsys):
    train(tmp_path, 6)
    events = next(run_of(tmp_path).glob("events.out.tfevents.*"))
    events.write_bytes(events.read_bytes()[:500])
    train(tmp_path, 7, last_of(tmp_path))
    assert account(capsys)[-1] == "not exact: log: points before the checkpoint are not in version_0 any more"


@pytest.mark.slow
def test_a_checkpoint_copied_beside_other_logs_leaves_them_alone(tmp_path):
    train(tmp_path / "one", 5)
    train(tmp_path / "two", 5)
    copied = run_of(tmp_path / "two") / "checkpoints" / "copied.ckpt"
    shutil.copy(last_of(tmp_path / "one"), copied)
    before = scalars(tmp_path / "two")
    _, trainer = train(tmp_path / "two", 6, copied)
    assert scalars(tmp_path / "two") == before
    assert Path(trainer.log_dir) == run_of(tmp_path / "two", version=1)


@pytest.mark.slow
def test_a_logger_with_a_folder_of_its_own_within_the_run_goes_on_there(tmp_path):
    def go_on(root, until, ckpt_path=None):
        L.seed_everything(0, verbose=False)
        trainer = pl_rl.Trainer(
            accelerator="cpu", logger=TensorBoardLogger(root, sub_dir="tb"), max_epochs=until, log_every_n_steps=1,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[RunCheckpoint(last_every_n_iterations=1)],
        )  # fmt: skip
        trainer.fit(pl_rl.PPO(**RUN), ckpt_path=ckpt_path)
        return Path(trainer.log_dir)

    whole = go_on(tmp_path / "whole", 6)
    parts = go_on(tmp_path / "parts", 3)
    assert go_on(tmp_path / "parts", 6, parts / "checkpoints" / "last.ckpt") == parts
    one, other = event_scalars(whole), event_scalars(parts)
    assert one.keys() == other.keys()
    assert all(one[tag] == other[tag] for tag in one if not tag.startswith("time/"))


@pytest.mark.slow
def test_a_branch_that_is_continued_remembers_its_parent(tmp_path):
    train(tmp_path, 2)
    train(tmp_path, 4, last_of(tmp_path), branch=True)
    train(tmp_path, 5, last_of(tmp_path, version=1))
    assert torch.load(last_of(tmp_path, version=1), weights_only=True)["pl_rl"]["parent"]["train_iter"] == 8


def test_a_branch_needs_a_checkpoint(tmp_path):
    with pytest.raises(pl_rl.UsageError, match="a branch begins at a checkpoint; add --ckpt_path last"):
        train(tmp_path, 1, branch=True)


@pytest.mark.slow
def test_numpys_numbers_may_be_settings(tmp_path):
    network = functools.partial(pl_rl.MLPActorCritic, actor_sizes=np.array([32, 16]), critic_sizes=(np.int64(8),))
    settings = {"learning_rate": np.float64(0.01), "network": network, "eval_freq": np.int64(8)}
    train(tmp_path, 2, **settings)
    model, _ = train(tmp_path, 3, last_of(tmp_path), **settings)
    assert model.iteration == 3
    restored = pl_rl.PPO.load_from_checkpoint(last_of(tmp_path))
    assert [layer.out_features for layer in restored.network.actor if isinstance(layer, torch.nn.Linear)] == [32, 16, 2]


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_flipped_bit_is_found(tmp_path, share):
    train(tmp_path, 2)
    content = bytearray(last_of(tmp_path).read_bytes())
    content[int(len(content) * share)] ^= 4
    last_of(tmp_path).write_bytes(content)
    with pytest.raises(pl_rl.UsageError, match="damaged"):
        train(tmp_path, 3, last_of(tmp_path))


def test_a_checkpoint_of_a_newer_format_is_refused(tmp_path):
    train(tmp_path, 2)
    checkpoint = torch.load(last_of(tmp_path), weights_only=True)
    checkpoint["pl_rl"]["format_version"] += 1
    torch.save(checkpoint, last_of(tmp_path))
    with pytest.raises(pl_rl.UsageError, match=r"written by a newer pl_rl \(format 3, this one reads 2\)"):
        train(tmp_path, 3, last_of(tmp_path))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_lightnings_model_checkpoint_finds_its_files_in_a_moved_run(tmp_path):
    def callbacks():
        return [ModelCheckpoint(monitor="evaluator/return_mean", mode="max", save_top_k=2, save_last=True)]

    _, before = train(tmp_path / "a", 6, callbacks=callbacks())
    shutil.move(tmp_path / "a", tmp_path / "b")
    _, after = train(tmp_path / "b", 7, last_of(tmp_path / "b"), callbacks=callbacks(), eval_freq=0)
    moved = {
        path.replace(str(tmp_path / "a"), str(tmp_path / "b")) for path in before.checkpoint_callback.best_k_models
    }
    assert set(after.checkpoint_callback.best_k_models) == moved
    assert after.checkpoint_callback.best_model_score == before.checkpoint_callback.best_model_score


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty", "ignore:.*every_n_train_steps")
def test_an_evaluation_that_was_due_after_the_checkpoint_is_made_up_for(tmp_path):
    def callbacks():
        return [ModelCheckpoint(every_n_train_steps=8, save_top_k=-1, filename="{step}")]

    train(tmp_path / "whole", 6, callbacks=callbacks())
    train(tmp_path / "parts", 4, callbacks=callbacks())
    saved_before_its_evaluation = run_of(tmp_path / "parts") / "checkpoints" / "step=8.ckpt"
    train(tmp_path / "parts", 6, saved_before_its_evaluation, callbacks=callbacks())
    assert scalars(tmp_path / "whole") == scalars(tmp_path / "parts")


@pytest.mark.slow
def test_a_run_that_early_stopping_ended_stays_ended(tmp_path):
    def callbacks():
        early = EarlyStopping("evaluator/return_mean", mode="max", patience=3, min_delta=1e9)
        return [early, RunCheckpoint(last_every_n_iterations=1)]

    model, _ = train(tmp_path, 50, callbacks=callbacks())
    resumed, _ = train(tmp_path, 50, last_of(tmp_path), callbacks=callbacks())
    assert 0 < model.iteration == resumed.iteration < 50


@pytest.mark.slow
def test_a_model_can_be_trained_twice(tmp_path):
    model, _ = train(tmp_path / "one", 4)
    L.seed_everything(0, verbose=False)
    trainer = pl_rl.Trainer(
        accelerator="cpu", default_root_dir=tmp_path / "two", max_epochs=4, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=1, callbacks=[RunCheckpoint()],
    )  # fmt: skip
    trainer.fit(model)
    assert [step for step, _ in scalars(tmp_path / "two")["evaluator_iter/return_mean"]] == [0, 8, 16]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_other_precisions_are_continued_exactly_and_evaluated_alike(tmp_path, precision):
    def go_on(root, until, ckpt_path=None):
        L.seed_everything(0, verbose=False)
        trainer = pl_rl.Trainer(
            accelerator="cpu", default_root_dir=root, max_epochs=until, precision=precision, enable_progress_bar=False,
            enable_model_summary=False, log_every_n_steps=1, callbacks=[RunCheckpoint(last_every_n_iterations=1)],
        )  # fmt: skip
        model = pl_rl.PPO(**{**RUN, "env": "Pendulum-v1"})
        trainer.fit(model, ckpt_path=ckpt_path)
        return trainer, model

    go_on(tmp_path / "whole", 6)
    go_on(tmp_path / "parts", 3)
    trainer, model = go_on(tmp_path / "parts", 6, last_of(tmp_path / "parts"))
    assert differences(tmp_path / "whole", tmp_path / "parts") == {}
    [again] = trainer.validate(model, verbose=False)
    at_24 = dict(scalars(tmp_path / "parts")["evaluator_iter/return_mean"])[24]
    assert again["evaluator/return_mean"] == pytest.approx(at_24, rel=1e-6)


@pytest.mark.slow
def test_the_window_of_recent_episodes_outlives_another_number_of_environments(tmp_path):
    train(tmp_path, 6)
    before = torch.load(last_of(tmp_path), weights_only=True)["pl_rl"]["collector"]["episodes"]
    train(tmp_path, 6, last_of(tmp_path), num_envs=8, total_env_steps=64)
    after = torch.load(last_of(tmp_path), weights_only=True)["pl_rl"]["collector"]["episodes"]
    assert before["total"] == after["total"] > 0
    assert before["recent"] == after["recent"]


@pytest.mark.slow
def test_numbers_that_others_draw_from_the_global_generators_go_on(tmp_path):
    class Dice(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            drawn = {"torch": torch.rand(()).item(), "numpy": np.random.rand()}
            pl_module.log_scalars({f"dice/{name}": number for name, number in drawn.items()}, pl_module.iteration)

    def callbacks():
        return [Dice(), RunCheckpoint(last_every_n_iterations=1)]

    train(tmp_path / "whole", 6, callbacks=callbacks())
    train(tmp_path / "parts", 3, callbacks=callbacks())
    train(tmp_path / "parts", 6, last_of(tmp_path / "parts"), callbacks=callbacks())
    assert len(scalars(tmp_path / "whole")["dice/torch"]) == 6
    assert differences(tmp_path / "whole", tmp_path / "parts") == {}


@pytest.mark.slow
def test_another_seed_is_said_to_change_nothing(tmp_path, capsys):
    train(tmp_path / "whole", 6)
    train(tmp_path / "parts", 3)
    train(tmp_path / "parts", 6, last_of(tmp_path / "parts"), seed=7)
    assert "changed: seed_everything: 0 -> 7, without effect on the run's random numbers" in account(capsys)
    assert differences(tmp_path / "whole", tmp_path / "parts") == {}


@pytest.mark.slow
def test_a_path_with_detours_is_the_same_checkpoint(tmp_path, monkeypatch):
    train(tmp_path, 2)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    _, trainer = train(tmp_path, 3, "../lightning_logs/version_0/checkpoints/last.ckpt")
    assert Path(trainer.log_dir) == run_of(tmp_path)
    assert not (run_of(tmp_path) / "replaced" / "last.ckpt.1").exists()


def test_an_older_run_is_not_taken_where_the_newest_has_no_checkpoint(tmp_path):
    train(tmp_path, 2)
    run_of(tmp_path, version=1).mkdir()
    with pytest.raises(pl_rl.UsageError, match=r"the newest run, .*version_1, has no last\.ckpt"):
        train(tmp_path, 3, "last")


@pytest.mark.slow
def test_a_csv_log_without_a_point_yet_is_continued_in_its_directory(tmp_path):
    def go_on(until, ckpt_path=None):
        trainer = pl_rl.Trainer(
            accelerator="cpu", logger=CSVLogger(tmp_path), max_epochs=until, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[RunCheckpoint()], log_every_n_steps=1,
        )  # fmt: skip
        trainer.fit(pl_rl.PPO(**{**RUN, "eval_freq": 0}), ckpt_path=ckpt_path)
        return Path(trainer.log_dir)

    class Death(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            raise RuntimeError("killed")

    trainer = pl_rl.Trainer(
        accelerator="cpu", logger=CSVLogger(tmp_path), callbacks=[RunCheckpoint(), Death()], enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="killed"):
        trainer.fit(pl_rl.PPO(**{**RUN, "eval_freq": 0}))
    assert go_on(2, last_of(tmp_path)) == run_of(tmp_path)


@pytest.mark.slow
def test_a_network_made_by_a_function_is_not_guessed(tmp_path):
    made = {"network": lambda obs, act: pl_rl.MLPActorCritic(obs, act, activation="relu")}
    train(tmp_path, 2, **made)
    model, _ = train(tmp_path, 3, last_of(tmp_path), **made)
    assert model.iteration == 3
    with pytest.raises(pl_rl.UsageError, match="was made by a function that only its script knows"):
        pl_rl.PPO.load_from_checkpoint(last_of(tmp_path))
    restored = pl_rl.PPO.load_from_checkpoint(last_of(tmp_path), **made)
    assert torch.equal(restored.network.actor[0].weight, model.network.actor[0].weight)


def test_a_class_that_is_no_network_is_not_called(tmp_path):
    train(tmp_path, 1)
    checkpoint = torch.load(last_of(tmp_path), weights_only=True)
    checkpoint["hyper_parameters"]["network"] = {"class_path": "os.system", "init_args": {"command": "touch called"}}
    torch.save(checkpoint, tmp_path / "changed.ckpt")
    with pytest.raises(pl_rl.UsageError, match=r"names the class 'os\.system'"):
        pl_rl.PPO.load_from_checkpoint(tmp_path / "changed.ckpt")
    with pytest.raises(pl_rl.UsageError, match=r"'os\.system' is not a network"):
        pl_rl.PPO.load_from_checkpoint(tmp_path / "changed.ckpt", trust=["os.system"])


def test_early_stopping_in_the_first_epoch_is_remembered_too(tmp_path):
    def callbacks():
        early = EarlyStopping("evaluator/return_mean", mode="max", patience=1, stopping_threshold=0.0)
        return [early, RunCheckpoint(last_every_n_iterations=1)]

    model, _ = train(tmp_path, 50, callbacks=callbacks())
    resumed, _ = train(tmp_path, 50, last_of(tmp_path), callbacks=callbacks())
    assert model.iteration == resumed.iteration == 1


def test_an_interruption_leaves_trainer_and_process_as_they_were(tmp_path):
    class Failure(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            raise RuntimeError("out of luck")

    torch.set_num_threads(2)
    model = pl_rl.PPO(**RUN)
    trainer = pl_rl.Trainer(accelerator="cpu", callbacks=[Failure()], enable_progress_bar=False, logger=False)
    with pytest.raises(RuntimeError, match="out of luck"):
        trainer.fit(model)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert threads == 2
    assert trainer.limit_val_batches == 1.0
    assert trainer.validate(model, verbose=False)[0]["evaluator/length_mean"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("back", [0.5, 3600, 10**8])
def test_a_clock_that_was_set_back_leaves_the_log_in_order(tmp_path, monkeypatch, back):
    train(tmp_path / "whole", 6)
    train(tmp_path / "parts", 3)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - back)
    train(tmp_path / "parts", 5, last_of(tmp_path / "parts"))
    monkeypatch.setattr(time, "time", lambda: now() - 2 * back)
    train(tmp_path / "parts", 6, last_of(tmp_path / "parts"))
    assert differences(tmp_path / "whole", tmp_path / "parts") == {}
