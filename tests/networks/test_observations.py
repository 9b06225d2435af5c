"""Observations that are choices or switches."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

from pl_rl import MLPActorCritic, UsageError
from pl_rl.deploy.policy import TrainedPolicy
from pl_rl.envs.spaces import describe_spaces, make_spaces
from pl_rl.networks.normalization import ObservationNormalizer
from pl_rl.networks.observations import OneHot, input_layer
from tests.support import small_ppo

SPACES = [Discrete(4, start=3), MultiDiscrete([[3, 2]], start=[[1, 2]]), MultiBinary((2, 3))]


def test_a_choice_is_one_of_its_numbers():
    codes = OneHot(Discrete(3, start=5))(torch.tensor([5, 7, 6]))
    assert codes.tolist() == [[True, False, False], [False, False, True], [False, True, False]]


def test_several_choices_are_beside_one_another():
    codes = OneHot(MultiDiscrete([[3, 2]], start=[[1, 2]]))(torch.tensor([[[1, 3]], [[3, 2]]]))
    assert codes.int().tolist() == [[1, 0, 0, 0, 1], [0, 0, 1, 1, 0]]


@pytest.mark.parametrize(("space", "size"), list(zip(SPACES, [4, 6, 64], strict=True)), ids=str)
def test_a_network_tells_every_observation_from_every_other(space, size):
    network = MLPActorCritic(space, Discrete(2))
    space.seed(0)
    obs = torch.from_numpy(np.unique([space.sample() for _ in range(1000)], axis=0))
    outputs, values = network(obs)
    assert len(values.unique()) == len(obs) == size
    assert outputs.shape == (len(obs), 2)


def test_vectors_have_no_layer_before_them():
    """Whose name would be in the structure that a resume compares."""
    assert input_layer(Box(-1.0, 1.0, (3,))) == (None, 3)
    assert input_layer(Box(0, 255, (8, 8, 3), np.uint8)) is None
    network = MLPActorCritic(Box(-1.0, 1.0, (3,)), Discrete(2))
    assert "inputs" not in dict(network.named_modules())


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_choices_and_switches_are_not_normalized(space):
    with pytest.raises(UsageError, match=r"norm_obs=true needs observations of floats.*norm_obs=false"):
        ObservationNormalizer(space)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_spaces_come_back_from_their_description(space):
    assert make_spaces(describe_spaces(space, space)) == (space, space)


@pytest.mark.parametrize("name", ["FrozenLake-v1", "Taxi"])
def test_a_policy_takes_the_numbers_that_an_environment_gives(name):
    name = max(n for n in gym.registry if n.startswith(name))
    policy = TrainedPolicy(dict(small_ppo(env=name).hparams))
    env = policy.make_env()
    obs, _ = env.reset(seed=0)
    for _ in range(5):
        action = policy.act(obs)
        assert action in env.action_space
        obs, *_ = env.step(action)
    assert policy.act(np.array([obs, obs])).shape == (2,)
