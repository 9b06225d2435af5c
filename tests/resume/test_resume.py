"""A run that was stopped goes on as if it had not been; all comparisons are at zero tolerance."""

import shutil
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

import pl_rl
import tests.environments
import tests.uncertain_environments  # noqa: F401  (registers environments)
from pl_rl.callbacks import ResumeState, RunCheckpoint
from pl_rl.tools.verification import compare_runs, read_scalars
from tests.support import SMALL, event_scalars


@pytest.fixture(autouse=True, params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"])
def _updates(request, monkeypatch):
    """Every promise of this module holds for compiled updates too."""
    monkeypatch.setitem(RUN, "compile_update", request.param)


RUN = {**SMALL, "total_env_steps": 64 * 100, "eval_freq": 8, "eval_episodes": 2, "eval_num_envs": 2}


def train(
    root,
    until,
    ckpt_path=None,
    seed=0,
    trainer_class=pl_rl.Trainer,
    branch=False,
    callbacks=None,
    auto_resume=False,
    **settings,
):
    """Train in new objects, as a new process would; the model and the trainer."""
    L.seed_everything(seed, verbose=False)
    model = pl_rl.PPO(**{**RUN, **settings})
    trainer = trainer_class(
        accelerator="cpu",
        default_root_dir=root,
        max_epochs=until,
        callbacks=[RunCheckpoint(last_every_n_iterations=1)] if callbacks is None else callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    options = {"branch": branch, "auto_resume": auto_resume}
    trainer.fit(model, ckpt_path=ckpt_path, **{name: value for name, value in options.items() if value})
    return model, trainer


def run_of(root, version=0):
    return Path(root, "lightning_logs", f"version_{version}")


def last_of(root, version=0):
    return run_of(root, version) / "checkpoints" / "last.ckpt"


def account(capsys):
    """What a resume said of itself, by the words before the colon."""
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    return [
        line for line in lines if line.partition(":")[0] in ("fidelity", "not exact", "changed", "at", "checkpoint")
    ]


def differences(one, other):
    return {name: text for name, text in compare_runs(run_of(one), run_of(other)).items() if text is not None}


def warm_up(progress):
    return min(1.0, 2 * progress)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"env": pl_rl.EnvConfig("CartPole-v1", "native")},
        {"env": pl_rl.EnvConfig("CartPole-v1", "sync")},
        {"env": pl_rl.EnvConfig("CartPole-v1", "async")},
        {"env": "Acrobot-v1"},
        {"env": "Pendulum-v1"},
        {"env": "PlRlTest/NoisyWalk-v0"},
        {"env": "PlRlTest/ClipsInPlace-v0"},
        {
            **{"env": "CartPole-v1", "anneal_lr": True, "anneal_clip": True, "clip_vloss": True, "vf_clip_coef": 0.4},
            **{"final_learning_rate": 1e-4, "anneal_env_steps": 64 * 12, "adam_eps": 1e-7},
        },
        {"env": "CartPole-v1", "anneal_lr": "cosine", "anneal_clip": warm_up, "anneal_ent": "linear", "ent_coef": 0.01},
        {"env": "Pendulum-v1", "recompute_adv": True, "norm_value": True, "norm_obs": True},
        {"env": "PlRlTest/Pictures-v0", "network": pl_rl.CNNActorCritic, "eval_freq": 0},
        {"env": "CartPole-v1", "target_kl": 0.001, "eval_deterministic": False},
        {
            "env": "Pendulum-v1",
            "network": partial(pl_rl.MLPActorCritic, distribution="state_dependent_gaussian"),
            "eval_deterministic": False,
        },
        {
            "env": "Pendulum-v1",
            "network": partial(pl_rl.MLPActorCritic, distribution="squashed_gaussian"),
            "eval_deterministic": False,
        },
        {
            "env": "Pendulum-v1",
            "network": partial(pl_rl.MLPActorCritic, distribution="beta"),
            "eval_deterministic": False,
        },
        {
            "env": "Pendulum-v1",
            "network": partial(pl_rl.MLPActorCritic, distribution="gsde", sde_sample_freq=3),
            "eval_deterministic": False,
        },
        {"env": "FrozenLake-v1"},
        {"env": pl_rl.EnvConfig("PlRlTest/Echo-v0", "async", {"kind": "multi_discrete"})},
        {"env": pl_rl.EnvConfig("PlRlTest/Echo-v0", "sync", {"kind": "multi_binary"})},
    ],
    # Functions by name: ids must be the same in each process of the tests.
    ids=lambda settings: "-".join(getattr(value, "__name__", str(value)) for value in settings.values()),
)
def test_a_run_that_is_stopped_several_times_is_the_same_run(tmp_path, settings, capsys):
    settings = {"eval_freq": 16, **settings}
    train(tmp_path / "whole", 12, **settings)
    train(tmp_path / "parts", 3, **settings)
    for until in (4, 9, 12):
        train(tmp_path / "parts", until, last_of(tmp_path / "parts"), **settings)
        assert account(capsys)[-1] == "fidelity: exact"
    assert differences(tmp_path / "whole", tmp_path / "parts") == {}
    assert not run_of(tmp_path / "parts", version=1).exists()


