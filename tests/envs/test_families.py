"""MuJoCo, Box2D, Atari and MiniGrid: what is saved is the very state, over anchors, lives and sticky actions."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from pl_rl import EnvConfig
from pl_rl.envs import make_env, make_vector_env, restore_envs, save_envs, wrapper_state
from pl_rl.envs.replay import ReplayEnv
from tests.envs.test_replay import open_returns_of, same, walk

CONFIGS = Path(__file__).parents[2] / "configs"


def shipped(name, vectorization, **kwargs):
    stated = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["model"]["env"]
    return EnvConfig(**{**stated, "vectorization": vectorization, "kwargs": {**stated.get("kwargs", {}), **kwargs}})


def restores(config, steps, further=60, num_envs=2):
    """Whether environments that made so many random steps come back, and go on as they would have."""
    env = make_vector_env(config, num_envs, training=True)
    obs, _ = env.reset(seed=5)
    seen = walk(env, obs, steps, np.random.default_rng(0))
    obs = seen[-1][0]
    saved = save_envs(env)
    expected = walk(env, obs, further, np.random.default_rng(1))
    env.close()
    other = make_vector_env(config, num_envs, training=True)
    other.reset(seed=99)
    failure = restore_envs(other, saved, obs, open_returns_of(seen, num_envs))
    as_expected = failure is None and same(walk(other, obs, further, np.random.default_rng(1)), expected)
    other.close()
    return as_expected, [replay["anchors"] for replay in saved["state"]]


@pytest.mark.slow
@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5"])
def test_mujoco(env_id, vectorization):
    for steps in (30, 400):
        assert restores(EnvConfig(env_id, vectorization, {"max_episode_steps": 100}), steps)[0]


@pytest.mark.slow
@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("name", ["lunarlander", "minigrid"])
def test_a_shipped_config(name, vectorization):
    for steps in (30, 700):
        assert restores(shipped(name, vectorization), steps)[0]


@pytest.mark.slow
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_bipedalwalker_over_several_anchors(vectorization):
    for steps in (100, 500, 1200):
        exact, anchors = restores(shipped("bipedalwalker", vectorization, max_episode_steps=80), steps, num_envs=4)
        assert exact
    assert min(anchors) >= 2


@pytest.mark.slow
def test_bipedalwalker_is_not_exact_without_a_new_object(monkeypatch):
    monkeypatch.setattr(wrapper_state, "REMADE_AT_ANCHORS", set())
    assert not restores(shipped("bipedalwalker", "sync"), 1200, num_envs=4)[0]


@pytest.mark.slow
@pytest.mark.parametrize("vectorization", ["sync", "async", "native"])
def test_atari_over_anchors_lives_and_games(vectorization):
    for steps in (40, 600):
        exact, anchors = restores(shipped("breakout", vectorization), steps)
        assert exact
    assert min(anchors) >= 1


@pytest.mark.slow
def test_a_life_ends_an_episode_and_the_game_goes_on():
    env, game = make_env(shipped("breakout", "sync"), training=True), make_env(shipped("breakout", "sync"))
    env.reset(seed=3), game.reset(seed=3)
    rng, lives, ended = np.random.default_rng(0), [5], 0
    for _ in range(600):
        action = int(rng.integers(4))
        obs, _, terminated, _, _ = env.step(action)
        expected, _, over, _, _ = game.step(action)
        assert np.array_equal(obs, expected)
        lives.append(env.unwrapped.ale.lives())
        assert terminated == (lives[-1] < lives[-2])
        if terminated:
            ended += 1
            obs, _ = env.reset()
            # A new life begins by a step that does nothing, a new game by a reset.
            expected = game.reset()[0] if over else game.step(0)[0]
            assert np.array_equal(obs, expected)
            assert env.unwrapped.ale.lives() == (5 if over else lives[-1])
            lives.append(env.unwrapped.ale.lives())
    assert ended > 5


def test_episodes_of_one_life_and_clipped_rewards_are_for_training_alone():
    for training in (True, False):
        wrappers = str(make_env(shipped("breakout", "sync"), training))
        assert ("EpisodicLife" in wrappers, "ClipReward" in wrappers) == (training, training)


@pytest.mark.slow
def test_a_game_is_not_cut_for_an_anchor():
    env = ReplayEnv(lambda: make_env(shipped("breakout", "sync"), training=True))
    env.reset(seed=3)
    rng, lives, previous = np.random.default_rng(0), 5, 0
    for _ in range(900):
        *_, terminated, truncated, _ = env.step(int(rng.integers(4)))
        lives = env.unwrapped.ale.lives()
        if terminated or truncated:
            env.reset()
            anchors = env.replay["window"]["anchors"]
            assert anchors == previous or lives == 0
            previous = anchors
    assert previous >= 2


@pytest.mark.slow
def test_actions_stick():
    """With a quarter's probability an action of the game is the one before, whatever is asked for."""

    def frames(probability):
        config = EnvConfig(
            "ALE/Pong-v5", imports=["ale_py"], kwargs={"frameskip": 1, "repeat_action_probability": probability}
        )
        env = make_env(config)
        env.reset(seed=1)
        return [env.step(2 + t % 2)[0] for t in range(40)]

    assert make_env(shipped("pong", "sync")).spec.kwargs.get("repeat_action_probability", 0.25) == 0.25
    assert not all(np.array_equal(one, other) for one, other in zip(frames(0.25), frames(0.0), strict=True))
