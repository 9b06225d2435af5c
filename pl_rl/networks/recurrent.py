"""Networks with a memory.

Shapes: ``B`` observations of any batch, ``L`` steps of a sequence, ``P`` outputs of the policy, ``D`` features, ``H``
units of the memory, ``S`` numbers of its state.
"""

from collections.abc import Sequence
from typing import Any, Literal

import gymnasium as gym
import torch
from torch import Tensor, nn

from pl_rl.errors import UsageError
from pl_rl.networks.distributions import Continuous
from pl_rl.networks.layers import Activation
from pl_rl.networks.multi_input import EncodingActorCritic
from pl_rl.networks.records import Memory, Remembered, entries

CELLS: dict[str, type[nn.LSTMCell | nn.GRUCell]] = {"lstm": nn.LSTMCell, "gru": nn.GRUCell}


class RecurrentActorCritic(EncodingActorCritic):
    """As :class:`MultiInputActorCritic`, with an LSTM or a GRU after the joined encoders, one each for both heads.

    A rollout keeps the state of both at each step, and it is learnt from in sequences of ``sequence_length`` steps: the
    first step of one takes the state that the rollout had there, later ones that of the present weights, anew where an
    episode begins. Gradients do not reach back over the beginning of a sequence. Weights of the memories are orthogonal
    and their biases zero.

    Args:
        observation_space: As :class:`MultiInputActorCritic`.
        action_space: ``Discrete``, ``MultiDiscrete``, ``MultiBinary`` or a ``Box`` of floats.
        memory: Kind of the cell.
        memory_size: Units of each memory.
        sequence_length: Steps of a sequence; divides num_steps and minibatch_size.
        encoder_sizes: As :class:`MultiInputActorCritic`; so are the others.
        cnn_keys: The same.
        critic_keys: The same.
        actor_sizes: The same.
        critic_sizes: The same.
        activation: The same.
        log_std_init: The same.
        distribution: The same.
        sde_sample_freq: The same.

    Raises:
        UsageError: As there; or if the memory has no units, or a sequence no steps.
    """

    __module__ = __package__  # as configs and checkpoints name it

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        memory: Literal["lstm", "gru"] = "lstm",
        memory_size: int = 64,
        sequence_length: int = 16,
        encoder_sizes: dict[str, Sequence[int]] | None = None,
        cnn_keys: Sequence[str] = ("*",),
        critic_keys: Sequence[str] = (),
        actor_sizes: Sequence[int] = (64,),
        critic_sizes: Sequence[int] = (64,),
        activation: Activation = "tanh",
        log_std_init: float = 0.0,
        distribution: Continuous = "gaussian",
        sde_sample_freq: int = -1,
    ) -> None:
        encoding = encoder_sizes, cnn_keys, critic_keys, activation
        super().__init__(observation_space, action_space, *encoding, log_std_init, distribution, sde_sample_freq)
        for name, number in [("memory_size", memory_size), ("sequence_length", sequence_length)]:
            if number < 1:
                raise UsageError(f"{name}={number} must be at least 1")
        self.sequence_length = sequence_length
        self.actor_memory = CELLS[memory](self.features, memory_size)
        self.critic_memory = CELLS[memory](self.critic_features, memory_size)
        for name, parameter in [*self.actor_memory.named_parameters(), *self.critic_memory.named_parameters()]:
            nn.init.zeros_(parameter) if name.startswith("bias") else nn.init.orthogonal_(parameter)
        self._make_heads([memory_size, *actor_sizes], [memory_size, *critic_sizes], activation)

    def first_memory(self, count: int) -> Memory:
        """Zeros ``[count, S]``: of an LSTM the output and the cell, of a GRU the output; first the policy's."""
        cell = self.actor_memory
        size = 2 * cell.hidden_size * (2 if isinstance(cell, nn.LSTMCell) else 1)
        like = next(self.actor.parameters())
        begins = torch.ones(count, dtype=torch.bool, device=like.device)
        return Memory(torch.zeros(count, size, dtype=like.dtype, device=like.device), begins)

    def policy(self, seen: Remembered) -> Tensor:
        """Policy outputs ``[B, P]`` of single steps, ``[B, L, P]`` of sequences."""
        return self.policy_step(seen)[0]

    def value(self, seen: Remembered) -> Tensor:
        """Values ``[B]`` or ``[B, L]``."""
        features = self._encode_more(self._encode(seen.obs), seen.obs)
        return self._judge(_recall(self.critic_memory, features, _halves(seen.memory)[1])[0])

    def forward(self, seen: Remembered) -> tuple[Tensor, Tensor]:
        """Policy outputs and values."""
        return self.step(seen)[:2]

    def step(self, seen: Remembered) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`forward`, and the state ``[B, S]`` after the last step."""
        (obs, memory), features = seen, self._encode(seen.obs)
        of_actor, of_critic = _halves(memory)
        acting, actor_state = _recall(self.actor_memory, features, of_actor)
        judging, critic_state = _recall(self.critic_memory, self._encode_more(features, obs), of_critic)
        return self._act(acting, obs), self._judge(judging), torch.cat([actor_state, critic_state], -1)

    def policy_step(self, seen: Remembered) -> tuple[Tensor, Tensor]:
        """As :meth:`step` without the values; the value function's memory stays as it is if it would need more."""
        if entries(seen.obs).keys() >= set(self._for_critic):
            outputs, _, whole_state = self.step(seen)
            return outputs, whole_state
        of_actor, of_critic = _halves(seen.memory)
        features, state = _recall(self.actor_memory, self._encode(seen.obs), of_actor)
        last = of_critic.state if of_critic.begins.ndim == 1 else of_critic.state[:, -1]
        return self._act(features, seen.obs), torch.cat([state, last], -1)


def _halves(memory: Memory) -> tuple[Memory, Memory]:
    """What the policy and what the value function remember."""
    actor, critic = memory.state.chunk(2, -1)
    return Memory(actor, memory.begins), Memory(critic, memory.begins)


def _recall(cell: nn.Module, features: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
    """The output ``[B, H]`` or ``[B, L, H]`` of a memory, and its state ``[B, S]`` after the last step."""
    state, begins = memory
    if begins.ndim == 1:
        return _remember(cell, features, state, begins)
    outputs, state = [], state[:, 0]
    for step_features, step_begins in zip(features.unbind(1), begins.unbind(1), strict=True):
        output, state = _remember(cell, step_features, state, step_begins)
        outputs.append(output)
    return torch.stack(outputs, 1), state


def _remember(cell: nn.Module, features: Tensor, state: Tensor, begins: Tensor) -> tuple[Tensor, Tensor]:
    """One step: the output ``[B, H]`` of a memory and its state ``[B, S]``."""
    state = state.masked_fill(begins.unsqueeze(-1), 0)
    if isinstance(cell, nn.LSTMCell):
        hidden, inner = cell(features, tuple(state.chunk(2, -1)))
        return hidden, torch.cat([hidden, inner], -1)
    state = cell(features, state)
    return state, state
