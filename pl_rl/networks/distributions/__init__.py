"""Action distributions, parametrized by the outputs of a policy network.

``base`` has the interface, ``discrete``, ``gaussian``, ``exploration`` and ``bounded`` the distributions, ``special``
their functions.

What belongs here: distributions, and which of them fits an action space.
What does not: the networks that parametrize them (``networks/``), random streams (``seeding/``).
"""

from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np

from pl_rl.errors import UsageError
from pl_rl.networks.distributions.base import ActionDistribution, to_numpy
from pl_rl.networks.distributions.bounded import Beta, BoundedDistribution, SquashedGaussian
from pl_rl.networks.distributions.discrete import Bernoulli, Categorical, MultiCategorical
from pl_rl.networks.distributions.exploration import StateDependentExploration
from pl_rl.networks.distributions.gaussian import DiagonalGaussian, StateDependentGaussian

__all__ = [
    "ActionDistribution",
    "Bernoulli",
    "Beta",
    "BoundedDistribution",
    "Categorical",
    "Continuous",
    "DiagonalGaussian",
    "MultiCategorical",
    "SquashedGaussian",
    "StateDependentExploration",
    "StateDependentGaussian",
    "make_distribution",
    "to_numpy",
]

Continuous = Literal["gaussian", "state_dependent_gaussian", "squashed_gaussian", "beta", "gsde"]


def make_distribution(
    action_space: gym.Space[Any],
    log_std_init: float = 0.0,
    continuous: Continuous = "gaussian",
    sde_sample_freq: int = -1,
) -> ActionDistribution:
    """The distribution that fits an action space.

    Args:
        action_space: ``Discrete``, ``MultiDiscrete``, ``MultiBinary`` or a ``Box`` of floats.
        log_std_init: Initial log standard deviation of Gaussian actions.
        continuous: Which distribution the actions of a ``Box`` have.
        sde_sample_freq: Env steps between new matrices of ``gsde``; -1 for once a rollout.

    Raises:
        UsageError: For any other space, or a distribution that does not fit it.
    """
    match action_space:
        case gym.spaces.Box() if np.issubdtype(action_space.dtype, np.floating):
            return _continuous(action_space, log_std_init, continuous, sde_sample_freq)
        case gym.spaces.Discrete() | gym.spaces.MultiDiscrete() | gym.spaces.MultiBinary() if continuous != "gaussian":
            raise UsageError(f"distribution={continuous} needs continuous actions, not {action_space}; leave it out")
        case gym.spaces.Discrete():
            return Categorical(action_space)
        case gym.spaces.MultiDiscrete():
            return MultiCategorical(action_space)
        case gym.spaces.MultiBinary():
            return Bernoulli(action_space)
    raise UsageError(
        f"the action space {action_space} is not supported: PPO here acts in Discrete, MultiDiscrete, MultiBinary and "
        "floating-point Box spaces; convert it with a gymnasium action wrapper"
    )


def _continuous(
    space: gym.spaces.Box, log_std_init: float, name: Continuous, sde_sample_freq: int
) -> ActionDistribution:
    match name:
        case "gaussian":
            return DiagonalGaussian(space, log_std_init)
        case "state_dependent_gaussian":
            return StateDependentGaussian(space, log_std_init)
        case "squashed_gaussian":
            return SquashedGaussian(space, log_std_init)
        case "beta":
            return Beta(space)
        case "gsde":
            return StateDependentExploration(space, log_std_init, sde_sample_freq)
    raise UsageError(f"distribution={name!r} is unknown; use {', '.join(get_args(Continuous))}")
