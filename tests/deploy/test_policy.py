"""A policy by itself acts as it does in a run."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from pl_rl import PPO, UsageError
from pl_rl.deploy.policy import TrainedPolicy, load_weights, read_trained
from pl_rl.envs.spaces import DTYPES, describe_spaces
from pl_rl.networks.distributions import Categorical, to_numpy
from tests.example_networks import LinearValue
from tests.support import small_ppo
from tests.trained import NORMALIZED, POLICIES, checkpoint, observations, policy_of


@pytest.mark.parametrize("settings", [*POLICIES.values(), *NORMALIZED.values()], ids=[*POLICIES, *NORMALIZED])
def test_actions_are_those_that_the_environment_is_given(settings):
    path = checkpoint(**settings)
    policy, model = policy_of(path), PPO.load_from_checkpoint(path)
    obs, network = observations(policy, 50), model.network
    with torch.no_grad():
        actions, values, *outputs = policy(obs)
        expected_outputs, expected_values = network(obs if model.normalizer is None else model.normalizer(obs))
    expected = network.distribution.to_env(to_numpy(network.distribution.mode(expected_outputs)))
    assert (actions.numpy() == expected).all() and actions.numpy().dtype == expected.dtype
    assert all(network.action_space.contains(action) for action in actions.numpy())
    assert len({tuple(action.flatten().tolist()) for action in actions}) > 1
    assert values.equal(expected_values)
    parts = network.distribution.parts(expected_outputs)
    assert policy.outputs == ("action", "value", *parts)
    assert all(ours.equal(theirs) for ours, theirs in zip(outputs, parts.values(), strict=True))


def test_observations_are_rounded_after_they_are_normalized():
    policy = policy_of(checkpoint(env="Pendulum-v1", norm_obs=True))
    obs = observations(policy, 3).double() + 1e6 * policy.normalizer.scale
    with torch.no_grad():
        policy.normalizer.mean += 1e6 * policy.normalizer.scale
    assert len(policy(obs)[1].unique()) == 3
    assert policy(obs)[1].equal(policy.network(policy.normalizer(obs))[1])


def test_what_training_was_like_is_told():
    path = checkpoint(eval_freq=2, eval_episodes=3)
    training = read_trained(path).training
    assert training["train_iter"] == training["evaluation"]["train_iter"] == 4
    assert training["env_steps"] == 64 and training["seed"] == 0 and len(training["source_sha256"]) == 64
    assert training["evaluation"]["episodes"] == 3 and training["evaluation"]["return_mean"] > 0
    assert read_trained(checkpoint(eval_freq=0)).training["evaluation"] is None


def test_a_network_that_only_its_script_can_make_is_refused():
    path = checkpoint(network=lambda *spaces: LinearValue(*spaces))
    with pytest.raises(UsageError, match="made by a function that only its script knows"):
        policy_of(path)


def test_a_network_larger_than_memory_is_not_begun():
    trained = read_trained(checkpoint())
    network = {"class_path": "pl_rl.networks.MLPActorCritic", "init_args": {"actor_sizes": [10**12]}}
    with pytest.raises(UsageError, match=r"has parameters of [0-9,]+ bytes, and this machine has [0-9,]+"):
        TrainedPolicy({**trained.settings, "network": network}, trained.spaces)


def test_weights_of_another_network_are_refused():
    trained = read_trained(checkpoint())
    del trained.tensors["network.actor.0.weight"]
    with pytest.raises(UsageError, match=r"do not fit .* Missing key\(s\) in state_dict: \"network.actor.0.weight\""):
        load_weights(TrainedPolicy(trained.settings), trained.tensors)


class Reversed(Categorical):
    def to_env(self, actions):
        return super().to_env(1 - actions)


class WithOwnDistribution(LinearValue):
    def __init__(self, observation_space, action_space):
        super().__init__(observation_space, action_space)
        self.distribution = Reversed(action_space)


def test_a_distribution_whose_actions_are_not_known_is_refused():
    settings = dict(small_ppo(network=WithOwnDistribution).hparams)
    with pytest.raises(UsageError, match="distribution is a Reversed"):
        TrainedPolicy(settings)


@pytest.mark.parametrize(
    "dtype", ["(2,f4", "f16", "longdouble", "(2,)f4", "O", "M8[s]", "f4,f4", ">f4", 3, None, ["f4"]]
)
def test_spaces_have_numbers_of_known_names(dtype):
    trained = read_trained(checkpoint())
    for space in trained.spaces.values():
        sound = space["dtype"]
        space["dtype"] = dtype
        with pytest.raises(UsageError, match=r"the description of the spaces is damaged .*a dtype"):
            TrainedPolicy(trained.settings, trained.spaces)
        space["dtype"] = sound


def test_spaces_of_other_numbers_are_not_described():
    low = np.zeros(3, ">f4")
    space = gym.spaces.Box(low, low + 1, dtype=low.dtype)
    discrete = gym.spaces.Discrete(2)
    assert describe_spaces(discrete, discrete) is not None
    if str(space.dtype) not in DTYPES:
        assert describe_spaces(space, discrete) is None


@pytest.mark.parametrize("norm_obs", [[1], "yes", 1])
def test_whether_observations_are_normalized_is_true_or_false(norm_obs):
    trained = read_trained(checkpoint())
    with pytest.raises(UsageError, match=r"norm_obs=.* is neither true nor false"):
        TrainedPolicy({**trained.settings, "norm_obs": norm_obs}, trained.spaces)
