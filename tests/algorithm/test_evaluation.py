"""Playing whole episodes: which are counted, and that nothing else is touched."""

import gc
import os
import random
import subprocess
import sys
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch

import tests.faulty_environments  # noqa: F401  (registers environments)
from pl_rl import EnvConfig, MLPActorCritic, RunFailure, UsageError
from pl_rl.algorithm.drawing import record, watch
from pl_rl.algorithm.evaluation import Episodes, evaluate, format_return
from pl_rl.envs import make_env


def policy_for(config):
    torch.manual_seed(0)
    env = make_env(config)
    return MLPActorCritic(env.observation_space, env.action_space)


def play(env_id, num_envs, num_episodes, seed=0, deterministic=True, vectorization="auto", **kwargs):
    config = EnvConfig(env_id, vectorization, kwargs)
    return evaluate(policy_for(config), config, num_envs, num_episodes, seed, deterministic)


def test_returns_and_lengths_are_those_of_the_episodes():
    # Rewards 1, 2, 3: a return of 6.
    assert play("PlRlTest/Counter-v0", num_envs=2, num_episodes=2, truncate_at=3) == Episodes(
        [6.0, 6.0], [3, 3], [{}, {}]
    )


def test_statistics_by_hand():
    statistics = Episodes([1.0, 3.0], [10, 20], [{}, {}]).statistics()
    assert statistics == {
        "return_mean": 2.0,
        "return_min": 1.0,
        "return_max": 3.0,
        "return_std": 1.0,  # of the episodes played, not an estimate for a population
        "length_mean": 15.0,
        "length_min": 10.0,
        "length_max": 20.0,
        "length_std": 5.0,
    }


def test_short_episodes_do_not_crowd_out_long_ones():
    # The environments' seeds are even and odd, so one plays episodes of 2 steps and the other of 20. In the time of
    # two long ones there are twenty short ones.
    assert play("PlRlTest/ShortOrLong-v0", num_envs=2, num_episodes=4).lengths == [2, 2, 20, 20]


def test_each_environment_plays_a_share_fixed_beforehand():
    # 5 episodes over 2 environments: 3 and 2.
    assert play("PlRlTest/ShortOrLong-v0", num_envs=2, num_episodes=5, seed=0).lengths == [2, 2, 2, 20, 20]
    assert sorted(play("PlRlTest/ShortOrLong-v0", 2, 5, seed=1).lengths) == [2, 2, 20, 20, 20]