@pytest.mark.parametrize("stop", range(1, 6))
def test_a_run_can_be_stopped_at_any_iteration(tmp_path, stop):
    train(tmp_path / "whole", 6)
    train(tmp_path / "parts", stop)
    train(tmp_path / "parts", 6, last_of(tmp_path / "parts"))
    assert differences(tmp_path / "whole", tmp_path / "parts") == {}


@pytest.mark.slow
def test_replays_stay_exact_across_new_anchors(tmp_path, monkeypatch):
    monkeypatch.setattr("pl_rl.envs.replay.FIRST_ANCHOR_STEPS", 5)
    train(tmp_path / "whole", 12, env="PlRlTest/NoisyWalk-v0")
    train(tmp_path / "parts", 7, env="PlRlTest/NoisyWalk-v0")
    train(tmp_path / "parts", 12, last_of(tmp_path / "parts"), env="PlRlTest/NoisyWalk-v0")
    assert differences(tmp_path / "whole", tmp_path / "parts") == {}


@pytest.mark.slow
def test_a_run_can_be_moved_to_another_folder(tmp_path):
    train(tmp_path / "whole", 8)
    train(tmp_path / "before", 4)
    shutil.move(tmp_path / "before", tmp_path / "after")
    train(tmp_path / "after", 8, last_of(tmp_path / "after"))
    assert differences(tmp_path / "whole", tmp_path / "after") == {}


@pytest.mark.slow
def test_a_plain_lightning_trainer_continues_exactly_too(tmp_path):
    whole, _ = train(tmp_path / "whole", 6)
    train(tmp_path / "parts", 3)
    resumed, _ = train(tmp_path / "parts", 6, last_of(tmp_path / "parts"), trainer_class=L.Trainer)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert run_of(tmp_path / "parts", version=1).exists()


@pytest.mark.slow
def test_last_means_the_newest_run(tmp_path):
    train(tmp_path, 2)
    train(tmp_path, 3)
    model, trainer = train(tmp_path, 5, "last")
    assert model.iteration == 5
    assert Path(trainer.log_dir) == run_of(tmp_path, version=1)


# --- what died after the checkpoint ---------------------------------------------------------------------------------


def lose_iterations(root, until, checkpoint_at):
    """A run of which a kill after ``until`` left the checkpoint of an earlier iteration."""
    kept = root / "kept.ckpt"
    train(root, checkpoint_at)
    shutil.copy(last_of(root), kept)
    train(root, until, last_of(root))
    shutil.move(kept, last_of(root))


@pytest.mark.slow
def test_points_of_the_run_that_died_are_gone_on_both_axes(tmp_path):
    train(tmp_path / "whole", 9)
    lose_iterations(tmp_path / "parts", until=7, checkpoint_at=4)
    train(tmp_path / "parts", 9, last_of(tmp_path / "parts"))
    whole, parts = event_scalars(run_of(tmp_path / "whole")), event_scalars(run_of(tmp_path / "parts"))
    assert {tag: [step for step, _ in points] for tag, points in whole.items()} == {
        tag: [step for step, _ in points] for tag, points in parts.items()
    }
    assert differences(tmp_path / "whole", tmp_path / "parts") == {}


