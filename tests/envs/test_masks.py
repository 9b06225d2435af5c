"""Masks of actions, from environments to observations."""

import numpy as np
import pytest

import tests.environments  # noqa: F401  (registers environments)
from pl_rl import UsageError
from pl_rl.envs import EnvConfig, make_env, make_vector_env
from pl_rl.errors import EnvironmentFailure
from pl_rl.networks.records import MASK, ActionMask

SOURCES = ["info.action_mask", "obs.allowed", "method.masks"]


def masked(source="info.action_mask", vectorization="sync", **kwargs):
    return EnvConfig("PlRlTest/Masked-v0", vectorization, kwargs, action_mask=source)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("sizes", [(4,), (2, 3)])
def test_a_mask_is_an_entry_wherever_it_comes_from(source, sizes):
    env = make_env(masked(source, sizes=sizes))
    assert env.observation_space[MASK] == ActionMask(sum(sizes))
    assert ("allowed" in env.observation_space.spaces) == (source != "obs.allowed")
    obs, _ = env.reset(seed=3)
    for _ in range(4):
        assert env.observation_space.contains(obs)
        assert np.array_equal(obs[MASK], env.unwrapped.allowed)
        obs, *_ = env.step(_first_allowed(obs[MASK], sizes))


def test_a_mask_may_be_an_array_of_objects():
    env = make_env(masked("method.masks", mask=np.array([0, True, 1], dtype=object)))
    obs, _ = env.reset(seed=0)
    for _ in range(2):  # the environment gives it from its second step on
        obs, *_ = env.step(_first_allowed(obs[MASK], (3,)))
    assert np.array_equal(obs[MASK], [0, 1, 1])


def _first_allowed(mask, sizes):
    parts = np.split(mask, np.cumsum(sizes)[:-1])
    chosen = np.array([np.flatnonzero(part)[0] for part in parts])
    return chosen if len(sizes) > 1 else chosen[0]


def test_an_observation_without_entries_stands_beside_the_mask():
    env = make_env(EnvConfig("Taxi-v4", action_mask="info.action_mask"))
    obs, info = env.reset(seed=0)
    assert set(obs) == {"obs", MASK} and env.observation_space["obs"] == env.unwrapped.observation_space
    assert np.array_equal(obs[MASK], info["action_mask"])


def test_after_the_last_step_everything_is_allowed():
    env = make_env(masked())
    obs, _ = env.reset(seed=3)
    for _ in range(5):
        obs, *_, truncated, _ = env.step(_first_allowed(obs[MASK], (3,)))
    assert truncated and obs[MASK].all()


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize(
    ("source", "kwargs", "words"),
    [
        ("info.other", {}, "gave no action mask: there is no info.other"),
        ("method.masks", {"mask": [1, 1]}, "gave an action mask of 2 numbers, where there are 3 choices"),
        ("method.masks", {"mask": [0, 0, 0]}, "gave an action mask that allows no action "),
        ("method.masks", {"mask": [0, 0.5, 1]}, "gave an action mask with other numbers than 0 and 1"),
        ("method.masks", {"mask": [0, float("nan"), 1]}, "gave an action mask with other numbers than 0 and 1"),
        ("method.masks", {"mask": ["0", "1", "1"]}, "gave an action mask with other numbers than 0 and 1"),
        (
            "info.action_mask",
            {"mask": [1, 0, 0, 0, 0], "sizes": (2, 3)},
            "gave an action mask that allows no action in dimension 1",
        ),
    ],
)
def test_a_wrong_mask_is_a_fault_of_its_environment(vectorization, source, kwargs, words):
    env = make_vector_env(masked(source, vectorization, **kwargs), 2)
    sizes = kwargs.get("sizes", (3,))
    with pytest.raises(EnvironmentFailure, match=f"environment 0 {words}"):
        obs, _ = env.reset(seed=0)
        for _ in range(3):
            obs, *_ = env.step(np.stack([_first_allowed(mask, sizes) for mask in obs[MASK]]))
    env.close()


@pytest.mark.parametrize(
    ("env", "words"),
    [
        (masked("action_mask"), "must be info.KEY, obs.ENTRY or method.NAME"),
        (masked("obs.mask"), "names no entry of the observations; they are allowed, noise"),
        (masked("method.none"), "names no method of the environment"),
        (EnvConfig("Pendulum-v1", action_mask="info.x"), "needs actions that are Discrete or MultiDiscrete"),
        (EnvConfig("CartPole-v1", action_mask="obs.obs"), "leaves nothing as observations"),
        (EnvConfig("CartPole-v1", "native", action_mask="info.x"), "no native vectorization that goes with an action"),
    ],
)
def test_a_source_that_cannot_be_is_refused(env, words):
    with pytest.raises(UsageError, match=words):
        make_vector_env(env, 2)
