"""Small networks, minibatches that they learn from, and updates of them."""

import gymnasium as gym
import torch

from pl_rl import CNNActorCritic, MLPActorCritic
from pl_rl.algorithm.loss import Coefficients, Minibatch, PPOLoss
from pl_rl.algorithm.updates import EagerUpdater

COEFFICIENTS = Coefficients(torch.tensor(0.2), vf_coef=0.5, ent_coef=0.01, vf_clip_coef=0.3)
BOX = gym.spaces.Box(-1, 1, (3,))
SPACES = {"discrete": gym.spaces.Discrete(2), "continuous": gym.spaces.Box(-1, 1, (2,))}


def make_network(kind="discrete", **settings):
    torch.manual_seed(0)
    return MLPActorCritic(BOX, SPACES[kind], encoder_sizes=(8,), actor_sizes=(8,), critic_sizes=(8,), **settings)


def make_pixel_network(shape=(2, 36, 36)):
    torch.manual_seed(0)
    return CNNActorCritic(gym.spaces.Box(0, 255, shape, "uint8"), SPACES["discrete"])


def make_minibatch(network, size=64):
    generator = torch.Generator().manual_seed(1)
    obs = torch.randn(size, *network.observation_space.shape, generator=generator)
    if network.observation_space.dtype == "uint8":
        obs = (64 * obs + 128).clamp(0, 255).to(torch.uint8)
    distribution = network.distribution
    with torch.no_grad():
        outputs, values = network(obs)
        actions = distribution.sample(outputs, distribution.noise((size,), generator))
        log_probs = distribution.log_prob(outputs, actions)
    noise = torch.randn(4, size, generator=generator)
    return Minibatch(obs, actions, log_probs + 0.3 * noise[0], values + noise[1], noise[2], values + noise[3])


def adam(parameters, **settings):
    return torch.optim.Adam(parameters, **{"lr": 0.01, "eps": 1e-5, "fused": True, **settings})


def make_updates(updates_class, network, minibatch, optimizer=None, clip_vloss=False):
    loss = PPOLoss(network, clip_vloss)
    optimizer = optimizer or adam(network.parameters())
    arguments = () if updates_class is EagerUpdater else (minibatch,)
    return updates_class(loss, optimizer, *arguments)


def run(updates, minibatch, iterations=2, steps=3, max_grad_norm=0.5):
    """Metrics and gradient norms of some updates in some iterations."""
    results = []
    for _ in range(iterations):
        with updates.iteration(COEFFICIENTS, max_grad_norm):
            for _ in range(steps):
                results.append(torch.cat([updates.gradient(minibatch), updates.step().view(1)]))
    updates.close()
    return torch.stack(results)
