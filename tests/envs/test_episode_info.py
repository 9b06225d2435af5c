"""What environments say of an episode when it ends: success, and whatever else the user names."""

import re

import numpy as np
import pytest
import torch

import pl_rl
from pl_rl import EnvConfig, MLPActorCritic
from pl_rl.algorithm.episodes import EpisodeStatistics
from pl_rl.algorithm.evaluation import Episodes
from pl_rl.algorithm.rollout import RolloutCollector
from pl_rl.callbacks import RunCheckpoint, RunSummary
from pl_rl.cli.tables import print_episodes, print_statistics
from pl_rl.envs import make_vector_env
from pl_rl.envs.episode_info import episode_info, info_statistics
from pl_rl.envs.native import SameStepCartPoleVectorEnv
from tests.support import MemoryLogger, fit, read_checkpoint, small_ppo

GOAL = "tests.environments:PlRlTest/Goal-v0"


@pytest.mark.parametrize(
    ("info", "keys", "told"),
    [
        ({"is_success": True, "distance": 2.0}, (), {"success": 1.0}),
        ({"success": np.array([0])}, (), {"success": 0.0}),
        ({"success": 0.0, "is_success": np.bool_(True)}, (), {"success": 1.0}),
        ({"success": 1.0, "is_success": None}, ("is_success",), {"success": 1.0}),
        ({"distance": np.float32(0.5), "other": 1}, ("distance", "nosuch"), {"distance": 0.5}),
        ({"distance": float("nan")}, ("distance",), {}),
        ({"success": "yes", "distance": [1, [2]]}, ("distance",), {}),
        (None, ("distance",), {}),
    ],
)
def test_numbers_are_taken_from_an_info(info, keys, told):
    assert episode_info(info, keys) == told


def test_means_are_over_the_episodes_that_tell():
    told = info_statistics([{"success": 1.0}, {}, {"success": 0.0, "distance": 3.0}])
    assert told == {"success_rate": 0.5, "distance_mean": 3.0}


def collector_of(env, num_steps=9):
    torch.manual_seed(0)
    network = MLPActorCritic(env.single_observation_space, env.single_action_space)
    collector = RolloutCollector(env, network, num_steps, torch.Generator().manual_seed(0))
    collector.reset(0)
    return collector


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("name", ["is_success", "success"])
def test_training_episodes_tell(vectorization, name):
    env = make_vector_env(EnvConfig(GOAL, vectorization, {"name": name}, info_keys=["ones"]), 2)
    collector = collector_of(env)
    actions = collector.collect().actions
    env.close()
    ones = [float(actions[first : first + 4, i].sum()) for first in (0, 4) for i in range(2)]
    told = [{"ones": count, "success": float(count >= 2)} for count in ones]
    assert list(collector.episodes.recent_info) == told
    assert len(set(ones)) > 1  # else the comparison says little


def test_native_environments_tell():
    class Telling(SameStepCartPoleVectorEnv):
        def step(self, action):
            *step, infos = super().step(action)
            if infos:
                infos["episode_info"] = {int(i): {"success": float(i)} for i in np.flatnonzero(infos["_final_obs"])}
            return *step, infos

    collector = collector_of(Telling(num_envs=2), num_steps=200)
    collector.collect()
    assert 0 < collector.episodes.scalars()["success_rate"] < 1


def test_success_is_logged_beside_the_return():
    logger = MemoryLogger()
    env = {"id": GOAL, "vectorization": "sync", "info_keys": ["ones"]}
    fit(small_ppo(env=EnvConfig(**env), total_env_steps=128, eval_freq=4), logger=logger)
    for name in ("rollout/success_rate", "evaluator_iter/success_rate", "evaluator_step/success_rate"):
        assert all(0 <= value <= 1 for value in logger.values(name)), name
    assert len(logger.values("rollout/ones_mean")) == len(logger.values("rollout/return_mean"))
    assert len(logger.values("evaluator_iter/ones_mean")) == len(logger.values("evaluator_iter/return_mean")) > 0


