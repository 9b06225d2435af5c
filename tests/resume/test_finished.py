"""A resume that has nothing to train reads and says why, and writes nothing."""

import hashlib
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

import pl_rl
from pl_rl import cli
from pl_rl.callbacks import RunCheckpoint, RunSummary
from tests.support import SMALL, counters_in, same_bits

RUN = Path("lightning_logs/version_0")
LAST = RUN / "checkpoints" / "last.ckpt"
LOGGERS = [
    {
        "class_path": f"lightning.pytorch.loggers.{name}",
        "init_args": {"save_dir": ".", "name": "lightning_logs", "version": "version_0"},
    }
    for name in ("TensorBoardLogger", "CSVLogger")
]
EARLY = {
    "class_path": "lightning.pytorch.callbacks.EarlyStopping",
    "init_args": {"monitor": "evaluator/return_mean", "mode": "max", "patience": 2, "min_delta": 1e9},
}


def listing(folder="."):
    """Everything in a folder: what a file is, holds and when it was written."""
    return {
        str(path): (path.stat().st_mtime_ns, path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(Path(folder).rglob("*"))
    }


def fit(*args):
    """The exit status."""
    try:
        cli.main(["fit", *map(str, args)])
    except SystemExit as end:
        return end.code or 0
    return 0


def begin(trainer=(), **model):
    settings = {**SMALL, "env": {"id": SMALL["env"]}, "eval_freq": 8, "eval_episodes": 1, "compile_update": False}
    config = {
        "model": {**settings, **model},
        "trainer": {"enable_progress_bar": False, "log_every_n_steps": 1, "logger": LOGGERS, **dict(trainer)},
    }
    Path("small.yaml").write_text(yaml.safe_dump(config))
    assert fit("--config", "small.yaml") == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "begun, resumed, words",
    [
        ({}, [], "as total_env_steps=512 reached; to go on, raise it, as with --model.total_env_steps 1024."),
        ({}, ["--model.total_env_steps", 100], "as total_env_steps=100 reached"),
        ({"stop_value": 5.0}, [], "as evaluation return 9 reached stop_value=5; to go on, raise it"),
        ({"trainer": {"callbacks": [EARLY]}}, [], "as EarlyStopping ended this run before; to go on, give it a larger"),
        ({"trainer": {"max_epochs": 2}}, [], "as max_epochs=2 reached; to go on, raise it, or add --trainer.max_epoch"),
        ({"trainer": {"max_epochs": 2}}, ["--trainer.max_epochs", -1, "--trainer.max_steps", 8], "as max_steps=8"),
        ({"trainer": {"max_epochs": 2}}, ["--trainer.max_epochs", 1], "as max_epochs=1 reached"),
        ({"trainer": {"max_epochs": 2}}, ["--branch", "--model.clip_coef", 0.1], "as max_epochs=2 reached"),
    ],
)  # fmt: skip
def test_nothing_is_written_and_the_reason_is_said(begun, resumed, words, capsys):
    begin(**begun)
    before = listing()
    capsys.readouterr()
    assert fit("--ckpt_path", "last", *resumed) == 0
    out = capsys.readouterr().out
    assert listing() == before
    assert f"Nothing is trained from {LAST} on, {words}" in out
    assert "│" not in out and "Continued" not in out


@pytest.mark.slow
def test_a_time_limit_that_leaves_no_time_asks_for_the_command_again(capsys):
    begin({"max_epochs": 2})
    before = listing()
    assert fit("--ckpt_path", "last", "--trainer.max_epochs", -1, "--trainer.max_time", "00:00:00:00") == 75
    assert listing() == before
    assert "as max_time leaves no time; to go on, give more of it, or leave it out." in capsys.readouterr().out


def trainer(root, *callbacks, logger=True, trainer_class=pl_rl.Trainer, **settings):
    return trainer_class(
        accelerator="cpu", default_root_dir=root, callbacks=list(callbacks), enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=1, logger=logger, **settings,
    )  # fmt: skip


def model(**settings):
    L.seed_everything(0, verbose=False)
    return pl_rl.PPO(**{**SMALL, "eval_freq": 8, "eval_episodes": 1, "compile_update": False, **settings})