@pytest.mark.slow
def test_what_is_cut_off_is_kept_where_no_reader_finds_it(tmp_path):
    lose_iterations(tmp_path, until=7, checkpoint_at=4)
    train(tmp_path, 8, last_of(tmp_path))
    kept = list((run_of(tmp_path) / "replaced").iterdir())
    assert kept and all("tfevents" not in path.name and path.stat().st_size > 0 for path in kept)


@pytest.mark.slow
@pytest.mark.parametrize("both", [False, True])
def test_csv_logs_survive(tmp_path, both):
    def go_on(root, until, ckpt_path=None):
        L.seed_everything(0, verbose=False)
        loggers = [CSVLogger(root), TensorBoardLogger(root)] if both else [CSVLogger(root)]
        trainer = pl_rl.Trainer(
            accelerator="cpu", logger=loggers, max_epochs=until, log_every_n_steps=1, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[RunCheckpoint(last_every_n_iterations=1)],
        )  # fmt: skip
        trainer.fit(pl_rl.PPO(**RUN), ckpt_path=ckpt_path)

    def rows(root):
        lines = (run_of(root) / "metrics.csv").read_text().splitlines()
        names = lines[0].split(",")
        points = [dict(zip(names, line.split(","), strict=True)) for line in lines[1:]]
        return [{name: value for name, value in point.items() if not name.startswith("time/")} for point in points]

    go_on(tmp_path / "whole", 8)
    go_on(tmp_path / "parts", 3)
    shutil.copy(last_of(tmp_path / "parts"), tmp_path / "kept.ckpt")
    go_on(tmp_path / "parts", 6, last_of(tmp_path / "parts"))
    shutil.copy(tmp_path / "kept.ckpt", last_of(tmp_path / "parts"))
    go_on(tmp_path / "parts", 8, last_of(tmp_path / "parts"))
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    events = [read_scalars(run_of(tmp_path / root)) for root in ("whole", "parts")] if both else [1, 1]
    assert events[0] == events[1]
    assert not run_of(tmp_path / "parts", version=1).exists()


def test_hyperparameters_are_logged_once(tmp_path):
    train(tmp_path, 3)
    before = (run_of(tmp_path) / "hparams.yaml").read_text()
    train(tmp_path, 5, last_of(tmp_path))
    assert (run_of(tmp_path) / "hparams.yaml").read_text() == before
    steps = [step for step, _ in event_scalars(run_of(tmp_path))["hp_metric"]]
    assert steps.count(0) == 2  # Lightning's placeholder, and the evaluation of the untrained policy


@pytest.mark.slow
def test_the_best_score_and_file_outlive_a_resume(tmp_path):
    _, before = train(tmp_path, 6)
    best = before.checkpoint_callback.best_model_score
    _, after = train(tmp_path, 7, last_of(tmp_path), eval_freq=0)
    assert after.checkpoint_callback.best_model_score == best
    assert Path(after.checkpoint_callback.best_model_path) == run_of(tmp_path) / "checkpoints" / "best.ckpt"


@pytest.mark.slow
def test_a_resume_says_that_the_best_file_is_gone(tmp_path, capsys):
    _, before = train(tmp_path, 6)
    (run_of(tmp_path) / "checkpoints" / "best.ckpt").unlink()
    train(tmp_path, 7, last_of(tmp_path), eval_freq=0)
    out = capsys.readouterr().out
    score = before.checkpoint_callback.best_model_score
    assert f"so the one of {score:g} is forgotten" in out.partition("not exact: best checkpoint: ")[2]
    assert "fidelity: exact" not in out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_lightnings_model_checkpoint_keeps_its_score_and_files(tmp_path, monkeypatch):
    def callbacks():
        return [ModelCheckpoint(monitor="evaluator/return_mean", mode="max", save_top_k=2, save_last=True)]

    _, before = train(tmp_path, 6, callbacks=callbacks())
    monkeypatch.chdir(tmp_path)
    relative = "lightning_logs/version_0/checkpoints/last.ckpt"
    _, after = train(tmp_path, 12, relative, callbacks=callbacks())
    best, kept = before.checkpoint_callback.best_model_score, set(before.checkpoint_callback.best_k_models)
    assert after.checkpoint_callback.best_model_score >= best
    assert kept & set(after.checkpoint_callback.best_k_models) or after.checkpoint_callback.best_model_score > best
    assert not list(run_of(tmp_path).rglob("last-v1.ckpt"))


