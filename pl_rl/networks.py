"""Policy and value networks.

Shapes: ``B`` observations of any batch, ``P`` outputs of the policy (see :mod:`pl_rl.distributions`).
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, cast

import gymnasium as gym
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from pl_rl.distributions import DiagonalGaussian, make_distribution
from pl_rl.errors import UsageError

ACTIVATIONS: dict[str, type[nn.Module]] = {"elu": nn.ELU, "relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}


class ActorCritic(nn.Module, ABC):
    """Base class of networks: a policy and a value function over one observation space.

    A subclass takes ``(observation_space, action_space, ...)``, passes them on here and implements
    :meth:`policy` and :meth:`value`; where the two share layers it also overrides :meth:`forward`, so that an
    update computes the shared part once.

    Args:
        observation_space: Of a single environment.
        action_space: Of a single environment; decides ``self.distribution``.
        log_std_init: Initial log standard deviation of continuous actions.

    Raises:
        UsageError: If the action space is not supported.
    """

    def __init__(
        self, observation_space: gym.Space[Any], action_space: gym.Space[Any], log_std_init: float = 0.0
    ) -> None:
        super().__init__()
        self.observation_space = observation_space
        self.action_space = action_space
        self.distribution = make_distribution(action_space, log_std_init)

    @abstractmethod
    def policy(self, obs: Tensor) -> Tensor:
        """Policy outputs ``[B, P]`` for observations ``[B, *observation_space.shape]``."""

    @abstractmethod
    def value(self, obs: Tensor) -> Tensor:
        """Values ``[B]``."""

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Policy outputs ``[B, P]`` and values ``[B]``."""
        return self.policy(obs), self.value(obs)


class MLPActorCritic(ActorCritic):
    """Fully connected networks for vector observations.

    With ``encoder_sizes`` the policy and the value function share these layers; without, they share nothing.
    All weights are orthogonal: gain sqrt(2) in hidden layers, 0.01 for the policy's outputs (so that it starts
    close to uniform), 1 for the value; biases are zero (detail 2 of
    https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/).

    Args:
        observation_space: A ``Box`` with one dimension.
        action_space: ``Discrete``, ``MultiDiscrete`` or a ``Box`` of floats.
        encoder_sizes: Widths of the shared hidden layers.
        actor_sizes: Widths of the policy's own hidden layers.
        critic_sizes: Widths of the value function's own hidden layers.
        activation: Follows each hidden layer.
        log_std_init: Initial log standard deviation of continuous actions.
        tanh_mean: Bound the mean of continuous actions to (-1, 1) by tanh, as DI-engine's ``bound_type="tanh"`` does.

    Raises:
        UsageError: If a space is not supported, a width is not positive, or actions without a mean are bounded.
    """

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        encoder_sizes: Sequence[int] = (),
        actor_sizes: Sequence[int] = (64, 64),
        critic_sizes: Sequence[int] = (64, 64),
        activation: Literal["elu", "relu", "silu", "tanh"] = "tanh",
        log_std_init: float = 0.0,
        tanh_mean: bool = False,
    ) -> None:
        super().__init__(observation_space, action_space, log_std_init)
        if tanh_mean and not isinstance(self.distribution, DiagonalGaussian):
            raise UsageError(f"tanh_mean=true needs continuous actions, not {action_space}; leave it out")
        if not isinstance(observation_space, gym.spaces.Box) or len(observation_space.shape) != 1:
            raise UsageError(
                f"MLPActorCritic needs vector observations (a Box with one dimension), not {observation_space}; "
                "flatten them with gymnasium.wrappers.FlattenObservation, or name a network of your own with "
                "--model.network.class_path"
            )
        for name, sizes in [("encoder", encoder_sizes), ("actor", actor_sizes), ("critic", critic_sizes)]:
            if any(size < 1 for size in sizes):
                raise UsageError(f"{name}_sizes={list(sizes)} has a layer without units; use widths of 1 or more")
        inputs = observation_space.shape[0]
        features = encoder_sizes[-1] if encoder_sizes else inputs
        self.encoder = _mlp([inputs, *encoder_sizes], activation)
        self.actor = _mlp([features, *actor_sizes], activation, self.distribution.num_outputs, gain=0.01)
        self.critic = _mlp([features, *critic_sizes], activation, 1)
        self.activation = activation
        self.tanh_mean = tanh_mean

    def policy(self, obs: Tensor) -> Tensor:
        """Policy outputs ``[B, P]`` for observations ``[B, D]``."""
        return self._act(self._encode(obs))

    def value(self, obs: Tensor) -> Tensor:
        """Values ``[B]`` for observations ``[B, D]``."""
        values: Tensor = self.critic(self._encode(obs))
        return values.squeeze(-1)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Policy outputs ``[B, P]`` and values ``[B]``, the encoder computed once."""
        features = self._encode(obs)
        return self._act(features), self.critic(features).squeeze(-1)

    def _act(self, features: Tensor) -> Tensor:
        outputs: Tensor = self.actor(features)
        return outputs.tanh() if self.tanh_mean else outputs

    def _encode(self, obs: Tensor) -> Tensor:
        features: Tensor = self.encoder(obs.to(self.critic.dtype))
        return features


class MLP(nn.Sequential):
    """Linear layers with an activation between them, and after the last one if it is a hidden layer too.

    Its forward pass goes straight to the parameters: calling a module costs as much as a small layer's arithmetic. So
    hooks on single layers do not run.

    Args:
        layers: Linear layers and activations in turn.
    """

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self._parameters_of = [cast(dict[str, Tensor], layer._parameters) for layer in layers[::2]]
        self._activations = [layer.forward for layer in layers[1::2]]

    @property
    def dtype(self) -> torch.dtype:
        """Of the first layer's weights."""
        return self._parameters_of[0]["weight"].dtype

    def forward(self, inputs: Tensor) -> Tensor:
        """Through all layers."""
        for parameters, activation in itertools.zip_longest(self._parameters_of, self._activations):
            inputs = linear(inputs, parameters["weight"], parameters["bias"])
            if activation is not None:
                inputs = activation(inputs)
        return inputs


def _mlp(sizes: Sequence[int], activation: str, outputs: int | None = None, gain: float = 1.0) -> MLP:
    """Hidden layers of the given widths, after the number of inputs, and outputs on top if there are any."""
    layers: list[nn.Module] = []
    for width, following in itertools.pairwise(sizes):
        layers += [_linear(width, following, gain=math.sqrt(2)), ACTIVATIONS[activation]()]
    if outputs is not None:
        layers.append(_linear(sizes[-1], outputs, gain))
    return MLP(*layers)


def _linear(inputs: int, outputs: int, gain: float) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer
