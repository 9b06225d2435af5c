"""Choosing actions: the compiled function does what single operations do."""

import gymnasium as gym
import pytest
import torch

from pl_rl import MLPActorCritic
from pl_rl.acting import CompiledActing, EagerActing
from pl_rl.errors import CompilationError
from pl_rl.networks import CNNActorCritic

VECTORS = gym.spaces.Box(-1, 1, (3,))
STEPS = 5


def decided(acting, obs, noise):
    """The decisions of a rollout, its observations filled in step by step."""
    rollout = torch.zeros_like(obs)
    acting.begin(rollout, noise)
    for t in range(len(obs)):
        rollout[t] = obs[t]
        acting.act(t)
    return acting.decided()


@pytest.mark.parametrize("num_envs", [1, 8])
@pytest.mark.parametrize(
    "actions",
    [
        gym.spaces.Discrete(4, start=2),
        gym.spaces.MultiDiscrete([3, 2]),
        gym.spaces.Box(-1, 1, (2,)),
    ],
    ids=["discrete", "multi_discrete", "continuous"],
)
def test_compiled_decisions_are_those_of_single_operations(actions, num_envs):
    torch.manual_seed(0)
    network = MLPActorCritic(VECTORS, actions)
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        with torch.no_grad():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    obs = torch.randn(STEPS, num_envs, *VECTORS.shape, generator=generator)
    noise = network.distribution.noise((STEPS, num_envs), generator)
    with torch.no_grad():
        expected = decided(EagerActing(network), obs, noise)
        compiled = CompiledActing(network, obs[0])
        compiled.load()
        for ours, theirs in zip(decided(compiled, obs, noise), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        for parameter in network.parameters():
            parameter *= 0.5  # read at each rollout
        for ours, theirs in zip(decided(compiled, obs, noise), decided(EagerActing(network), obs, noise), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_convolutions_are_left_to_single_operations():
    images = gym.spaces.Box(0, 255, (36, 36, 2), "uint8")
    with pytest.raises(CompilationError, match="convolution"):
        CompiledActing(CNNActorCritic(images, gym.spaces.Discrete(4)), torch.zeros(2, 36, 36, 2, dtype=torch.uint8))