# --- modes -----------------------------------------------------------------------------------------------------------


def test_a_finished_run_trains_no_further(tmp_path):
    model, _ = train(tmp_path, -1, total_env_steps=64 * 4)
    resumed, _ = train(tmp_path, -1, last_of(tmp_path), total_env_steps=64 * 4)
    assert resumed.iteration == model.iteration == 4
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))


@pytest.mark.slow
def test_a_run_that_reached_its_stop_value_stays_stopped_until_it_is_raised(tmp_path):
    train(tmp_path, -1, stop_value=5.0)  # an untrained policy lasts longer, and the second iteration is evaluated
    same, _ = train(tmp_path, 5, last_of(tmp_path), stop_value=5.0)
    raised, _ = train(tmp_path, 5, last_of(tmp_path), stop_value=None)
    assert (same.iteration, raised.iteration) == (2, 5)


@pytest.mark.slow
def test_an_extended_run_is_the_longer_run_where_nothing_anneals(tmp_path):
    train(tmp_path / "whole", -1, total_env_steps=64 * 8)
    train(tmp_path / "parts", -1, total_env_steps=64 * 5)
    train(tmp_path / "parts", -1, last_of(tmp_path / "parts"), total_env_steps=64 * 8)
    assert differences(tmp_path / "whole", tmp_path / "parts") == {}


@pytest.mark.slow
def test_annealing_follows_the_new_horizon_of_an_extended_run(tmp_path, capsys):
    train(tmp_path, -1, total_env_steps=64 * 4, anneal_lr=True, learning_rate=0.01)
    train(tmp_path, -1, last_of(tmp_path), total_env_steps=64 * 8, anneal_lr=True, learning_rate=0.01)
    rates = dict(event_scalars(run_of(tmp_path))["schedule/learning_rate"])
    # Iteration k of K runs at 1 - (k - 1)/K: the fourth of four at 1/4; the fifth of eight, the first resumed, at 1/2.
    assert rates[64 * 4] == pytest.approx(0.01 / 4)
    assert rates[64 * 5] == pytest.approx(0.01 / 2)
    out = capsys.readouterr().out
    assert "changed: total_env_steps: 256 -> 512" in out
    assert "annealing goes on towards 512 env steps" in out


@pytest.mark.slow
def test_an_extended_run_keeps_a_schedule_that_has_a_length_of_its_own(tmp_path, capsys):
    schedule = {"anneal_lr": True, "anneal_env_steps": 64 * 12, "final_learning_rate": 1e-5}
    train(tmp_path / "whole", -1, total_env_steps=64 * 8, **schedule)
    train(tmp_path / "parts", -1, total_env_steps=64 * 4, **schedule)
    train(tmp_path / "parts", -1, last_of(tmp_path / "parts"), total_env_steps=64 * 8, **schedule)
    assert "annealing goes on" not in capsys.readouterr().out
    assert differences(tmp_path / "whole", tmp_path / "parts") == {}


@pytest.mark.slow
def test_a_branch_is_a_run_of_its_own_from_the_same_state(tmp_path, capsys):
    train(tmp_path, 4)
    parent = torch.load(last_of(tmp_path), weights_only=True)
    files = {path: path.read_bytes() for path in run_of(tmp_path).rglob("*") if path.is_file()}
    train(tmp_path, 8, last_of(tmp_path), branch=True)
    assert files == {path: path.read_bytes() for path in run_of(tmp_path).rglob("*") if path.is_file()}
    branch = torch.load(last_of(tmp_path, version=1), weights_only=True)
    assert branch["pl_rl"]["parent"]["checkpoint"] == str(last_of(tmp_path))
    assert branch["pl_rl"]["parent"]["train_iter"] == parent["pl_rl"]["counters"]["train_iter"] == 16
    assert "Branched into" in capsys.readouterr().out
    continued, _ = train(tmp_path, 8, last_of(tmp_path))
    same_stream = zip(continued.parameters(), branch["state_dict"].values(), strict=True)
    assert not all(torch.equal(a, b) for a, b in same_stream)


