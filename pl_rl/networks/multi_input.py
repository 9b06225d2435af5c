"""Networks over several inputs: dictionaries of vectors, images and choices.

Shapes: ``B`` observations of any batch, ``P`` outputs of the policy, ``D`` features.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, cast

import gymnasium as gym
import torch
from torch import Tensor, nn

from pl_rl.errors import UsageError
from pl_rl.networks.actor_critic import ActorCritic
from pl_rl.networks.distributions import Continuous
from pl_rl.networks.layers import NATURE, Activation, Convolution, convolutions, convolved, is_image, mlp, value_layer
from pl_rl.networks.observations import OneHot
from pl_rl.networks.records import ActionMask, Observations, entries, entries_of, matching

# For pictures that are too small for those of deep Q-learning, such as MiniGrid's of 7x7.
SMALL: tuple[Convolution, ...] = ((16, 2, 1), (32, 2, 1), (64, 2, 1))
SMALLEST_IMAGE = 4
IMAGE_FEATURES = (512,)


class EncodingActorCritic(ActorCritic):
    """Base class of networks with an encoder for each entry of the observations.

    Args:
        observation_space: As :class:`MultiInputActorCritic`; so are the others.
        action_space: The same.
        encoder_sizes: The same.
        cnn_keys: The same.
        critic_keys: The same.
        activation: The same.
        log_std_init: The same.
        distribution: The same.
        sde_sample_freq: The same.

    Attributes:
        features: ``D``, of the joined encoders of what the policy sees.
        critic_features: Likewise, of what the value function sees.

    Raises:
        UsageError: If a space is not supported, a pattern matches no entry, or the policy would see nothing.
    """

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        encoder_sizes: dict[str, Sequence[int]] | None,
        cnn_keys: Sequence[str],
        critic_keys: Sequence[str],
        activation: str,
        log_std_init: float,
        distribution: Continuous,
        sde_sample_freq: int,
    ) -> None:
        super().__init__(observation_space, action_space, log_std_init, distribution, sde_sample_freq)
        spaces = {
            name: space for name, space in entries_of(observation_space).items() if not isinstance(space, ActionMask)
        }
        self._for_critic = matching(spaces, critic_keys, "critic_keys")
        self._for_both = [name for name in spaces if name not in self._for_critic]
        if not self._for_both:
            raise UsageError(f"critic_keys={list(critic_keys)} leaves nothing that the policy sees; leave an entry out")
        matching(spaces, encoder_sizes or (), "encoder_sizes")
        pictures = matching(spaces, cnn_keys, "cnn_keys")
        encoders = {}
        for name in (*self._for_both, *self._for_critic):
            sizes = next((of for pattern, of in (encoder_sizes or {}).items() if fnmatchcase(name, pattern)), None)
            encoders[name] = _encoder(name, spaces[name], sizes, activation, name in pictures)
        # By number, as a module's name can have no dot.
        self.encoders = nn.ModuleList(encoders.values())
        self._numbers = {name: number for number, name in enumerate(encoders)}
        self.features = sum(encoders[name].features for name in self._for_both)
        self.critic_features = sum(encoder.features for encoder in encoders.values())

    def _make_heads(self, actor_sizes: Sequence[int], critic_sizes: Sequence[int], activation: str) -> None:
        """The policy and the value function; the first of their sizes are of what they take."""
        self.actor = mlp(actor_sizes, activation, self.distribution.output_layer)
        self.critic = mlp(critic_sizes, activation, value_layer)

    @property
    def policy_entries(self) -> list[str]:
        """All but those that only the value function sees."""
        return [name for name in super().policy_entries if name not in self._for_critic]

    def _act(self, features: Tensor, obs: Observations) -> Tensor:
        """Policy outputs ``[..., P]`` of features ``[..., D]``."""
        return self.masked(self.actor(features), obs)

    def _judge(self, features: Tensor) -> Tensor:
        """Values ``[...]`` of features ``[..., D]``."""
        values: Tensor = self.critic(features)
        return values.squeeze(-1)

    def _encode(self, obs: Observations) -> Tensor:
        """What the policy sees, ``[..., D]``."""
        return torch.cat(self._encoded(obs, self._for_both), -1)

    def _encode_more(self, features: Tensor, obs: Observations) -> Tensor:
        """What the value function sees, ``[..., D]``: what the policy sees, and more."""
        return torch.cat([features, *self._encoded(obs, self._for_critic)], -1) if self._for_critic else features

    def _encoded(self, obs: Observations, names: Sequence[str]) -> list[Tensor]:
        given, dtype = entries(obs), self._float_type
        return [cast(Tensor, self.encoders[self._numbers[name]](given[name], dtype)) for name in names]


class MultiInputActorCritic(EncodingActorCritic):
    """An encoder for each entry of the observations, their outputs joined, and a policy and a value function over them.

    Vectors pass an MLP; images (a ``Box`` of uint8 with three dimensions), divided by 255, convolutions and a hidden
    layer, each followed by ReLU. ``Discrete`` and ``MultiDiscrete`` are one-hot and ``MultiBinary`` zeros and ones,
    before an MLP; its first layer is then an embedding. Weights are as in :class:`MLPActorCritic`. Where the
    environment has an action mask, choices that it rules out have probability zero.

    Args:
        observation_space: A ``Dict`` of such spaces by path, as environments give them here, or one of them alone.
        action_space: ``Discrete``, ``MultiDiscrete``, ``MultiBinary`` or a ``Box`` of floats.
        encoder_sizes: Widths of the hidden layers of an entry's encoder, by the first pattern that matches its name;
            by default none, and 512 after convolutions.
        cnn_keys: Patterns of the images that pass convolutions; the others are vectors, and not divided.
        critic_keys: Patterns of entries that only the value function sees; a policy that acts does without them.
        actor_sizes: Widths of the policy's own hidden layers.
        critic_sizes: Widths of the value function's own hidden layers.
        activation: Follows each hidden layer but those of convolutions.
        log_std_init: Initial log standard deviation of Gaussian actions.
        distribution: Of continuous actions, as of :class:`MLPActorCritic`.
        sde_sample_freq: As there.

    Raises:
        UsageError: If a space is not supported, a pattern matches no entry, or the policy would see nothing.
    """

    __module__ = __package__  # as configs and checkpoints name it

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        encoder_sizes: dict[str, Sequence[int]] | None = None,
        cnn_keys: Sequence[str] = ("*",),
        critic_keys: Sequence[str] = (),
        actor_sizes: Sequence[int] = (64, 64),
        critic_sizes: Sequence[int] = (64, 64),
        activation: Activation = "tanh",
        log_std_init: float = 0.0,
        distribution: Continuous = "gaussian",
        sde_sample_freq: int = -1,
    ) -> None:
        encoding = encoder_sizes, cnn_keys, critic_keys, activation
        super().__init__(observation_space, action_space, *encoding, log_std_init, distribution, sde_sample_freq)
        self._make_heads([self.features, *actor_sizes], [self.critic_features, *critic_sizes], activation)

    def policy(self, obs: Any) -> Tensor:
        """Policy outputs ``[B, P]``; of the observations only :attr:`policy_entries` are needed."""
        return self._act(self._encode(obs), obs)

    def value(self, obs: Any) -> Tensor:
        """Values ``[B]``."""
        return self._judge(self._encode_more(self._encode(obs), obs))

    def forward(self, obs: Any) -> tuple[Tensor, Tensor]:
        """Policy outputs ``[B, P]`` and values ``[B]``, the encoders computed once."""
        features = self._encode(obs)
        return self._act(features, obs), self._judge(self._encode_more(features, obs))


class Encoder(nn.Module, ABC):
    """Features of one entry.

    Args:
        space: Of the entry.
        inputs: Numbers of it that the hidden layers take.
        sizes: Widths of the hidden layers.
        activation: Follows each.

    Attributes:
        features: ``D``.
    """

    def __init__(self, space: gym.Space[Any], inputs: int, sizes: Sequence[int], activation: str) -> None:
        super().__init__()
        self._dimensions = len(space.shape or ())
        self.features = sizes[-1] if sizes else inputs
        self.layers = mlp([inputs, *sizes], activation)

    def forward(self, obs: Tensor, dtype: torch.dtype) -> Tensor:
        """``[..., *space.shape]`` -> ``[..., D]``"""
        batch = obs.shape[: obs.ndim - self._dimensions]
        if len(batch) == 1:
            return cast(Tensor, self.layers(self.inputs(obs, dtype)))
        features: Tensor = self.layers(self.inputs(obs.flatten(0, len(batch) - 1), dtype))
        return features.view(*batch, -1)

    @abstractmethod
    def inputs(self, obs: Tensor, dtype: torch.dtype) -> Tensor:
        """What the hidden layers take of ``[B, *space.shape]``."""


class VectorEncoder(Encoder):
    """An MLP over numbers of any shape."""

    def __init__(self, space: gym.Space[Any], sizes: Sequence[int], activation: str) -> None:
        super().__init__(space, math.prod(space.shape or ()), sizes, activation)

    def inputs(self, obs: Tensor, dtype: torch.dtype) -> Tensor:
        """The numbers as one vector."""
        return obs.to(dtype).flatten(1)


class ChoiceEncoder(Encoder):
    """An MLP over choices, which are one-hot.

    Args:
        space: ``Discrete`` or ``MultiDiscrete``.
        sizes: Widths of the hidden layers.
        activation: Follows each.
    """

    def __init__(
        self, space: gym.spaces.Discrete | gym.spaces.MultiDiscrete, sizes: Sequence[int], activation: str
    ) -> None:
        one_hot = OneHot(space)
        super().__init__(space, one_hot.num_outputs, sizes, activation)
        self.one_hot = one_hot

    def inputs(self, obs: Tensor, dtype: torch.dtype) -> Tensor:
        """A one for each choice that is made."""
        return cast(Tensor, self.one_hot(obs)).to(dtype)


class ImageEncoder(Encoder):
    """Convolutions and hidden layers with ReLU over pixels that are divided by 255.

    Args:
        space: ``(C, H, W)`` or ``(H, W, C)``: the channels are the first or the last dimension, whichever is smaller.
        sizes: Widths of the hidden layers.
    """

    def __init__(self, space: gym.spaces.Box, sizes: Sequence[int]) -> None:
        shape = space.shape
        channels_last = shape[2] < shape[0]
        channels, (height, width) = (shape[2], shape[:2]) if channels_last else (shape[0], shape[1:])
        filters = NATURE if min(convolved(edge, NATURE) for edge in (height, width)) > 0 else SMALL
        inputs = filters[-1][0] * convolved(height, filters) * convolved(width, filters)
        super().__init__(space, inputs, sizes, "relu")
        self.convolutions = convolutions(channels, filters)
        self._channels_last = channels_last

    def inputs(self, obs: Tensor, dtype: torch.dtype) -> Tensor:
        """The result of the convolutions."""
        pixels = obs.to(dtype) / 255
        return cast(Tensor, self.convolutions(pixels.permute(0, 3, 1, 2) if self._channels_last else pixels))


def _encoder(name: str, space: gym.Space[Any], sizes: Sequence[int] | None, activation: str, as_image: bool) -> Encoder:
    """The encoder of an entry.

    Raises:
        UsageError: If there is none for its space, or a width is not positive.
    """
    if any(size < 1 for size in sizes or ()):
        raise UsageError(f"encoder_sizes of {name!r} has a layer without units; use widths of 1 or more")
    if as_image and isinstance(space, gym.spaces.Box) and is_image(space):
        if sorted(space.shape)[1] < SMALLEST_IMAGE:
            raise UsageError(
                f"{name!r} is a picture of {space.shape}, too small for convolutions; leave it out of cnn_keys, so "
                "that an MLP takes it"
            )
        return ImageEncoder(space, IMAGE_FEATURES if sizes is None else sizes)
    if isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete):
        return ChoiceEncoder(space, sizes or (), activation)
    if isinstance(space, gym.spaces.Box | gym.spaces.MultiBinary):
        return VectorEncoder(space, sizes or (), activation)
    raise UsageError(
        f"the entry {name!r} of the observations is {space}, for which there is no encoder; make it an array by a "
        "wrapper, or name a network of your own with --model.network.class_path"
    )
