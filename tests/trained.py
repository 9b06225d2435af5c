"""Checkpoints of policies that have opinions: their weights are large random numbers."""

from functools import partial
from pathlib import Path

import torch

from pl_rl import MLPActorCritic
from pl_rl.deploy.policy import TrainedPolicy, load_weights, read_trained
from tests.support import quiet_trainer, small_ppo

IDENTITY = "tests.environments:PlRlTest/Identity-v0"
ECHO = "tests.environments:PlRlTest/Echo-v0"
BOX = {"id": IDENTITY, "kwargs": {"kind": "box"}}
# Each kind of action space, also with a start and with bounds that are not symmetric; each distribution; observations
# that are no vectors.
POLICIES = {
    "cartpole": {"env": "CartPole-v1"},
    "pendulum": {"env": "Pendulum-v1"},
    "discrete": {"env": {"id": IDENTITY, "kwargs": {"kind": "discrete"}}},
    "multi_discrete": {"env": {"id": IDENTITY, "kwargs": {"kind": "multi_discrete"}}},
    "box": {"env": BOX},
    "state_dependent_gaussian": {
        "env": BOX,
        "network": partial(MLPActorCritic, distribution="state_dependent_gaussian"),
    },
    "squashed_gaussian": {"env": BOX, "network": partial(MLPActorCritic, distribution="squashed_gaussian")},
    "beta": {"env": BOX, "network": partial(MLPActorCritic, distribution="beta")},
    "gsde": {"env": BOX, "network": partial(MLPActorCritic, distribution="gsde")},
    "echo_discrete": {"env": {"id": ECHO, "kwargs": {"kind": "discrete"}}},
    "echo_multi_discrete": {"env": {"id": ECHO, "kwargs": {"kind": "multi_discrete"}}},
    "echo_multi_binary": {"env": {"id": ECHO, "kwargs": {"kind": "multi_binary"}}},
}
NORMALIZED = {"pendulum, normalized": {"env": "Pendulum-v1", "norm_obs": True, "norm_reward": True}}


def checkpoint(path="last.ckpt", **settings):
    """A checkpoint's path, after an iteration."""
    model, trainer = small_ppo(**settings), quiet_trainer(max_epochs=1)
    trainer.fit(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in model.network.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / 3)
    trainer.save_checkpoint(path, weights_only=False)
    return Path(path)


def policy_of(path):
    """The policy of a checkpoint."""
    trained = read_trained(path)
    policy = TrainedPolicy(trained.settings)
    load_weights(policy, trained.tensors)
    return policy


def observations(policy, count):
    """Raw observations ``[count, ...]``."""
    example = policy.example()
    return torch.randn(count, *example.shape[1:], generator=torch.Generator().manual_seed(2)).mul(3).to(example.dtype)
