"""Atari in C++: the game that the wrappers show, and what it cannot show goes to them."""

import gc
from pathlib import Path

import ale_py  # noqa: F401  (registers environments)
import gymnasium as gym
import numpy as np
import pytest

from pl_rl import EnvConfig, UsageError
from pl_rl.envs import make_env, make_vector_env, replayed_steps, restore_envs, save_envs, vectorization_of
from pl_rl.envs.atari import EpisodicLife, FireOnReset
from pl_rl.envs.native_atari import atari_game_fn
from pl_rl.networks.actor_critic import CNNActorCritic
from tests.envs.test_families import shipped
from tests.support import fit, small_ppo

PREPROCESSING, STACKING, LIFE, FIRE, CLIP = (
    "gymnasium.wrappers.AtariPreprocessing",
    "gymnasium.wrappers.FrameStackObservation",
    "pl_rl.envs.atari.EpisodicLife",
    "pl_rl.envs.atari.FireOnReset",
    "gymnasium.wrappers.ClipReward",
)


def atari(env_id="ALE/Breakout-v5", preprocessing=None, stacking=None, further=(), vectorization="native", **kwargs):
    """The shipped configs' environment, with other arguments."""
    wrappers = [
        {"class_path": PREPROCESSING, "init_args": preprocessing or {}},
        {"class_path": STACKING, "init_args": {"stack_size": 4, **(stacking or {})}},
        *further,
    ]
    return EnvConfig(env_id, vectorization, {"frameskip": 1, **kwargs}, imports=["ale_py"], wrappers=wrappers)


def of_ale(seed):
    """The seed that gymnasium's environment gives to ALE's random generator."""
    return int(np.random.SeedSequence(seed).generate_state(2)[1])


# Seeds whose counterparts are those of the native one, too.
SEEDS = [seed for seed in range(20) if of_ale(seed) < 2**31]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env_id", "steps", "settings"),
    [
        ("ALE/Breakout-v5", 900, {}),
        ("ALE/Pong-v5", 1100, {}),
        ("ALE/Breakout-v5", 300, {"further": [LIFE, FIRE], "repeat_action_probability": 0.0}),
        ("PongNoFrameskip-v4", 40, {}),
        ("ALE/Qbert-v5", 300, {"full_action_space": True, "repeat_action_probability": 0.5}),
        (
            "ALE/Breakout-v5",
            100,
            {"preprocessing": {"frame_skip": 3, "screen_size": 50}, "stacking": {"stack_size": 2}},
        ),
        ("ALE/Pong-v5", 60, {"preprocessing": {"frame_skip": 1}, "stacking": {"stack_size": 1}}),
    ],
    ids=str,
)
def test_the_game_is_that_of_the_wrappers(env_id, steps, settings):
    """Pixel for pixel over sticky actions, lives and games; idle frames before them come from other generators."""
    preprocessing = {**settings.pop("preprocessing", {}), "noop_max": 0}
    clip = {"class_path": CLIP, "init_args": {"min_reward": -1, "max_reward": 1}}
    config = atari(env_id, preprocessing, further=[*settings.pop("further", [LIFE]), clip], **settings)
    native, wrapped = atari_game_fn(config, training=True)(), make_env(config, training=True)
    assert native.observation_space == wrapped.observation_space
    assert native.action_space == wrapped.action_space
    obs, _ = native.reset(seed=of_ale(SEEDS[0]))
    assert np.array_equal(obs, wrapped.reset(seed=SEEDS[0])[0])
    rng, ended = np.random.default_rng(0), 0
    for _ in range(steps):
        action = int(rng.integers(native.action_space.n))
        taken, expected = native.step(action), wrapped.step(action)
        assert np.array_equal(taken[0], expected[0])
        assert taken[1:4] == expected[1:4]
        assert taken[4]["lives"] == expected[4]["lives"]
        if taken[2]:
            ended += 1
            assert native.get_wrapper_attr("reset_goes_on") == wrapped.get_wrapper_attr("reset_goes_on")
            assert np.array_equal(native.reset()[0], wrapped.reset()[0])
    assert ended >= steps // 1000


