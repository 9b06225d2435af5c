"""Wrappers and imports by config: in their order, in training or everywhere, saved with the environment's state."""

import sys

import gymnasium as gym
import numpy as np
import pytest
import yaml

import tests.uncertain_environments  # noqa: F401  (registers environments)
from pl_rl import EnvConfig, UsageError
from pl_rl.envs import make_env, make_vector_env
from pl_rl.networks.description import network_from_description
from tests.environments import Counter
from tests.envs.test_replay import assert_restored_after
from tests.support import fit, small_ppo

FLATTEN = "gymnasium.wrappers.FlattenObservation"
LIMIT = {"class_path": "gymnasium.wrappers.TimeLimit", "init_args": {"max_episode_steps": 7}}
STATEFUL = [
    {"class_path": "gymnasium.wrappers.FrameStackObservation", "init_args": {"stack_size": 3}},
    "gymnasium.wrappers.FlattenObservation",
    "gymnasium.wrappers.TimeAwareObservation",
    "gymnasium.wrappers.NormalizeObservation",
    {"class_path": "gymnasium.wrappers.NormalizeReward", "init_args": {"gamma": 0.9}},
    {"class_path": "gymnasium.wrappers.StickyAction", "init_args": {"repeat_action_probability": 0.25}},
]


def names(env):
    """The wrappers that a config named, from the innermost to the outermost."""
    found = []
    while isinstance(env, gym.Wrapper):
        found.append(type(env).__name__)
        env = env.env
    return [name for name in reversed(found) if name not in ("PassiveEnvChecker", "OrderEnforcing")]


def test_a_vector_is_kept_in_part_or_split_into_entries():
    whole, _ = make_env(EnvConfig("CartPole-v1")).reset(seed=0)
    partial = "pl_rl.envs.partial."
    kept = {"class_path": f"{partial}KeepComponents", "init_args": {"components": [0, 2]}}
    obs, _ = make_env(EnvConfig("CartPole-v1", wrappers=[kept])).reset(seed=0)
    assert np.array_equal(obs, whole[[0, 2]])
    entries = {"places": [0, 2], "velocities": [1, 3]}
    split = {"class_path": f"{partial}SplitComponents", "init_args": {"entries": entries}}
    env = make_env(EnvConfig("CartPole-v1", wrappers=[split]))
    obs, _ = env.reset(seed=0)
    assert {name: entry.tolist() for name, entry in obs.items()} == {
        name: whole[components].tolist() for name, components in entries.items()
    }
    assert env.observation_space.contains(obs)


@pytest.mark.parametrize(
    ("env", "wrapper", "message"),
    [
        (
            "FrozenLake-v1",
            {"class_path": "KeepComponents", "init_args": {"components": [0]}},
            "needs vectors, not",
        ),
        ("CartPole-v1", {"class_path": "KeepComponents", "init_args": {"components": [4]}}, r"\[4\] must be positions"),
        ("CartPole-v1", {"class_path": "SplitComponents", "init_args": {"entries": {"a": []}}}, r"\[\] must .* 0 to 3"),
    ],
)
def test_parts_of_vectors_that_there_are_not_are_refused(env, wrapper, message):
    wrapper = {**wrapper, "class_path": f"pl_rl.envs.partial.{wrapper['class_path']}"}
    with pytest.raises(UsageError, match=message):
        make_env(EnvConfig(env, wrappers=[wrapper]))


def test_wrappers_are_applied_in_their_order_and_those_for_training_outside_and_only_there():
    config = EnvConfig(
        "PlRlTest/Counter-v0", wrappers=[LIMIT, FLATTEN], train_wrappers=["gymnasium.wrappers.Autoreset"]
    )
    assert names(make_env(config)) == ["TimeLimit", "FlattenObservation"]
    assert names(make_env(config, training=True)) == ["TimeLimit", "FlattenObservation", "Autoreset"]


@pytest.mark.parametrize("vectorization", ["sync", "async", "auto"])
def test_every_environment_that_is_stepped_has_its_wrappers(vectorization):
    # CartPole would have a native vectorization.
    env = make_vector_env(EnvConfig("CartPole-v1", vectorization, wrappers=[LIMIT]), 2)
    env.reset(seed=0)
    truncated = [env.step(np.array([t % 2] * 2))[3].tolist() for t in range(7)]
    assert truncated == [[False, False]] * 6 + [[True, True]]
    env.close()