@pytest.mark.parametrize("num_envs", [1, 2, 5, 8])
def test_as_many_episodes_are_played_as_asked_for(num_envs):
    assert len(play("CartPole-v1", num_envs=num_envs, num_episodes=5).returns) == 5


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_same_seed_gives_the_same_episodes_and_another_one_does_not(deterministic):
    one, same, other = (play("CartPole-v1", 3, 6, seed, deterministic) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_deterministic_actions_are_the_most_probable_ones():
    config = EnvConfig("PlRlTest/Identity-v0", kwargs={"kind": "discrete"})
    network = policy_for(config)
    with torch.no_grad():
        # The policy puts 60 % on the target: exp(1.5) / (exp(1.5) + 3) = 0.6.
        network.actor = torch.nn.Linear(4, 4, bias=False)
        network.actor.weight.copy_(1.5 * torch.eye(4))
    # 16 targets in an episode, one point each.
    assert evaluate(network, config, 2, 4, seed=0).returns == [16.0] * 4
    sampled = evaluate(network, config, 2, 100, seed=0, deterministic=False).returns
    # 1,600 choices of standard deviation 0.49: a standard error of 0.2 of the return.
    assert np.mean(sampled) == pytest.approx(16 * 0.6, abs=0.8)


def test_worker_processes_are_not_started_for_an_evaluation():
    asynchronous = play("CartPole-v1", 2, 4, vectorization="async")
    assert asynchronous == play("CartPole-v1", 2, 4, vectorization="auto")


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_global_random_generators_are_left_alone(deterministic):
    config = EnvConfig("Acrobot-v1", kwargs={"max_episode_steps": 20})
    network = policy_for(config)

    def states():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

    before = states()
    evaluate(network, config, 2, 4, seed=3, deterministic=deterministic)
    assert states() == before


def test_an_episode_that_terminates_counts_as_one_that_is_truncated():
    assert play("PlRlTest/Counter-v0", 1, 2, terminate_at=2) == play("PlRlTest/Counter-v0", 1, 2, truncate_at=2)


def test_an_evaluation_closes_its_environments(monkeypatch):
    closed = []
    monkeypatch.setattr(gym.Env, "close", lambda env: closed.append(env))
    play("PlRlTest/Counter-v0", num_envs=2, num_episodes=2, truncate_at=3)
    assert len(closed) == 2


def test_an_environment_that_cannot_be_drawn_is_refused_in_a_sentence(tmp_path, monkeypatch):
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    config = EnvConfig("PlRlTest/Undrawable-v0")
    with pytest.raises(UsageError, match=r"Undrawable-v0' cannot be drawn here, AttributeError: no attribute 'glGet"):
        record(policy_for(config), config, 1, 0, tmp_path / "clips")
    gc.collect()
    assert not printed
    assert not list(tmp_path.iterdir())


def test_small_returns_are_shown_with_more_decimals():
    assert [format_return(value) for value in (0.9612, -0.25, 9.5, 10.0, -1234.56)] == [
        "0.961", "-0.250", "9.500", "10.0", "-1234.6",
    ]  # fmt: skip


def test_an_environment_that_fails_while_it_is_filmed_is_named(tmp_path, monkeypatch):
    config = EnvConfig("CartPole-v1")
    policy = policy_for(config)
    monkeypatch.setattr("gymnasium.envs.classic_control.cartpole.CartPoleEnv.step", lambda env, action: 1 / 0)
    with pytest.raises(RunFailure, match=r"environment 0 raised ZeroDivisionError: .*, at step 1 of an evaluation"):
        record(policy, config, 1, 0, tmp_path / "clips")


@pytest.mark.filterwarnings("ignore:.*reward returned by:UserWarning")  # gymnasium's
@pytest.mark.parametrize("filmed", [True, False])
def test_rewards_may_be_arrays_of_one_number(filmed, tmp_path, monkeypatch):
    config = EnvConfig("CartPole-v1", kwargs={"max_episode_steps": 5})
    step = gym.envs.classic_control.cartpole.CartPoleEnv.step
    monkeypatch.setattr(
        "gymnasium.envs.classic_control.cartpole.CartPoleEnv.step",
        lambda env, action: tuple(np.array([part]) if i == 1 else part for i, part in enumerate(step(env, action))),
    )
    if filmed:
        episodes = record(policy_for(config), config, 1, 0, tmp_path / "clips")
    else:
        episodes = play("CartPole-v1", 1, 1, vectorization="sync", max_episode_steps=5)
    assert episodes == Episodes([5.0], [5], [{}])


def test_an_environment_that_fails_as_it_is_reset_is_named():
    with pytest.raises(RunFailure, match=r"environment 0 raised .* \(in a reset\), at the beginning of an evaluation"):
        play("PlRlTest/Faulty-v0", 2, 2, seed=1, fault="raises in a reset", at=0)


@pytest.mark.slow  # a process
def test_a_library_for_drawing_that_does_not_load_is_named(tmp_path):
    """MuJoCo asks for it when it is imported, whether anything is drawn or not."""
    done = subprocess.run(
        [sys.executable, "-m", "pl_rl", "fit", "--config", "hopper.yaml"],
        env={**os.environ, "MUJOCO_GL": "crayon"},
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: environment 'Hopper-v5'")
    assert "MUJOCO_GL=crayon, which does not work here: unset it, or try MUJOCO_GL=egl" in line


class Window(gym.Env):
    """Notes how often it was drawn into a window."""

    metadata = {"render_modes": ["human"], "render_fps": 1000}  # noqa: RUF012
    observation_space = gym.spaces.Box(0.0, 9.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)
    drawn: ClassVar[list[int]] = []

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        if self.render_mode == "human":
            self.drawn.append(self.steps)
        return np.zeros(1, np.float32), 1.0, self.steps == 3, False, {}

    def render(self):
        return None


gym.register("PlRlTest/Window-v0", Window)


def test_episodes_are_watched_in_a_window_and_are_those_that_are_played():
    env, network = EnvConfig("PlRlTest/Window-v0"), policy_for(EnvConfig("PlRlTest/Window-v0"))
    played = evaluate(network, env, 1, 2, seed=1)
    assert Window.drawn == []
    assert watch(network, env, 2, seed=1) == played
    assert Window.drawn[:6] == [1, 2, 3, 1, 2, 3]


@pytest.mark.filterwarnings("ignore:.*You are trying to use 'human' rendering:UserWarning")  # gymnasium's
def test_an_environment_that_cannot_be_drawn_into_a_window_is_named():
    with pytest.raises(UsageError, match="'PlRlTest/Undrawable-v0' cannot be drawn here, AttributeError"):
        watch(policy_for(EnvConfig("PlRlTest/Undrawable-v0")), EnvConfig("PlRlTest/Undrawable-v0"), 1, seed=1)


def test_without_a_screen_films_are_named(monkeypatch):
    pytest.importorskip("pygame")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("SDL_VIDEODRIVER", "x11")
    with pytest.raises(UsageError, match="a window needs a screen; without one, --video FOLDER makes films"):
        watch(policy_for(EnvConfig("CartPole-v1")), EnvConfig("CartPole-v1"), 1, seed=1)