class Waits(gym.Env):
    """Says what was done; a life is lost by the second step of each."""

    observation_space, action_space = gym.spaces.Discrete(1), gym.spaces.Discrete(3)

    def __init__(self, meanings=("NOOP", "UP", "FIRE")):
        self.meanings, self.done = list(meanings), []

    def get_action_meanings(self):
        return self.meanings

    def reset(self, *, seed=None, options=None):
        self.done.append(f"reset {seed}")
        self.lives = 2
        return 0, {"lives": self.lives}

    def step(self, action):
        self.done.append(self.meanings[action])
        self.lives -= self.done[-2] == "FIRE"
        return 0, 1.0, self.lives == 0, False, {"lives": self.lives}


def test_the_button_is_pressed_for_each_life():
    game = FireOnReset(EpisodicLife(Waits()))
    game.reset(seed=5)
    assert game.step(1)[2]
    game.reset()
    assert game.unwrapped.done == ["reset 5", "FIRE", "UP", "NOOP", "FIRE"]
    game.reset(seed=6)
    assert game.unwrapped.done[5:] == ["reset 6", "FIRE"]


def test_a_press_that_ends_the_episode_is_followed_by_a_reset():
    game = FireOnReset(Waits())
    game.unwrapped.step = lambda action: (0, 0.0, False, True, {"lives": 0})
    game.reset(seed=5)
    assert game.unwrapped.done == ["reset 5", "reset None"]


def test_games_without_a_button_are_refused():
    with pytest.raises(UsageError, match="the game has no action FIRE, but NOOP, UP, DOWN; leave it out"):
        FireOnReset(Waits(["NOOP", "UP", "DOWN"]))


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ["ALE/Breakout-v5", "ALE/Freeway-v5"])
def test_actions_have_the_meanings_of_gymnasiums_environment(env_id):
    game, env = atari_game_fn(atari(env_id), training=False)(), gym.make(env_id)
    assert game.get_wrapper_attr("get_action_meanings")() == env.get_wrapper_attr("get_action_meanings")()


@pytest.mark.slow
def test_a_game_begins_with_idle_frames():
    still = {"repeat_action_probability": 0.0}
    game = atari_game_fn(atari("ALE/Freeway-v5", {"noop_max": 4}, **still), training=False)()
    frames = gym.make("ALE/Freeway-v5", obs_type="grayscale", frameskip=1, **still)
    frames = gym.wrappers.ResizeObservation(frames, (84, 84))
    begins = [frames.reset()[0], *(frames.step(0)[0] for _ in range(3))]
    firsts = [game.reset(seed=seed)[0][-1] for seed in range(20)]
    assert {next(k for k in range(4) if np.array_equal(begins[k], first)) for first in firsts} == {0, 1, 2, 3}


@pytest.mark.slow
def test_a_limit_of_frames_truncates():
    env = make_vector_env(atari(preprocessing={"noop_max": 0}, max_num_frames_per_episode=40), 2)
    env.reset(seed=1)
    for t in range(1, 31):
        obs, _, terminated, truncated, infos = env.step(np.array([0, 0]))
        assert not terminated.any()
        assert truncated.tolist() == [t % 10 == 0] * 2
        if t % 10 == 0:
            assert infos["_final_obs"].all()
            # A new game shows its first frame in all places, the final observation of the old one does not.
            assert (obs[0] == obs[0][0]).all()
            assert infos["final_obs"][0].shape == (4, 84, 84)
    env.close()


