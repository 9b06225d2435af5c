"""Generalized state-dependent exploration: one matrix for several steps, and the densities of its actions."""

import gymnasium as gym
import pytest
import torch

from pl_rl import MLPActorCritic, UsageError
from pl_rl.algorithm.rollout import RolloutCollector
from pl_rl.envs import EnvConfig, make_vector_env
from pl_rl.networks.distributions import make_distribution

OBSERVATIONS, ACTIONS = gym.spaces.Box(-1.0, 1.0, (3,)), gym.spaces.Box(-1.0, 1.0, (2,))


def network_of(sde_sample_freq=-1):
    torch.manual_seed(0)
    settings = {"actor_sizes": [5], "distribution": "gsde", "log_std_init": -1.0}
    return MLPActorCritic(OBSERVATIONS, ACTIONS, **settings, sde_sample_freq=sde_sample_freq).requires_grad_(False)


@pytest.mark.parametrize(
    ("every", "of_steps"), [(-1, [0] * 5), (1, [0, 1, 2, 3, 4]), (2, [0, 0, 1, 1, 2]), (9, [0] * 5)]
)
def test_each_environment_keeps_its_matrix_for_as_many_steps(every, of_steps):
    distribution, generator = network_of(every).distribution, torch.Generator().manual_seed(0)
    first, second = (distribution.noise((5, 4), generator) for _ in range(2))
    assert first.shape == (5, 4, 5, 2)
    drawn = [first[of_steps.index(number)] for number in of_steps]
    assert torch.equal(first, torch.stack(drawn))
    matrices = [*first[[of_steps.index(number) for number in set(of_steps)]].flatten(0, 1), *second[0]]
    assert len({tuple(matrix.flatten().tolist()) for matrix in matrices}) == len(matrices)


def test_the_noise_of_a_rollout_is_linear_in_the_features():
    env = make_vector_env(EnvConfig("PlRlTest/Identity-v0", kwargs={"kind": "box"}, imports=["tests.environments"]), 4)
    torch.manual_seed(0)
    space, actions = env.single_observation_space, env.single_action_space
    network = MLPActorCritic(space, actions, actor_sizes=[6], distribution="gsde", sde_sample_freq=3)
    collector = RolloutCollector(env, network, 8, torch.Generator().manual_seed(1))
    collector.reset(0)
    rollout = collector.collect()
    distribution = network.distribution.requires_grad_(False)
    with torch.no_grad():
        outputs, features = network.policy(rollout.obs), network.actor[:-1](rollout.obs)
    matrices = distribution.noise((8, 4), torch.Generator().manual_seed(1)) * distribution.log_std.exp()
    expected = outputs[..., : actions.shape[0]] + torch.einsum("tnd,tnda->tna", features, matrices)
    torch.testing.assert_close(rollout.actions, expected)
    torch.testing.assert_close(rollout.log_probs, distribution.log_prob(outputs, rollout.actions))


def test_the_variance_of_an_action_is_that_over_all_matrices():
    network = network_of()
    outputs, _ = network(torch.tensor([[0.3, -0.7, 0.5]]))
    noise = network.distribution.noise((100_000,), torch.Generator().manual_seed(0))
    samples = network.distribution.sample(outputs.expand(100_000, -1), noise)
    parts = network.distribution.parts(outputs)
    torch.testing.assert_close(samples.mean(0), parts["mean"][0], atol=0.01, rtol=0)
    torch.testing.assert_close(samples.std(0).log(), parts["log_std"][0], atol=0.01, rtol=0)
    assert network.mean_std(torch.tensor([[0.3, -0.7, 0.5]])) == pytest.approx(samples.std(0).mean().item(), rel=0.01)


def test_deviations_learn_and_do_not_move_the_features():
    network = network_of().requires_grad_(True)
    outputs, _ = network(torch.ones(4, 3))
    network.distribution.entropy(outputs).sum().backward()
    assert network.distribution.log_std.grad.abs().min() > 0
    assert network.actor[0].weight.grad is None or not network.actor[0].weight.grad.any()


def test_the_most_probable_action_has_no_noise():
    network = network_of()
    outputs, _ = network(torch.ones(4, 3))
    assert torch.equal(network.distribution.mode(outputs), outputs[:, :2])


@pytest.mark.parametrize("every", [0, -2])
def test_a_matrix_for_no_step_is_refused(every):
    with pytest.raises(UsageError, match=f"sde_sample_freq={every} must be at least 1, or -1 for once a rollout"):
        make_distribution(ACTIONS, continuous="gsde", sde_sample_freq=every)


def test_who_asks_for_its_outputs_before_there_are_features_is_told_the_way():
    distribution = make_distribution(ACTIONS, continuous="gsde")
    with pytest.raises(UsageError, match=r"output layer with self\.distribution\.output_layer\(units\)$"):
        distribution.num_outputs  # noqa: B018
    distribution.output_layer(5)
    assert distribution.num_outputs == 7
    with pytest.raises(AttributeError):
        distribution.no_such_thing  # noqa: B018