@pytest.mark.slow
def test_a_script_goes_on_with_the_model_and_the_best_files(tmp_path, capsys):
    def callbacks():
        return [RunCheckpoint(), RunSummary(), ModelCheckpoint(monitor="evaluator/return_mean", mode="max")]

    def loggers():
        return [TensorBoardLogger(tmp_path), CSVLogger(tmp_path)]

    trained, before = model(), trainer(tmp_path, *callbacks(), logger=loggers())
    before.fit(trained)
    files = listing(tmp_path)
    capsys.readouterr()
    again, after = model(), trainer(tmp_path, *callbacks(), logger=loggers())
    after.fit(again, ckpt_path=tmp_path / LAST)
    assert listing(tmp_path) == files
    assert capsys.readouterr().out.count("\n") == 1
    assert same_bits(trained.state_dict(), again.state_dict())
    assert (again.env_steps, again.train_iter, again.iteration, again.run_seed) == (512, 32, 8, 0)
    assert again.stop_reason == trained.stop_reason == "total_env_steps=512 reached"
    for one, other in zip(before.checkpoint_callbacks, after.checkpoint_callbacks, strict=True):
        if hasattr(one, "best_model_path"):
            assert one.best_model_path and one.best_model_path == other.best_model_path
            assert one.best_model_score == other.best_model_score
    assert before.test(trained, verbose=False) == after.test(again, ckpt_path=None, verbose=False)


@pytest.mark.parametrize(
    "begun, limits, words",
    [
        ({}, {}, " --model.total_env_steps 1024"),
        ({"stop_value": 5.0}, {}, " --model.stop_value null"),
        ({}, {"max_epochs": 2}, " --trainer.max_epochs -1"),
        ({}, {"max_steps": 8}, " --trainer.max_steps -1"),
        ({}, {"max_epochs": 8}, " --model.total_env_steps 1024 --trainer.max_epochs -1"),
        ({}, {"early": True}, ""),
    ],
)
def test_the_printed_command_names_each_limit_that_was_reached(tmp_path, capsys, begun, limits, words):
    limits = dict(limits)
    callbacks = [early(patience=1)] if limits.pop("early", False) else []
    trainer(tmp_path, RunCheckpoint(), RunSummary(), *callbacks, **limits).fit(model(**begun))
    purpose = "go on, with a larger patience of EarlyStopping or without it: " if callbacks else "go on: "
    (command,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(purpose)]
    assert command.endswith(f"last.ckpt{words}")


def test_two_loggers_that_share_a_folder_miss_nothing_of_each_other(tmp_path, capsys):
    loggers = [kind(tmp_path, name="logs", version=0) for kind in (TensorBoardLogger, CSVLogger)]
    trainer(tmp_path, RunCheckpoint(last_every_n_iterations=1), logger=loggers, max_epochs=3).fit(model())
    assert "deleted or changed" not in capsys.readouterr().err
    logs = torch.load(tmp_path / "logs/version_0/checkpoints/last.ckpt", weights_only=True)["pl_rl_logs"]
    assert [log["lost"] for log in logs] == [[], []] and all(log["digests"] for log in logs)


