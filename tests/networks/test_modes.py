"""The mode in which a network acts: how often it is asked changes nothing in what it learns."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from pl_rl.networks.actor_critic import ActorCritic
from pl_rl.networks.modes import evaluation_mode
from pl_rl.pretrained.freezing import policy_parameters
from tests.support import MemoryLogger, fit, same_bits, small_ppo


class Layered(ActorCritic):
    """An encoder with one more layer, for actor and critic."""

    def __init__(self, observation_space, action_space, layer):
        super().__init__(observation_space, action_space)
        self.encoder = nn.Sequential(nn.Linear(4, 8), layer(), nn.Tanh())
        self.actor, self.critic = nn.Linear(8, 2), nn.Linear(8, 1)
        self.modes = []

    def policy(self, obs):
        self.modes.append(self.training)
        return self.actor(self.encoder(obs))

    def value(self, obs):
        return self.critic(self.encoder(obs)).squeeze(-1)


class Draws(nn.Module):
    """Draws from the global generator in either mode."""

    def forward(self, x):
        return x + 0.01 * torch.randn_like(x)


LAYERS = {
    "dropout": partial(nn.Dropout, 0.3),
    "batch norm": partial(nn.BatchNorm1d, 8),
    "both": lambda: nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.3)),
    "noise": Draws,
}


def layered(kind, **settings):
    return small_ppo(network=partial(Layered, layer=LAYERS[kind]), compile_update=False, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("kind", LAYERS)
def test_how_often_is_evaluated_changes_nothing_in_training(kind):
    results = []
    for eval_freq, deterministic in [(0, True), (4, True), (1, False)]:
        model = layered(kind, eval_freq=eval_freq, eval_deterministic=deterministic, eval_episodes=2)
        fit(model)
        results.append(model.state_dict())
    assert same_bits(results[0], results[1])
    assert same_bits(results[0], results[2])


@pytest.mark.parametrize("kind", ["dropout", "batch norm", "both"])
def test_validation_repeats_the_number_of_training(kind):
    logger = MemoryLogger()
    model = layered(kind, eval_freq=32)
    trainer = fit(model, logger=logger)
    _, (step, final) = logger.points("evaluator_iter/return_mean")
    assert step == 32
    for training in (True, False):
        model.train(training)
        (result,) = trainer.validate(model, verbose=False)
        assert result["evaluator/return_mean"] == np.float32(final)


def test_rollouts_and_evaluations_act_in_evaluation_mode_and_updates_learn_in_training_mode():
    model = layered("dropout", eval_freq=32)
    learning = []
    step = model._learn
    model._learn = lambda *args: (learning.append(model.network.training), step(*args))[1]
    fit(model)
    assert learning == [True] * 8
    # 4 updates in each of the 8 iterations, and all else.
    assert sum(model.network.modes) == 32
    assert len(model.network.modes) > 32 + 8 * 16


def test_the_probabilities_of_a_rollout_are_those_that_its_actions_were_drawn_with():
    """With dropout in them, no update would find them again."""
    model = layered("dropout")
    rollouts = []
    step = model.training_step

    def remembering_step(rollout, batch_idx):
        rollouts.append((rollout, {name: tensor.clone() for name, tensor in model.network.state_dict().items()}))
        return step(rollout, batch_idx)

    model.training_step = remembering_step

    fit(model)
    rollout, state = rollouts[3]
    model.network.load_state_dict(state)
    with torch.no_grad(), evaluation_mode(model.network):
        outputs = model.network.policy(rollout.obs.flatten(0, 1))
    log_probs = model.network.distribution.log_prob(outputs, rollout.actions.flatten())
    torch.testing.assert_close(log_probs, rollout.log_probs.flatten())


class Switches(nn.Module):
    """Keeps its norm frozen, and remembers what it was told."""

    def __init__(self):
        super().__init__()
        self.norm, self.told = nn.BatchNorm1d(2), []

    def train(self, mode=True):
        self.told.append(mode)
        super().train(mode)
        self.norm.eval()
        return self


@pytest.mark.parametrize("failing", [False, True])
def test_each_part_is_in_its_own_mode_again(failing):
    network = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()), Switches(), nn.Dropout())
    network.train()
    network[1].eval()
    network[1][1].train()
    before = {name: part.training for name, part in network.named_modules()}
    assert sorted(set(before.values())) == [False, True]
    network[2].told.clear()
    try:
        with evaluation_mode(network, None):
            assert not any(part.training for part in network.modules())
            assert network[2].told == [False]
            if failing:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert {name: part.training for name, part in network.named_modules()} == before
    assert network[2].told == [False, True]


def test_a_frozen_norm_stays_frozen_in_a_run():
    model = layered("batch norm", eval_freq=4)
    norm = model.network.encoder[1]
    before = norm.running_mean.clone()
    model.on_train_epoch_start = lambda: norm.eval()
    fit(model)
    assert not norm.training and model.network.training
    assert torch.equal(norm.running_mean, before)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_a_scripted_part_changes_its_mode_too():
    network = nn.Sequential(torch.jit.script(nn.Dropout(0.5)))
    ones = torch.ones(1000)
    with evaluation_mode(network):
        assert torch.equal(network(ones), ones)
    assert not torch.equal(network(ones), ones)


def test_finding_what_a_policy_depends_on_moves_no_statistics():
    network = Layered(gym.spaces.Box(-1, 1, (4,)), gym.spaces.Discrete(2), LAYERS["both"])
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random_state = torch.get_rng_state()
    assert {"encoder.0.weight", "actor.bias"} <= policy_parameters(network)
    assert same_bits(before, network.state_dict())
    assert torch.equal(random_state, torch.get_rng_state())