@pytest.mark.slow
def test_branches_with_other_seeds_are_other_runs_and_a_branch_resumes_exactly(tmp_path):
    for root in ("one", "two"):
        train(tmp_path / root, 4)
        train(tmp_path / root, 8, last_of(tmp_path / root), branch=True, seed=1)
    train(tmp_path / "three", 4)
    train(tmp_path / "three", 8, last_of(tmp_path / "three"), branch=True, seed=2)
    train(tmp_path / "four", 4)
    train(tmp_path / "four", 6, last_of(tmp_path / "four"), branch=True, seed=1)
    train(tmp_path / "four", 8, last_of(tmp_path / "four", version=1))
    weights = [
        torch.load(last_of(tmp_path / root, version=1), weights_only=True)["state_dict"]
        for root in ("one", "two", "three", "four")
    ]
    name = "network.actor.0.weight"
    assert torch.equal(weights[0][name], weights[1][name])
    assert not torch.equal(weights[0][name], weights[2][name])
    assert torch.equal(weights[0][name], weights[3][name])


# --- nothing silent --------------------------------------------------------------------------------------------------


def test_a_resume_says_from_what_where_and_how_exactly(tmp_path, capsys):
    train(tmp_path, 4)
    capsys.readouterr()
    train(tmp_path, 5, last_of(tmp_path), clip_coef=0.1, ent_coef=0.5)
    assert account(capsys) == [
        "checkpoint: lightning_logs/version_0/checkpoints/last.ckpt",
        "at: iteration 4, train_iter 16, env_steps 256",
        "changed: clip_coef: 0.2 -> 0.1",
        "changed: ent_coef: 0.0 -> 0.5",
        "fidelity: exact",
    ]


def test_a_changed_epsilon_of_adam_beats_the_optimizers_saved_one(tmp_path):
    train(tmp_path, 3)
    _, trainer = train(tmp_path, 4, last_of(tmp_path))
    assert trainer.optimizers[0].param_groups[0]["eps"] == 1e-5
    _, trainer = train(tmp_path, 5, last_of(tmp_path), adam_eps=1e-7)
    assert trainer.optimizers[0].param_groups[0]["eps"] == 1e-7
    _, trainer = train(tmp_path, 6, last_of(tmp_path), adam_eps=1e-7)
    assert trainer.optimizers[0].param_groups[0]["eps"] == 1e-7


def test_a_changed_learning_rate_beats_the_optimizers_saved_one(tmp_path):
    train(tmp_path, 3, learning_rate=0.01)
    model, _ = train(tmp_path, 4, last_of(tmp_path), learning_rate=0.002)
    assert model.learning_rate == 0.002
    assert dict(event_scalars(run_of(tmp_path))["schedule/learning_rate"])[64 * 4] == pytest.approx(0.002)


@pytest.mark.slow
@pytest.mark.parametrize("env", [f"PlRlTest/{name}-v0" for name in ("GloballyRandom", "Hoarder", "NoisyReward")])
def test_environments_that_break_the_rules_are_restarted_and_named(tmp_path, env, capsys, monkeypatch):
    monkeypatch.setattr("pl_rl.envs.replay.FIRST_ANCHOR_STEPS", 5)
    train(tmp_path, 4, env=env)
    capsys.readouterr()
    model, _ = train(tmp_path, 6, last_of(tmp_path), env=env)
    assert account(capsys)[-1].startswith("not exact: environments: restarted, as a replay of environment ")
    assert model.iteration == 6