def test_a_name_that_no_episode_knows_is_said_once(caplog):
    with caplog.at_level("INFO"):
        env = EnvConfig(GOAL, "sync", info_keys=["ones", "onse", "success"])
        fit(small_ppo(env=env, total_env_steps=128, eval_freq=4))
    assert caplog.text.count("has a number 'onse' in its info") == 1
    assert caplog.text.count("in its info") == 1


def test_the_closing_table_has_the_success(capsys):
    fit(small_ppo(env=EnvConfig(GOAL, "sync"), total_env_steps=128, eval_freq=4), callbacks=[RunSummary()])
    assert re.search(r"success +│ \d+% of the latest evaluation's episodes", capsys.readouterr().out)


def test_episodes_that_tell_nothing_leave_nothing_in_a_checkpoint():
    statistics = EpisodeStatistics(1)
    statistics.add(np.ones(1), np.array([True]), {0: {}})
    assert statistics.state_dict().keys() == {"open_returns", "open_lengths", "recent", "total"}
    other = EpisodeStatistics(1)
    other.load_state_dict(statistics.state_dict())
    assert list(other.recent_info) == [{}]


def train(root, until, ckpt_path=None, **env):
    model = small_ppo(env=EnvConfig(GOAL, "sync", **env), eval_freq=8)
    callbacks = [RunCheckpoint(last_every_n_iterations=1)]
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl_rl.Trainer(accelerator="cpu", default_root_dir=root, max_epochs=until, callbacks=callbacks, **quiet)
    trainer.fit(model, ckpt_path=ckpt_path)
    return root / "lightning_logs/version_0/checkpoints/last.ckpt"


@pytest.mark.slow
def test_the_window_goes_on_in_a_resume(tmp_path, capsys):
    whole = read_checkpoint(train(tmp_path / "whole", 6, info_keys=["ones"]))
    train(tmp_path / "part", 3, info_keys=["ones"])
    last = tmp_path / "part/lightning_logs/version_0/checkpoints/last.ckpt"
    halfway = read_checkpoint(last)
    resumed = read_checkpoint(train(tmp_path / "part", 6, last, info_keys=["ones"]))
    assert "fidelity: exact" in capsys.readouterr().out
    episodes = [content["pl_rl"]["collector"]["episodes"]["info"] for content in (halfway, resumed, whole)]
    assert episodes[1] == episodes[2]
    assert len(episodes[0]) < len(episodes[1])
    assert episodes[1][: len(episodes[0])] == episodes[0]
    assert resumed["callbacks"]["PeriodicEvaluation"] == whole["callbacks"]["PeriodicEvaluation"]


@pytest.mark.slow
def test_a_checkpoint_from_before_goes_on(tmp_path, capsys):
    last = train(tmp_path / "old", 3)
    old = read_checkpoint(last)
    del old["hyper_parameters"]["env"]["info_keys"], old["pl_rl"]["collector"]["episodes"]["info"]
    torch.save(old, last)
    resumed = read_checkpoint(train(tmp_path / "old", 6, last))
    said = capsys.readouterr().out
    assert "fidelity: exact" in said
    assert "changed" not in said
    told = resumed["pl_rl"]["collector"]["episodes"]["info"]
    assert told[0] == {}
    assert told[-1].keys() == {"success"}


def test_a_window_of_another_length_is_refused(tmp_path):
    last = train(tmp_path / "run", 2)
    content = read_checkpoint(last)
    content["pl_rl"]["collector"]["episodes"]["info"].pop()
    torch.save(content, last)
    with pytest.raises(pl_rl.UsageError, match=r"episodes\.info"):
        train(tmp_path / "run", 3, last)


def test_tables_have_a_column_for_success(capsys):
    print_episodes(Episodes([1.0, 2.0], [3, 4], [{"success": 1.0}, {"success": 0.0, "[distance]": 0.25}]))
    statistics = Episodes([1.0, 2.0], [3, 4], [{"success": 1.0}, {"success": 0.0}]).statistics()
    print_statistics({f"test/{name}": value for name, value in statistics.items()}, 2)
    by_episode, in_common = capsys.readouterr().out.split("2 episodes")
    assert "success" in by_episode
    assert "[distance]" in by_episode
    assert "0.25" in by_episode
    assert "success" in in_common
    assert "0.5" in in_common
