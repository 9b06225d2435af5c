"""Keeping parameters as they are at the beginning of a run."""

import math
from dataclasses import dataclass, field

import torch
from torch import nn

from pl_rl.errors import UsageError
from pl_rl.networks.actor_critic import ActorCritic
from pl_rl.networks.modes import evaluation_mode
from pl_rl.networks.records import as_input, example, with_memory
from pl_rl.pretrained.matching import check_patterns, matches


@dataclass(frozen=True)
class Freezing:
    """Which parameters do not learn, and for how long.

    Attributes:
        freeze: Patterns of parameters.
        freeze_iterations: For how many iterations they do not learn; ``None`` means the whole run.
        critic_warmup: Iterations in which the value function alone learns: all that the policy depends on is frozen.
    """

    freeze: list[str] = field(default_factory=list)
    freeze_iterations: int | None = None
    critic_warmup: int = 0

    def check(self, network: ActorCritic) -> None:
        """Whether it can be applied to a network.

        Raises:
            UsageError: If a pattern selects nothing, or nothing would be left to learn.
        """
        check_patterns("freeze", self.freeze, dict(network.named_parameters()))
        for name, value in [("freeze_iterations", self.freeze_iterations), ("critic_warmup", self.critic_warmup)]:
            if value is not None and value < 0:
                raise UsageError(f"--pretrained.{name} is {value} and must not be negative; use 0 or more")
        schedule = FreezeSchedule(self, network)
        for iteration in (0, self.critic_warmup):
            if schedule.names(iteration) == learning_parameters(network).keys():
                what = "critic_warmup" if iteration < self.critic_warmup else "freeze"
                raise UsageError(
                    f"--pretrained.{what} leaves no parameter that learns in iteration {iteration}; freeze fewer"
                )

    def in_words(self) -> list[str]:
        """What is frozen and how long, a sentence each."""
        sentences = []
        if self.freeze:
            how_long = "the whole run" if self.freeze_iterations is None else f"{self.freeze_iterations:,} iterations"
            sentences.append(f"{', '.join(self.freeze)} for {how_long}")
        if self.critic_warmup:
            sentences.append(f"all that the policy depends on for {self.critic_warmup:,} iterations")
        return sentences


class FreezeSchedule:
    """A network's parameters that are frozen in each iteration.

    Args:
        freezing: What and how long.
        network: With all that learns otherwise ready to learn.
    """

    def __init__(self, freezing: Freezing, network: ActorCritic) -> None:
        self._freezing = freezing
        self._frozen = {name for name in learning_parameters(network) if matches(name, freezing.freeze)}
        self._policy = policy_parameters(network) if freezing.critic_warmup else set()

    def names(self, iteration: int) -> set[str]:
        """Those of an iteration, which is counted from zero."""
        until = math.inf if self._freezing.freeze_iterations is None else self._freezing.freeze_iterations
        names = self._frozen if iteration < until else set()
        return names | self._policy if iteration < self._freezing.critic_warmup else names


def learning_parameters(network: ActorCritic) -> dict[str, nn.Parameter]:
    """Those with a gradient, by name."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


def policy_parameters(network: ActorCritic) -> set[str]:
    """The parameters that the distribution of actions depends on, found by differentiating the policy's outputs."""
    learning = learning_parameters(network)
    with torch.enable_grad(), evaluation_mode(network):
        obs = as_input(example(network.observation_space, 1), next(network.parameters()))
        outputs = network.policy(with_memory(obs, network.first_memory(1)))
        gradients = torch.autograd.grad(outputs.sum(), list(learning.values()), allow_unused=True)
    reached = {name for name, gradient in zip(learning, gradients, strict=True) if gradient is not None}
    return reached | {name for name in learning if name.startswith("distribution.")}