@pytest.mark.slow
def test_restarted_environments_do_not_repeat_the_first_episodes(tmp_path):
    first_obs = []

    class Notes(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            first_obs.append(batch.obs[0])

    train(tmp_path, 1, callbacks=[Notes(), RunCheckpoint()])
    stateless = torch.load(last_of(tmp_path), weights_only=True)
    stateless["pl_rl"]["collector"]["environments"] = None
    torch.save(stateless, tmp_path / "stateless.ckpt")
    for _ in range(2):
        train(tmp_path, 2, tmp_path / "stateless.ckpt", callbacks=[Notes(), RunCheckpoint()])
    beginning, restarted, again = first_obs
    assert not torch.equal(beginning, restarted)
    assert torch.equal(restarted, again)


def test_another_network_is_refused_and_the_log_left_alone(tmp_path):
    train(tmp_path, 4)
    files = {path: path.read_bytes() for path in run_of(tmp_path).rglob("*") if path.is_file()}
    with pytest.raises(pl_rl.UsageError, match=r"is 6 in the checkpoint|4 in the checkpoint|64x4 in the checkpoint"):
        train(tmp_path, 5, last_of(tmp_path), env="Acrobot-v1")
    assert files == {path: path.read_bytes() for path in run_of(tmp_path).rglob("*") if path.is_file()}


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    torch.save({"a": 1}, tmp_path / "foreign.ckpt")
    with pytest.raises(pl_rl.UsageError, match="is no checkpoint, or a damaged one"):
        train(tmp_path, 1, tmp_path / "text.ckpt")
    with pytest.raises(pl_rl.UsageError, match="is not a checkpoint of pl_rl"):
        train(tmp_path, 1, tmp_path / "foreign.ckpt")
    with pytest.raises(pl_rl.UsageError, match="does not exist"):
        train(tmp_path, 1, tmp_path / "absent.ckpt")


# --- statistics and counters across the seam -------------------------------------------------------------------------


def test_counters_and_statistics_go_on(tmp_path):
    train(tmp_path, 4)
    model, trainer = train(tmp_path, 5, last_of(tmp_path))
    assert (model.iteration, model.env_steps, model.train_iter) == (5, 320, 20)
    assert trainer.global_step == 20
    state = torch.load(last_of(tmp_path), weights_only=True)["pl_rl"]
    assert state["collector"]["episodes"]["total"] > 4
    assert state["counters"]["elapsed_seconds"] > 0


@pytest.mark.slow
def test_a_checkpoint_saved_by_hand_after_training_resumes_exactly(tmp_path):
    whole, _ = train(tmp_path / "whole", 6)
    _, trainer = train(tmp_path / "parts", 3)
    trainer.save_checkpoint(tmp_path / "mine.ckpt", weights_only=False)
    resumed, _ = train(tmp_path / "parts", 6, tmp_path / "mine.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_checkpoint_from_within_an_iteration_is_said_not_to_be_exact(tmp_path, capsys):
    class Impatient(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if pl_module.iteration == 2:
                trainer.save_checkpoint(tmp_path / "early.ckpt", weights_only=False)

    train(tmp_path, 4, callbacks=[Impatient(), RunCheckpoint()])
    capsys.readouterr()
    model, _ = train(tmp_path, 4, tmp_path / "early.ckpt")
    assert "not exact: the checkpoint was saved in the middle of an iteration, whose rest is lost" in account(capsys)
    assert model.iteration == 4


def test_steps_beyond_the_precision_of_floats_are_logged_whole(tmp_path):
    model, trainer = train(tmp_path, 0)
    model.log_scalars({"huge": 1.0}, step=2**24 + 1)
    trainer.logger.experiment.flush()
    assert event_scalars(run_of(tmp_path))["huge"] == [(2**24 + 1, 1.0)]


def test_the_state_is_added_by_a_callback_that_comes_with_the_model(tmp_path):
    _, trainer = train(tmp_path, 1, callbacks=[])
    assert any(isinstance(callback, ResumeState) for callback in trainer.callbacks)
    assert read_scalars(run_of(tmp_path))


@pytest.mark.slow
def test_a_resumed_run_makes_its_updates_as_before(tmp_path, capsys, monkeypatch):
    """Though a rule would now decide otherwise, as the run got longer or shorter."""
    eager = RUN["compile_update"] is False
    monkeypatch.setitem(RUN, "compile_update", None)
    long, short = 10**6, RUN["total_env_steps"]
    train(tmp_path, 2, total_env_steps=short if eager else long)
    capsys.readouterr()
    train(tmp_path, 3, last_of(tmp_path), total_env_steps=long if eager else short)
    assert account(capsys)[-1] == "fidelity: exact"
    train(tmp_path, 4, last_of(tmp_path), compile_update=eager)
    *changed, lost = account(capsys)
    assert f"changed: compile_update: None -> {eager}" in changed
    assert lost.startswith("not exact: updates: ") and lost.endswith("which may round differently")