@pytest.mark.slow
def test_the_same_objects_can_train_afterwards(tmp_path):
    trainer(tmp_path, RunCheckpoint()).fit(model())
    again, after = model(), trainer(tmp_path, RunCheckpoint())
    after.fit(again, ckpt_path="last")
    assert again.iteration == 8
    again.total_env_steps = 640
    after.fit(again, ckpt_path="last")
    assert again.iteration == 10 and counters_in(tmp_path / LAST)["iteration"] == 10


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_where_a_script_goes_on_writing_is_not_the_files_to_say(tmp_path):
    def keeper():
        return ModelCheckpoint(monitor="evaluator/return_mean", mode="max", save_top_k=1)

    trainer(tmp_path / "one", RunCheckpoint(), keeper()).fit(model())
    outside = tmp_path / "outside"
    outside.mkdir()
    named = [str(outside / f"{name}.ckpt") for name in ("kept", "last")]
    for path in named:
        Path(path).write_text("somebody's")
    checkpoint = torch.load(tmp_path / "one" / LAST, weights_only=True)
    (state,) = [state for key, state in checkpoint["callbacks"].items() if key.startswith("ModelCheckpoint")]
    state |= {"dirpath": str(outside), "best_k_models": {named[0]: torch.tensor(-1e9)}, "kth_best_model_path": named[0]}
    state |= {"kth_value": torch.tensor(-1e9), "last_model_path": named[1], "best_model_path": named[0]}
    torch.save(checkpoint, tmp_path / "one" / LAST)
    before = listing(outside)
    kept, again = keeper(), model()
    after = trainer(tmp_path / "two", RunCheckpoint(), kept)
    after.fit(again, ckpt_path=tmp_path / "one" / LAST)
    assert (kept.dirpath, kept.best_k_models, kept.best_model_path, kept.last_model_path) == (None, {}, "", "")
    again.total_env_steps = 640
    after.fit(again)
    assert listing(outside) == before
    assert kept.best_model_path and Path(kept.best_model_path).is_relative_to(tmp_path / "two")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Checkpoint directory")
@pytest.mark.parametrize("folder", [None, "elsewhere"])
def test_a_script_knows_the_files_of_a_run_wherever_it_keeps_them(tmp_path, folder):
    def keeper():
        dirpath = folder and tmp_path / folder
        return ModelCheckpoint(dirpath, monitor="evaluator/return_mean", mode="max", save_top_k=2, save_last=True)

    trainer(tmp_path, RunCheckpoint(), trained := keeper()).fit(model())
    trainer(tmp_path, RunCheckpoint(), again := keeper()).fit(model(), ckpt_path="last")
    for name in ("best_model_path", "best_k_models", "last_model_path", "best_model_score"):
        assert getattr(trained, name) and getattr(again, name) == getattr(trained, name)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["64-true"])
def test_weights_of_another_precision_are_not_rounded(tmp_path, precision):
    trainer(tmp_path, RunCheckpoint(), precision=precision).fit(trained := model())
    trainer(tmp_path, RunCheckpoint(), precision=precision).fit(again := model(), ckpt_path="last")
    assert again.network.actor[0].weight.dtype == torch.float64
    assert same_bits(trained.state_dict(), again.state_dict())


# --- settings of callbacks -------------------------------------------------------------------------------------------


def early(**settings):
    return EarlyStopping("evaluator/return_mean", mode="max", min_delta=1e9, **settings)


def accounts(capsys):
    return [line.strip() for line in capsys.readouterr().out.splitlines() if "changed:" in line]


@pytest.mark.slow
def test_a_larger_patience_takes_effect_is_listed_and_lets_the_run_go_on(tmp_path, capsys):
    """By a configuration file, as in the field."""
    begin({"callbacks": [EARLY]})
    ended = counters_in(LAST)["iteration"]
    assert ended < 8
    changed = yaml.safe_load(Path("small.yaml").read_text())
    changed["trainer"]["callbacks"][0]["init_args"]["patience"] = 200
    Path("more.yaml").write_text(yaml.safe_dump(changed))
    capsys.readouterr()
    assert fit("--config", "more.yaml", "--ckpt_path", "last") == 0
    assert accounts(capsys) == ["changed: EarlyStopping.patience: 2 -> 200"]
    assert counters_in(LAST)["env_steps"] == 512
    state = torch.load(LAST, weights_only=True)["callbacks"]
    (stopping,) = [state[key] for key in state if key.startswith("EarlyStopping")]
    assert stopping["patience"] == 200 and stopping["wait_count"] > 2
    assert fit("--ckpt_path", "last", "--model.total_env_steps", 640) == 0
    assert accounts(capsys) == ["changed: total_env_steps: 512 -> 640"]


