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
from pl_rl.networks.multi_input import EncodingActorCritic
from pl_rl.networks.records import Memory, Remembered

CELLS: dict[str, type[nn.LSTMCell | nn.GRUCell]] = {"lstm": nn.LSTMCell, "gru": nn.GRUCell}


class RecurrentActorCritic(EncodingActorCritic):
    """As :class:`MultiInputActorCritic`, with an LSTM or a GRU between the joined encoders and both heads.

    A rollout keeps the memory's state at each step, and it is learnt from in sequences of ``sequence_length`` steps:
    the first step of one takes the state that the rollout had there, later ones that of the present weights, anew where
    an episode begins. Gradients do not reach back over the beginning of a sequence. Weights of the memory are
    orthogonal and its biases zero.

    Args:
        observation_space: As :class:`MultiInputActorCritic`.
        action_space: ``Discrete``, ``MultiDiscrete``, ``MultiBinary`` or a ``Box`` of floats.
        memory: Kind of the cell.
        memory_size: Units of the memory.
        sequence_length: Steps of a sequence; divides num_steps and minibatch_size.
        encoder_sizes: As :class:`MultiInputActorCritic`; so are the others.
        cnn_keys: The same.
        critic_keys: The same.
        actor_sizes: The same.
        critic_sizes: The same.
        activation: The same.
        log_std_init: The same.
        distribution: The same.

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
        activation: Literal["elu", "relu", "silu", "tanh"] = "tanh",
        log_std_init: float = 0.0,
        distribution: Continuous = "gaussian",
    ) -> None:
        encoding = encoder_sizes, cnn_keys, critic_keys, activation
        super().__init__(observation_space, action_space, *encoding, log_std_init, distribution)
        for name, number in [("memory_size", memory_size), ("sequence_length", sequence_length)]:
            if number < 1:
                raise UsageError(f"{name}={number} must be at least 1")
        self.sequence_length = sequence_length
        self.memory = CELLS[memory](self.features, memory_size)
        for name, parameter in self.memory.named_parameters():
            nn.init.zeros_(parameter) if name.startswith("bias") else nn.init.orthogonal_(parameter)
        self._make_heads(memory_size, actor_sizes, critic_sizes, activation)

    def first_memory(self, count: int) -> Memory:
        """Zeros ``[count, S]``; ``S`` is ``2 H`` for an LSTM and ``H`` for a GRU."""
        weight = self.memory.weight_hh
        size = self.memory.hidden_size * (2 if isinstance(self.memory, nn.LSTMCell) else 1)
        begins = torch.ones(count, dtype=torch.bool, device=weight.device)
        return Memory(torch.zeros(count, size, dtype=weight.dtype, device=weight.device), begins)

    def policy(self, seen: Remembered) -> Tensor:
        """Policy outputs ``[B, P]`` of single steps, ``[B, L, P]`` of sequences."""
        return self.policy_step(seen)[0]

    def value(self, seen: Remembered) -> Tensor:
        """Values ``[B]`` or ``[B, L]``."""
        return self._judge(self._recall(seen)[0], seen.obs)

    def forward(self, seen: Remembered) -> tuple[Tensor, Tensor]:
        """Policy outputs and values, the memory computed once."""
        return self.step(seen)[:2]

    def step(self, seen: Remembered) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`forward`, and the state ``[B, S]`` after the last step."""
        features, state = self._recall(seen)
        return self._act(features, seen.obs), self._judge(features, seen.obs), state

    def policy_step(self, seen: Remembered) -> tuple[Tensor, Tensor]:
        """As :meth:`step`, without the values."""
        features, state = self._recall(seen)
        return self._act(features, seen.obs), state

    def _recall(self, seen: Remembered) -> tuple[Tensor, Tensor]:
        """The memory's output ``[B, H]`` or ``[B, L, H]``, and its state ``[B, S]`` after the last step."""
        features, (state, begins) = self._encode(seen.obs), seen.memory
        if begins.ndim == 1:
            return self._cell(features, state, begins)
        outputs, state = [], state[:, 0]
        for step_features, step_begins in zip(features.unbind(1), begins.unbind(1), strict=True):
            output, state = self._cell(step_features, state, step_begins)
            outputs.append(output)
        return torch.stack(outputs, 1), state

    def _cell(self, features: Tensor, state: Tensor, begins: Tensor) -> tuple[Tensor, Tensor]:
        """One step: the memory's output ``[B, H]`` and its state ``[B, S]``."""
        state = state.masked_fill(begins.unsqueeze(-1), 0)
        if isinstance(self.memory, nn.LSTMCell):
            hidden, cell = state.chunk(2, -1)
            hidden, cell = self.memory(features, (hidden, cell))
            return hidden, torch.cat([hidden, cell], -1)
        state = self.memory(features, state)
        return state, state
