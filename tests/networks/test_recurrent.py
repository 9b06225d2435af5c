"""Networks with a memory: what they remember, forget, and learn from."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from torch import nn

from pl_rl import RecurrentActorCritic, UsageError
from pl_rl.algorithm.loss import Coefficients, Minibatch, PPOLoss
from pl_rl.networks.records import MASK, ActionMask, Memory, Remembered, as_samples

SPACE, ACTIONS = Box(-1.0, 1.0, (3,), np.float32), Discrete(2)


def network_of(memory, **settings):
    torch.manual_seed(0)
    return RecurrentActorCritic(SPACE, ACTIONS, memory=memory, memory_size=4, sequence_length=6, **settings)


@pytest.mark.parametrize("memory", ["lstm", "gru"])
def test_a_sequence_is_its_steps_one_after_another(memory):
    network = network_of(memory)
    obs, begins = torch.randn(2, 6, 3), torch.zeros(2, 6, dtype=torch.bool)
    begins[0, 2] = begins[1, 0] = True
    state = torch.randn(2, network.first_memory(1).state.shape[1])
    states = state.unsqueeze(1).expand(-1, 6, -1)
    outputs, values = network(Remembered(obs, Memory(states, begins)))
    for step in range(6):
        step_outputs, step_values, state = network.step(Remembered(obs[:, step], Memory(state, begins[:, step])))
        torch.testing.assert_close(outputs[:, step], step_outputs)
        torch.testing.assert_close(values[:, step], step_values)


@pytest.mark.parametrize(("memory", "layer"), [("lstm", nn.LSTM), ("gru", nn.GRU)])
def test_the_cell_is_torchs(memory, layer):
    network = network_of(memory)
    reference, obs = layer(3, 4, batch_first=True), torch.randn(2, 6, 3)
    reference.load_state_dict({f"{name}_l0": tensor for name, tensor in network.critic_memory.state_dict().items()})
    first = network.first_memory(2)
    seen = Remembered(obs, Memory(first.state.unsqueeze(1).expand(-1, 6, -1), torch.zeros(2, 6, dtype=torch.bool)))
    torch.testing.assert_close(network.value(seen), network.critic(reference(obs)[0]).squeeze(-1))


def test_an_episode_remembers_nothing_of_the_one_before():
    network = network_of("lstm")
    obs, begins = torch.randn(1, 3), torch.ones(1, dtype=torch.bool)
    fresh = network.step(Remembered(obs, network.first_memory(1)))
    later = network.step(Remembered(obs, Memory(torch.randn(1, 16), begins)))
    assert all(map(torch.equal, fresh, later))
    assert not torch.equal(network.step(Remembered(obs, Memory(torch.randn(1, 16), ~begins)))[0], fresh[0])


def test_samples_are_sequences_of_one_environment():
    steps = torch.arange(4 * 3).view(4, 3)  # step * 3 + environment
    assert as_samples(steps, 2).tolist() == [[0, 3], [1, 4], [2, 5], [6, 9], [7, 10], [8, 11]]
    assert as_samples(steps, None).tolist() == list(range(12))


class Sum(nn.Module):
    """A memory that adds up what it sees, with a weight."""

    hidden_size = 1

    def __init__(self):
        super().__init__()
        self.weight_hh = nn.Parameter(torch.tensor([[0.5]]))

    def forward(self, features, state):
        return features + self.weight_hh * state


def test_a_sequence_is_learnt_from_as_worked_out_by_hand():
    """The memory is m_t = x_t + w m_(t-1) with w = 0.5, the value v_t = m_t, the loss half of (v_t - R_t)^2, averaged.

    One environment, L = 4, the stored state is 2, an episode begins at the third step: x = 1, 2, 3, 4 gives
    m = 1 + 1, 2 + 1, 3, 4 + 1.5 = 2, 3, 3, 5.5. With R = 0 the derivative by w is the mean of m_t dm_t/dw,
    dm_0 = 2, dm_1 = m_0 + 0.5 * 2 = 3, dm_2 = 0 (it begins), dm_3 = m_2 + 0.5 * 0 = 3:
    (2 * 2 + 3 * 3 + 0 + 5.5 * 3) / 4 = 7.375.
    """
    network = RecurrentActorCritic(
        Box(-9.0, 9.0, (1,), np.float32), ACTIONS, memory_size=1, sequence_length=4, actor_sizes=(), critic_sizes=()
    )
    network.critic_memory = Sum()
    nn.init.ones_(network.critic[0].weight)
    obs, begins = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]]), torch.tensor([[False, False, True, False]])
    # Only the state at the sequence's first step counts.
    seen = Remembered(obs, Memory(torch.tensor([[[0.0, 2.0], [0.0, 7.0], [0.0, 7.0], [0.0, 7.0]]]), begins))
    network.actor_memory = Sum()
    assert network.value(seen).tolist() == [[2, 3, 3, 5.5]]
    zeros = torch.zeros(1, 4)
    minibatch = Minibatch(seen, zeros.long(), zeros, zeros, zeros, zeros)
    loss, _ = PPOLoss(network, clip_vloss=False)(minibatch, Coefficients(torch.tensor(0.2), 1.0, 0.0, 0.2))
    loss.backward()
    assert network.critic_memory.weight_hh.grad.item() == pytest.approx(7.375)


def test_what_only_the_critic_sees_stays_out_of_the_policys_memory():
    space = Dict({"x": SPACE, "secret": SPACE, MASK: ActionMask(2)})
    network = RecurrentActorCritic(space, ACTIONS, memory_size=4, sequence_length=2, critic_keys=["secret"])
    obs = {"x": torch.randn(3, 2, 3), "secret": torch.randn(3, 2, 3), MASK: torch.tensor([0, 1]).expand(3, 2, 2)}
    memory = Memory(torch.zeros(3, 2, 16), torch.zeros(3, 2, dtype=torch.bool))
    outputs, values = network(Remembered(obs, memory))
    assert (outputs.shape, values.shape) == ((3, 2, 2), (3, 2)) and (outputs.argmax(-1) == 1).all()
    other = {**obs, "secret": torch.randn(3, 2, 3)}
    assert torch.equal(network(Remembered(other, memory))[0], outputs)
    assert not torch.equal(network(Remembered(other, memory))[1], values)
    del other["secret"]
    assert torch.equal(network.policy(Remembered(other, memory)), outputs)


@pytest.mark.parametrize("name", ["memory_size", "sequence_length"])
def test_a_memory_without_units_or_steps_is_refused(name):
    with pytest.raises(UsageError, match=f"{name}=0 must be at least 1"):
        RecurrentActorCritic(SPACE, ACTIONS, **{name: 0})