def test_native_vectorization_does_not_go_with_wrappers():
    with pytest.raises(UsageError, match="'CartPole-v1' has no native vectorization that goes with wrappers; use auto"):
        make_vector_env(EnvConfig("CartPole-v1", "native", wrappers=[LIMIT]), 2)


@pytest.mark.slow
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_the_state_of_wrappers_comes_back(vectorization):
    """Also over anchors: statistics of a wrapper are those of all episodes since the run began."""
    config = EnvConfig("PlRlTest/NoisyWalk-v0", vectorization, wrappers=STATEFUL)
    for steps in (0, 57, 1250):
        assert_restored_after(steps, config)


class Normalized(gym.wrappers.NormalizeObservation):
    """A class of somebody's own."""


@pytest.mark.slow
def test_the_state_of_a_derived_wrapper_comes_back():
    wrapper = f"{__name__}.{Normalized.__name__}"
    assert_restored_after(1250, EnvConfig("PlRlTest/NoisyWalk-v0", wrappers=[wrapper]))


@pytest.mark.slow
def test_a_wrapper_for_training_changes_training_and_not_evaluation():
    scale = {"class_path": "gymnasium.wrappers.ClipReward", "init_args": {"min_reward": 0, "max_reward": 0.5}}
    model = small_ppo(env=EnvConfig("CartPole-v1", train_wrappers=[scale]), eval_freq=8, total_env_steps=512)
    rewards = []
    step = model.training_step
    model.training_step = lambda rollout, batch_idx: (rewards.append(rollout.rewards), step(rollout, batch_idx))[1]
    trainer = fit(model)
    assert {0.5} == set(rewards[0].unique().tolist())
    (episodes,) = trainer.predict(model)
    assert episodes.returns == episodes.lengths


def test_wrappers_are_plain_data_in_a_checkpoint():
    model = small_ppo(env=EnvConfig("CartPole-v1", wrappers=[LIMIT, FLATTEN]))
    assert model.hparams["env"]["wrappers"] == [LIMIT, FLATTEN]
    assert small_ppo(env=model.hparams["env"]).env_config == model.env_config


def test_a_training_wrapper_that_changes_a_space_is_refused():
    config = EnvConfig("CartPole-v1", train_wrappers=["gymnasium.wrappers.TimeAwareObservation"])
    with pytest.raises(UsageError, match=r"train_wrappers change the observation_space from .* name the wrapper"):
        small_ppo(env=config)


@pytest.mark.parametrize(
    ("wrapper", "sentence"),
    [
        ("gymnasium.wrappers.FlatenObservation", r"has no FlatenObservation; did you mean .*\.FlattenObservation\?"),
        ("no_such_module.Wrapper", "'no_such_module.Wrapper' cannot be imported: No module named"),
        ("Wrapper", "'Wrapper' has no module before its name"),
        ("gymnasium.Env", "'gymnasium.Env' is not a wrapper; it must be a subclass of gymnasium.Wrapper"),
        ({"class_path": FLATTEN, "init_arg": {}}, "is not a wrapper; it must be the path of a class, or a mapping"),
        ({"init_args": {}}, "is not a wrapper; it must be the path"),
        (3, "3 is not a wrapper"),
        ({"class_path": FLATTEN, "init_args": {"depth": 1}}, "init_args={'depth': 1} cannot be made: .*'depth'"),
        (
            {"class_path": "gymnasium.wrappers.FrameStackObservation", "init_args": {"stack_size": -1}},
            "does not go round .*CartPole.*-1",
        ),
    ],
)
def test_a_wrapper_that_cannot_be_made_is_answered_in_a_sentence(wrapper, sentence):
    with pytest.raises(UsageError, match=sentence):
        make_env(EnvConfig("CartPole-v1", wrappers=[wrapper]))


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
        ("None.name", "AttributeError: 'NoneType' object has no attribute 'name'"),
        ("def (", r"SyntaxError: invalid syntax \(broken.py, line 1\)"),
    ],
)
def test_the_module_of_a_class_may_fail_in_any_way(code, sentence, tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=f"the wrapper 'broken.Wrapper' cannot be imported: {sentence}"):
        make_env(EnvConfig("CartPole-v1", wrappers=["broken.Wrapper"]))
    with pytest.raises(UsageError, match=f"the network class 'broken.Net' cannot be imported: {sentence}"):
        network_from_description({"class_path": "broken.Net", "init_args": {}})