@pytest.mark.slow
@pytest.mark.parametrize("patience, iteration", [(2, 3), (99, 8)])
def test_a_plain_trainer_heeds_it_too(tmp_path, capsys, patience, iteration):
    trainer(tmp_path, RunCheckpoint(), early(patience=2)).fit(model())
    plain = trainer(tmp_path, RunCheckpoint(), early(patience=patience), trainer_class=L.Trainer, max_epochs=-1)
    plain.fit(again := model(), ckpt_path=tmp_path / LAST)
    assert again.iteration == iteration
    assert accounts(capsys) == ([] if patience == 2 else ["changed: EarlyStopping.patience: 2 -> 99"])


class ResolvesInSetup(ModelCheckpoint):
    """Fills in what was left open, as many callbacks do."""

    def __init__(self, every=None):
        super().__init__(monitor="evaluator/return_mean", mode="max")
        self.every = every

    def setup(self, trainer, pl_module, stage):
        super().setup(trainer, pl_module, stage)
        self.every = self.every or 10


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_what_a_callback_fills_in_itself_is_no_change(tmp_path, capsys):
    for until, ckpt_path in [(2, None), (3, "last")]:
        trainer(tmp_path, RunCheckpoint(), ResolvesInSetup(), max_epochs=until).fit(model(), ckpt_path=ckpt_path)
    assert accounts(capsys) == []


def test_a_patience_that_is_still_too_small_leaves_the_run_ended(tmp_path, capsys):
    trainer(tmp_path, RunCheckpoint(), early(patience=3)).fit(model())
    before = listing(tmp_path)
    trainer(tmp_path, RunCheckpoint(), early(patience=1)).fit(model(), ckpt_path="last")
    assert listing(tmp_path) == before and "EarlyStopping ended this run before" in capsys.readouterr().out


@pytest.mark.slow
def test_a_threshold_that_is_raised_lets_the_run_go_on(tmp_path, capsys):
    trainer(tmp_path, RunCheckpoint(), early(patience=99, stopping_threshold=0.0)).fit(trained := model())
    trainer(tmp_path, RunCheckpoint(), early(patience=99, stopping_threshold=0.0)).fit(
        same := model(), ckpt_path="last"
    )
    raised = model()
    trainer(tmp_path, RunCheckpoint(), early(patience=99, stopping_threshold=1e6)).fit(raised, ckpt_path="last")
    assert (trained.iteration, same.iteration, raised.iteration) == (1, 1, 8)
    assert accounts(capsys) == ["changed: EarlyStopping.stopping_threshold: 0.0 -> 1000000.0"]


