"""Policy and value networks.

Shapes: ``B`` observations of any batch, ``P`` outputs of the policy (see :mod:`pl_rl.networks.distributions`).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import gymnasium as gym
import torch
from torch import Tensor, nn

from pl_rl.errors import UsageError
from pl_rl.networks.distributions import Continuous, DiagonalGaussian, make_distribution
from pl_rl.networks.layers import NATURE, Activation, convolutions, convolved, is_image, linear, mlp, value_layer
from pl_rl.networks.modes import evaluation_mode
from pl_rl.networks.observations import input_layer
from pl_rl.networks.records import MASK, ActionMask, Memory, entries_of


class ActorCritic(nn.Module, ABC):
    """Base class of networks: a policy and a value function over one observation space.

    A subclass takes ``(observation_space, action_space, ...)``, passes them on here and implements
    :meth:`policy` and :meth:`value`; where the two share layers it also overrides :meth:`forward`, so that an
    update computes the shared part once.

    Args:
        observation_space: Of a single environment.
        action_space: Of a single environment; decides ``self.distribution``.
        log_std_init: Initial log standard deviation of Gaussian actions.
        distribution: Of continuous actions.
        sde_sample_freq: Env steps between new exploration matrices of ``gsde``; -1 for once a rollout.

    Raises:
        UsageError: If the action space is not supported, or observations are neither arrays nor a dictionary of them.
    """

    __module__ = __package__  # as configs and checkpoints name it

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        log_std_init: float = 0.0,
        distribution: Continuous = "gaussian",
        sde_sample_freq: int = -1,
    ) -> None:
        super().__init__()
        if any(space.shape is None or space.dtype is None for space in entries_of(observation_space).values()):
            raise UsageError(
                f"observations must be arrays of one shape, not {observation_space}; flatten them with "
                "--model.env.wrappers '[gymnasium.wrappers.FlattenObservation]', a dictionary's entries chosen by "
                "gymnasium.wrappers.FilterObservation before it"
            )
        self.observation_space = observation_space
        self.action_space = action_space
        self.distribution = make_distribution(action_space, log_std_init, distribution, sde_sample_freq)

    @abstractmethod
    def policy(self, obs: Any) -> Tensor:
        """Policy outputs ``[B, P]`` for observations ``[B, *observation_space.shape]``, or a dictionary of them."""

    @abstractmethod
    def value(self, obs: Any) -> Tensor:
        """Values ``[B]``."""

    def forward(self, obs: Any) -> tuple[Tensor, Tensor]:
        """Policy outputs ``[B, P]`` and values ``[B]``."""
        return self.policy(obs), self.value(obs)

    sequence_length: int | None = None
    """Steps of the sequences ``[B, L]`` that a network with a memory learns from; ``None`` for one without."""

    def first_memory(self, count: int) -> Memory | None:
        """The memory of ``count`` episodes that begin; ``None`` for a network without."""
        return None

    def step(self, seen: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        """As :meth:`forward` for single steps, and the memory's state ``[B, S]`` after them.

        Args:
            seen: Observations ``[B, ...]``, with the memory at them if the network has one.
        """
        return *self(seen), None

    def policy_step(self, seen: Any) -> tuple[Tensor, Tensor | None]:
        """As :meth:`step`, without the values."""
        return self.policy(seen), None

    @property
    def policy_entries(self) -> list[str]:
        """The names of the entries that :meth:`policy` reads, of observations that are a dictionary."""
        return list(entries_of(self.observation_space))

    def masked(self, outputs: Tensor, obs: Any) -> Tensor:
        """The outputs ``[..., P]``, where the observations have an action mask those of its zeros at their lowest.

        The softmax of such a choice is zero in any precision, and its logarithm, unlike that of zero, a number.
        """
        if not isinstance(entries_of(self.observation_space).get(MASK), ActionMask):
            return outputs
        return outputs.masked_fill(obs[MASK] == 0, torch.finfo(outputs.dtype).min)

    def mean_std(self, obs: Any) -> float | None:
        """Mean standard deviation of continuous actions, over observations ``[B, ...]`` where it depends on them."""
        with torch.no_grad(), evaluation_mode(self):
            return self.distribution.mean_std(lambda: self.policy(obs))

    @property
    def _float_type(self) -> torch.dtype:
        """The type of the first parameter of floats; quantized ones do not count."""
        return next(parameter.dtype for parameter in self.parameters() if parameter.is_floating_point())


class MLPActorCritic(ActorCritic):
    """Fully connected networks for vector observations.

    With ``encoder_sizes`` the policy and the value function share these layers; without, they share nothing.
    All weights are orthogonal, biases zero (detail 2 of
    https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/).

    Args:
        observation_space: A ``Box`` with one dimension, ``MultiBinary``, or ``Discrete`` or ``MultiDiscrete``, whose
            choices are one-hot encoded.
        action_space: ``Discrete``, ``MultiDiscrete``, ``MultiBinary`` or a ``Box`` of floats.
        encoder_sizes: Widths of the shared hidden layers.
        actor_sizes: Widths of the policy's own hidden layers.
        critic_sizes: Widths of the value function's own hidden layers.
        activation: Follows each hidden layer.
        log_std_init: Initial log standard deviation of Gaussian actions.
        tanh_mean: Bound the mean of continuous actions to (-1, 1) by tanh, as DI-engine's ``bound_type="tanh"`` does.
        distribution: Of continuous actions: a Gaussian whose standard deviations are parameters or predicted from the
            observation, and whose samples are clipped to the bounds, or whose noise is linear in the last hidden
            layer (``gsde``); or one squashed to them by tanh, or a beta distribution between them.
        sde_sample_freq: Env steps between new exploration matrices of ``gsde``; -1 for once a rollout.
        hidden_gain: Of the initial weights of hidden layers.
        policy_gain: Of those of the policy's outputs; it starts close to uniform if this is small.
        value_gain: Of those of the value.

    Raises:
        UsageError: If a space is not supported, a width is not positive, or actions without a mean are bounded.
    """

    __module__ = __package__  # as configs and checkpoints name it

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        encoder_sizes: Sequence[int] = (),
        actor_sizes: Sequence[int] = (64, 64),
        critic_sizes: Sequence[int] = (64, 64),
        activation: Activation = "tanh",
        log_std_init: float = 0.0,
        tanh_mean: bool = False,
        distribution: Continuous = "gaussian",
        sde_sample_freq: int = -1,
        hidden_gain: float = math.sqrt(2),
        policy_gain: float = 0.01,
        value_gain: float = 1.0,
    ) -> None:
        super().__init__(observation_space, action_space, log_std_init, distribution, sde_sample_freq)
        if tanh_mean and type(self.distribution) is not DiagonalGaussian:
            wanted = "continuous actions" if distribution == "gaussian" else "distribution=gaussian"
            given = action_space if distribution == "gaussian" else distribution
            raise UsageError(f"tanh_mean=true needs {wanted}, not {given}; leave it out")
        layer = input_layer(observation_space)
        if layer is None:
            images = is_image(observation_space)
            raise UsageError(
                "MLPActorCritic needs vector observations (a Box with one dimension, Discrete, MultiDiscrete or "
                f"MultiBinary), not {observation_space}; "
                + ("for images there is --model.network.class_path pl_rl.networks.CNNActorCritic; " if images else "")
                + "for anything else pl_rl.networks.MultiInputActorCritic; "
                + "flatten them with --model.env.wrappers '[gymnasium.wrappers.FlattenObservation]', or name a network "
                "of your own with --model.network.class_path"
            )
        for name, sizes in [("encoder", encoder_sizes), ("actor", actor_sizes), ("critic", critic_sizes)]:
            if any(size < 1 for size in sizes):
                raise UsageError(f"{name}_sizes={list(sizes)} has a layer without units; use widths of 1 or more")
        self.inputs, inputs = layer
        features = encoder_sizes[-1] if encoder_sizes else inputs
        policy_layer = partial(self.distribution.output_layer, gain=policy_gain)
        self.encoder = mlp([inputs, *encoder_sizes], activation, gain=hidden_gain)
        self.actor = mlp([features, *actor_sizes], activation, policy_layer, hidden_gain)
        self.critic = mlp([features, *critic_sizes], activation, partial(value_layer, gain=value_gain), hidden_gain)
        self.activation = activation
        self.tanh_mean = tanh_mean
        self.continuous = distribution

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
        if self.inputs is not None:
            obs = self.inputs(obs)
        features: Tensor = self.encoder(obs.to(self._float_type))
        return features


class CNNActorCritic(ActorCritic):
    """The convolutional network of deep Q-learning, shared by policy and value function.

    Three convolutions (32 filters of 8x8 with stride 4, 64 of 4x4 with stride 2, 64 of 3x3 with stride 1) and a hidden
    layer of 512 units, each followed by ReLU (https://www.nature.com/articles/nature14236, methods, "model
    architecture"); pixels are divided by 255. All weights are orthogonal, with the gains of :class:`MLPActorCritic`,
    and biases zero.

    Args:
        observation_space: Images, ``Box(0, 255, (C, H, W), uint8)`` or ``(H, W, C)``: the channels (or stacked frames)
            are the first or the last dimension, whichever is smaller.
        action_space: ``Discrete``, ``MultiDiscrete``, ``MultiBinary`` or a ``Box`` of floats.
        log_std_init: Initial log standard deviation of Gaussian actions.
        distribution: Of continuous actions, as of :class:`MLPActorCritic`.
        sde_sample_freq: As there.

    Raises:
        UsageError: If a space is not supported, or the images are smaller than 36x36.
    """

    __module__ = __package__  # as configs and checkpoints name it

    SMALLEST = 36

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        log_std_init: float = 0.0,
        distribution: Continuous = "gaussian",
        sde_sample_freq: int = -1,
    ) -> None:
        super().__init__(observation_space, action_space, log_std_init, distribution, sde_sample_freq)
        if not is_image(observation_space):
            raise UsageError(
                f"CNNActorCritic needs images, a Box of uint8 with three dimensions, not {observation_space}; get them "
                "with gymnasium.wrappers.FrameStackObservation or AddRenderObservation in env.wrappers, or "
                "use MLPActorCritic for vectors"
            )
        shape = cast(tuple[int, int, int], observation_space.shape)
        self._channels_last = shape[2] < shape[0]
        height, width = shape[:2] if self._channels_last else shape[1:]
        if min(height, width) < self.SMALLEST:
            raise UsageError(
                f"CNNActorCritic needs images of {self.SMALLEST}x{self.SMALLEST} pixels or more, not "
                f"{height}x{width}; enlarge them with gymnasium.wrappers.ResizeObservation, or flatten them with "
                "gymnasium.wrappers.FlattenObservation in env.wrappers and use MLPActorCritic"
            )
        self.convolutions = convolutions(shape[2] if self._channels_last else shape[0], NATURE)
        features = 64 * convolved(height, NATURE) * convolved(width, NATURE)
        self.hidden = linear(features, 512, gain=math.sqrt(2))
        self.actor = self.distribution.output_layer(512)
        self.critic = value_layer(512)

    def policy(self, obs: Tensor) -> Tensor:
        """Policy outputs ``[B, P]`` for images ``[B, *observation_space.shape]``."""
        outputs: Tensor = self.actor(self._features(obs))
        return outputs

    def value(self, obs: Tensor) -> Tensor:
        """Values ``[B]`` for images ``[B, *observation_space.shape]``."""
        values: Tensor = self.critic(self._features(obs))
        return values.squeeze(-1)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Policy outputs ``[B, P]`` and values ``[B]``, the shared layers computed once."""
        features = self._features(obs)
        return self.actor(features), self.critic(features).squeeze(-1)

    def _features(self, obs: Tensor) -> Tensor:
        """``[B, 512]``"""
        pixels = obs.to(self._float_type) / 255
        if self._channels_last:
            pixels = pixels.permute(0, 3, 1, 2)
        features: Tensor = self.hidden(self.convolutions(pixels)).relu()
        return features