RESIZE = {"class_path": "gymnasium.wrappers.ResizeObservation", "init_args": {"shape": [4, 6]}}
GRAYSCALE = {"class_path": "gymnasium.wrappers.GrayscaleObservation", "init_args": {"keep_dim": False}}
RESHAPE = {"class_path": "gymnasium.wrappers.ReshapeObservation", "init_args": {"shape": [24]}}
STICKY = {
    "class_path": "gymnasium.wrappers.StickyAction",
    "init_args": {"repeat_action_probability": 0.1, "repeat_action_duration": [1, 3]},
}


class WantsTuples(gym.Wrapper):
    """Says nothing of it."""

    def __init__(self, env, crop, names):
        super().__init__(env)
        if not (isinstance(crop, tuple) and isinstance(crop[0], tuple) and isinstance(names["of"], tuple)):
            raise TypeError("crop must be tuples")


class WantsLists(gym.Wrapper):
    """Says nothing of it."""

    def __init__(self, env, names):
        super().__init__(env)
        if not isinstance(names, list):
            raise TypeError("names must be a list")


class Corner(Counter):
    """Is made with a tuple."""

    def __init__(self, corner=(0, 0)):
        super().__init__(truncate_at=3)
        if not isinstance(corner, tuple):
            raise TypeError("corner must be a tuple")


def test_lists_of_a_config_are_tuples_where_tuples_are_wanted():
    wrappers = [RESIZE, GRAYSCALE, RESHAPE, STICKY]
    wrappers.append(
        {"class_path": f"{__name__}.WantsTuples", "init_args": {"crop": [[0, 1], [2, 3]], "names": {"of": ["a"]}}}
    )
    wrappers.append({"class_path": f"{__name__}.WantsLists", "init_args": {"names": ["a"]}})
    env = make_env(EnvConfig("PlRlTest/Images-v0", wrappers=wrappers))
    obs, _ = env.reset(seed=0)
    assert obs.shape == (24,) and env.step(0)[0].shape == (24,)
    # What the config says stays as it is, as a checkpoint holds it.
    assert RESIZE["init_args"] == {"shape": [4, 6]}


def test_lists_among_the_arguments_of_an_environment_are_tuples_where_they_must_be():
    gym.register("PlRlTest/Corner-v0", Corner)
    make_env(EnvConfig("PlRlTest/Corner-v0", kwargs={"corner": [1, 2]})).reset(seed=0)
    with pytest.raises(UsageError, match="cannot be made: corner must be a tuple"):
        make_env(EnvConfig("PlRlTest/Corner-v0", kwargs={"corner": "1, 2"}))


def test_what_is_said_of_a_list_that_does_not_fit_is_about_the_list():
    wrapper = {"class_path": f"{__name__}.WantsTuples", "init_args": {"crop": [0, 1], "names": {"of": []}}}
    with pytest.raises(UsageError, match=r"init_args={'crop': \[0, 1\], .* does not go round .*: crop must be tuples"):
        make_env(EnvConfig("PlRlTest/Counter-v0", wrappers=[wrapper]))


def test_a_run_with_pictures_of_another_size():
    """From YAML to a policy, which has no other way to name such a wrapper."""
    config = {"id": "PlRlTest/Images-v0", "kwargs": {"max_episode_steps": 5}, "wrappers": [RESIZE, GRAYSCALE, RESHAPE]}
    model = small_ppo(env=yaml.safe_load(yaml.safe_dump(config)), total_env_steps=128)
    fit(model)
    assert model.network.observation_space.shape == (24,)


def test_imported_modules_register_environments():
    gym.registry.pop("PlRlTest/Late-v0", None)
    sys.modules.pop("tests.late_environment", None)
    config = EnvConfig("PlRlTest/Late-v0", imports=["tests.late_environment"])
    env = make_vector_env(config, 2)
    env.reset(seed=0)
    assert env.step(np.array([0, 0]))[1].tolist() == [1.0, 1.0]


def test_a_module_that_cannot_be_imported_is_named():
    with pytest.raises(
        UsageError, match="the module 'minigridd' cannot be imported: minigridd is not installed; pip install minigridd"
    ):
        make_env(EnvConfig("CartPole-v1", imports=["minigridd"]))


def test_entries_that_are_no_arrays_are_refused_with_the_wrapper_that_helps():
    with pytest.raises(
        UsageError, match=r"the entry 'mission' of the observations is a MissionSpace.*FilterObservation"
    ):
        small_ppo(env=EnvConfig("MiniGrid-Empty-5x5-v0", imports=["minigrid"]))
