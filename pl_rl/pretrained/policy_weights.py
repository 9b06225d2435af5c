"""What a file of weights is read into.

Shapes: ``D`` observation dimensions, ``A`` action dimensions.
"""

from dataclasses import dataclass, field
from typing import NotRequired, TypedDict

from torch import Tensor


class Unreadable(ValueError):
    """Why a file cannot be read as a policy's weights; the sentence goes on from the file's name."""


class NetworkSettings(TypedDict):
    """The settings of an ``MLPActorCritic`` that has room for the tensors."""

    encoder_sizes: list[int]
    actor_sizes: list[int]
    critic_sizes: list[int] | None
    """``None`` where the file has no value function."""
    activation: str | None
    """``None`` where the file does not say; a note tells what the library's default is."""
    tanh_mean: NotRequired[bool]
    """Only where the file says that it is so."""
    distribution: NotRequired[str]
    """Only where the file says which one."""


class AdamState(TypedDict):
    """What Adam remembers of one parameter; the moments have its shape."""

    step: float
    exp_avg: Tensor
    exp_avg_sq: Tensor


class Normalizer(TypedDict):
    """Statistics of observations; the policy sees ``(obs - mean) / scale``, clipped to ``[-clip, clip]``."""

    mean: Tensor
    """``[D]``"""
    var: Tensor
    """``[D]``"""
    scale: Tensor
    """``[D]``, made of ``var`` and ``epsilon`` in the library's way."""
    count: float
    """How many observations the statistics are of."""
    epsilon: float
    clip: float | None


@dataclass(frozen=True)
class PolicyWeights:
    """A policy's weights under the names of ``MLPActorCritic``, and what the file tells about them.

    Attributes:
        source: The format, such as ``Stable-Baselines3 2.9.2 PPO``.
        sha256: Of the file.
        tensors: A ``state_dict`` of ``MLPActorCritic`` in float32 (``encoder.0.weight``, ``distribution.log_std``,
            ...); of a network of another class in one of our own checkpoints, that network's; empty for a file
            that holds the statistics of observations alone.
        network: Settings that fit the tensors; ``None`` where they are not those of an ``MLPActorCritic``.
        notes: What the user should know, in sentences.
        optimizer: The state of Adam by parameter name, where there is one for every parameter.
        normalizer: The statistics that observations are normalized by, where the file has them.
        fitting: The options that name the network, where it is another one of ours than ``MLPActorCritic``.
    """

    source: str
    sha256: str
    tensors: dict[str, Tensor]
    network: NetworkSettings | None
    notes: list[str] = field(default_factory=list)
    optimizer: dict[str, AdamState] | None = None
    normalizer: Normalizer | None = None
    fitting: str | None = None