@pytest.mark.slow
def test_a_reset_with_a_seed_begins_afresh_whatever_was_before():
    game = atari_game_fn(shipped("breakout", "native"), training=True)()
    rng = np.random.default_rng(0)
    plays = []
    for _ in range(2):
        obs, _ = game.reset(seed=7)
        actions = np.random.default_rng(1).integers(4, size=50)
        plays.append([obs.copy(), *(game.step(int(action))[0].copy() for action in actions)])
        for _ in range(400):
            *_, terminated, truncated, _ = game.step(int(rng.integers(4)))
            if terminated or truncated:
                game.reset()
    assert all(np.array_equal(one, other) for one, other in zip(*plays, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_auto_takes_it_for_the_shipped_configs(training):
    for name in ("pong", "breakout"):
        env = make_vector_env(shipped(name, "auto"), 2, training)
        assert vectorization_of(env) == "native"
        assert ("EpisodicLife" in str(env.envs[0]), "ClipReward" in str(env.envs[0])) == (training, training)
        env.close()


# With fewer arguments stated than ALE's own have.
gym.register("PlRlTest/Pong-v0", "ale_py.env:AtariEnv", kwargs={"game": "pong"})
OTHER = {
    "wrappers that do not begin with gymnasium.wrappers.AtariPreprocessing": EnvConfig("ALE/Pong-v5", "native"),
    "the wrapper gymnasium.wrappers.TimeAwareObservation": atari(further=["gymnasium.wrappers.TimeAwareObservation"]),
    "mode=1": atari(mode=1),
    "max_episode_steps=100": atari(max_episode_steps=100),
    "max_num_frames_per_episode=None": atari("PlRlTest/Pong-v0"),
    "frameskip=2": atari(frameskip=2),
    "grayscale_obs=False": atari(preprocessing={"grayscale_obs": False}),
    "terminal_on_life_loss=True": atari(preprocessing={"terminal_on_life_loss": True}),
    "padding_type='zero'": atari(stacking={"padding_type": "zero"}),
}


@pytest.mark.parametrize("what", OTHER)
def test_what_does_not_translate_is_named(what):
    with pytest.raises(UsageError, match=f"'.*' has no native .* that goes with {what}.*; use auto"):
        make_vector_env(OTHER[what], 2, training=True)


def test_auto_takes_the_wrappers_for_what_does_not_translate():
    env = make_vector_env(atari(preprocessing={"grayscale_obs": False}, vectorization="auto"), 1, training=True)
    assert vectorization_of(env) == "sync"
    assert env.single_observation_space.shape == (4, 84, 84, 3)
    env.close()


def test_what_is_not_stated_is_as_in_the_environment():
    make_vector_env(atari("PlRlTest/Pong-v0", max_num_frames_per_episode=100), 1).close()


def test_what_is_stated_as_the_default_translates():
    config = atari(preprocessing={"grayscale_obs": True, "noop_max": 10}, stacking={"padding_type": "reset"})
    make_vector_env(config, 1).close()


TASKS = Path("/proc/self/task")


def threads():
    gc.collect()
    return len(list(TASKS.iterdir()))


@pytest.mark.slow
@pytest.mark.skipif(not TASKS.is_dir(), reason="threads are counted by Linux")
def test_no_thread_is_left():
    before = threads()
    env = make_vector_env(shipped("pong", "native"), 3)
    env.reset(seed=0)
    env.step(np.zeros(3, np.int64))
    assert threads() == before + 3
    for game in env.envs:
        game.unwrapped.begin(0)  # as where an exception comes between the games of a step
    env.close()
    assert threads() == before


def test_an_action_that_there_is_not_is_refused():
    game = atari_game_fn(shipped("pong", "native"), training=False)()
    game.reset(seed=0)
    with pytest.raises(ValueError, match=r"action 6 is not in Discrete\(6\)"):
        game.step(6)
    game.step(5)


@pytest.mark.slow
def test_what_cannot_be_replayed_is_said_and_not_waited_for():
    env = make_vector_env(shipped("pong", "native"), 2)
    env.reset(seed=0)
    for _ in range(3):
        obs, *_ = env.step(np.zeros(2, np.int64))
    saved = save_envs(env)
    assert replayed_steps(saved) == 6
    assert restore_envs(env, saved, obs.copy(), np.zeros(2)) is None
    saved["state"][1]["actions"][2] = 6
    assert "a replay of environment 1's seed and actions failed, as it raised ValueError: action 6" in restore_envs(
        env, saved, obs.copy(), np.zeros(2)
    )
    env.close()


@pytest.mark.slow
def test_a_run_says_which_it_takes(caplog):
    small = {"num_envs": 2, "num_steps": 4, "minibatch_size": 8, "total_env_steps": 8}
    with caplog.at_level("INFO"):
        fit(small_ppo(env=shipped("pong", "auto"), network=CNNActorCritic, **small))
    assert "Environments: 2 of ALE/Pong-v5, native." in caplog.text