@pytest.mark.slow
def test_a_time_limit_is_not_taken_for_the_end_by_early_stopping(tmp_path):
    class Limit(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            trainer.should_stop = True  # as Timer does

    trainer(tmp_path, RunCheckpoint(), early(patience=99), Limit()).fit(model())
    trainer(tmp_path, RunCheckpoint(), early(patience=99)).fit(again := model(), ckpt_path="last")
    assert again.iteration == 8


class Evolving(L.Callback):
    """Halves its factor in each iteration, and keeps it where it likes."""

    def __init__(self, factor=1.0, note="", nested=False):
        self.factor, self.note, self.nested = factor, note, nested
        self.seen = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.seen.append(self.factor)
        self.factor /= 2

    def state_dict(self):
        state = {"factor": self.factor}
        return {"inner": state} if self.nested else state

    def load_state_dict(self, state):
        self.factor = state.get("inner", state)["factor"]


@pytest.mark.slow
@pytest.mark.parametrize("nested", [False, True])
def test_a_callback_keeps_what_it_has_become_unless_the_user_changed_it(tmp_path, capsys, nested):
    def go(until, **settings):
        callback = Evolving(**settings, nested=nested)
        ckpt_path = "last" if (tmp_path / LAST).exists() else None
        trainer(tmp_path, RunCheckpoint(), callback, max_epochs=until).fit(model(), ckpt_path=ckpt_path)
        return callback.seen

    assert go(2) == [1.0, 0.5]
    assert go(4) == [0.25, 0.125]
    assert accounts(capsys) == []
    assert go(5, factor=8.0, note="now") == [8.0]
    assert accounts(capsys) == ["changed: Evolving.factor: 1.0 -> 8.0", "changed: Evolving.note:  -> now"]
    assert go(7, factor=8.0, note="now") == [4.0, 2.0]
    assert accounts(capsys) == []


@pytest.mark.slow
def test_a_file_that_knows_no_settings_is_compared_by_its_states(tmp_path, capsys):
    trainer(tmp_path, RunCheckpoint(), early(patience=2)).fit(model())
    checkpoint = torch.load(tmp_path / LAST, weights_only=True)
    checkpoint["pl_rl"]["callback_settings"] = None
    torch.save(checkpoint, tmp_path / LAST)
    trainer(tmp_path, RunCheckpoint(), early(patience=99)).fit(again := model(), ckpt_path="last")
    assert accounts(capsys) == ["changed: EarlyStopping.patience: 2 -> 99"] and again.iteration == 8


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_the_model_and_a_moved_run_change_no_setting_of_a_callback(tmp_path, capsys):
    def callbacks():
        return [RunCheckpoint(), ModelCheckpoint(monitor="evaluator/return_mean", mode="max")]

    trainer(tmp_path / "one", *callbacks(), max_epochs=2).fit(model())
    (tmp_path / "one").rename(tmp_path / "other")
    trainer(tmp_path / "other", *callbacks(), max_epochs=3).fit(model(eval_freq=16), ckpt_path="last")
    assert accounts(capsys) == ["changed: eval_freq: 8 -> 16"]


# --- settings that the run changed -----------------------------------------------------------------------------------


class Set(L.Callback):
    """Changes settings once, and ends the process's part of the run."""

    def __init__(self, at, until, **settings):
        self.at, self.until, self.settings = at, until, settings

    def on_train_start(self, trainer, pl_module):
        self.on_train_epoch_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer, pl_module):
        if pl_module.iteration == self.at:
            for name, value in self.settings.items():
                setattr(pl_module, name, value)
        if pl_module.iteration == self.until:
            trainer.should_stop = True


@pytest.mark.slow
@pytest.mark.parametrize("auto_resume", [False, True])
@pytest.mark.parametrize(
    ("change", "given", "iterations"),
    [
        (Set(2, 10, total_env_steps=64 * 12), {}, 12),
        (Set(2, 4, total_env_steps=64 * 4), {}, 4),
        (Set(0, 4, stop_value=1000.0), {"stop_value": 5.0}, 8),
    ],
    ids=["longer", "shorter", "stop_value"],
)
def test_whether_a_run_is_over_is_told_by_the_settings_that_it_changed(
    tmp_path, capsys, change, given, iterations, auto_resume, monkeypatch
):
    monkeypatch.setattr(pl_rl.Trainer, "_ended", 0)
    trainer(tmp_path, RunCheckpoint(), change).fit(model(**given))
    monkeypatch.setattr(pl_rl.Trainer, "_ended", 0)  # as in a new process
    at = counters_in(tmp_path / LAST)["iteration"]
    how = {"auto_resume": True} if auto_resume else {"ckpt_path": "last"}
    trainer(tmp_path, RunCheckpoint()).fit(again := model(**given), **how)
    assert again.iteration == iterations
    assert at == (4 if change.until == 4 else 10)
    assert ("total_env_steps=256 reached" in capsys.readouterr().out) == (iterations == 4)


@pytest.mark.slow
def test_evaluations_that_a_callback_turned_off_are_not_made_up_for(tmp_path, capsys):
    trainer(tmp_path, RunCheckpoint(), Set(5, None, eval_freq=0)).fit(model())
    before = listing(tmp_path)
    trainer(tmp_path, RunCheckpoint()).fit(model(), ckpt_path="last")
    assert listing(tmp_path) == before and "Nothing is trained" in capsys.readouterr().out


@pytest.mark.slow
def test_a_length_that_the_user_gives_now_wins(tmp_path):
    trainer(tmp_path, RunCheckpoint(), Set(2, 4, total_env_steps=64 * 20)).fit(model())
    trainer(tmp_path, RunCheckpoint()).fit(again := model(total_env_steps=64 * 6), ckpt_path="last")
    assert again.iteration == 6
