"""What makes a run's updates: eager, or compiled as long as that computes the same."""

import torch
from torch import Tensor

from pl_rl.algorithm.acting import EagerActionSelector
from pl_rl.algorithm.loss import Coefficients, Minibatch, PPOLoss
from pl_rl.algorithm.rollout import RolloutCollector
from pl_rl.algorithm.schedule import LearningRates
from pl_rl.algorithm.updates import EagerUpdater, Updater
from pl_rl.compiled.backend import CompiledLearner, is_worth_compiling


class Learner:
    """Makes the updates of one fit, and lets its rollouts act as fast.

    Args:
        collector: Of the rollouts, with the network.
        optimizer: As ``configure_optimizers`` made it.
        clip_vloss: Whether the value loss is clipped.
        learning_rate: The model's setting.

    Attributes:
        rates: Of the optimizer's groups.
    """

    def __init__(
        self, collector: RolloutCollector, optimizer: torch.optim.Optimizer, clip_vloss: bool, learning_rate: float
    ) -> None:
        self.rates = LearningRates(optimizer, learning_rate)
        self._collector = collector
        self._eager = EagerUpdater(PPOLoss(collector.network, clip_vloss), optimizer)
        self._compiled: CompiledLearner | None = None
        self.description = self._eager.description

    def is_worth_compiling(self, num_updates: int, minibatch_size: int) -> bool:
        """By a run's number of updates and the work of one."""
        return is_worth_compiling(self._eager.loss, num_updates, self._collector.obs_dtype, minibatch_size)

    def compile(self, minibatch_size: int) -> None:
        """Be fast from here on.

        Raises:
            CompilationError: If that is not possible.
        """
        self._compiled = CompiledLearner(
            self._eager.loss,
            self._eager.optimizer,
            self._collector.obs_dtype,
            minibatch_size,
            self._collector.env.num_envs,
        )
        self._collector.acting = self._compiled.acting
        self.description = self._compiled.updates.description

    def follow(self, optimizer: torch.optim.Optimizer, clip_vloss: bool) -> str | None:
        """Go on with what is there now.

        Returns:
            Why updates are eager from here on, if they were compiled, in words.
        """
        self._eager.loss.clip_vloss = clip_vloss
        if optimizer is not self._eager.optimizer:
            self._eager = EagerUpdater(self._eager.loss, optimizer)
        change = None if self._compiled is None else self._compiled.change(optimizer)
        if change is not None:
            self.close()
            self._collector.acting = EagerActionSelector(self._collector.network)
            self.description = self._eager.description
        return change

    @property
    def updates(self) -> Updater:
        """What makes the gradient updates of this iteration."""
        if self._compiled is None:
            return self._eager
        # A compiled function would move parameters that are frozen, too.
        frozen = any(not parameter.requires_grad for parameter in self._collector.network.parameters())
        return self._eager if frozen else self._compiled.updates

    def audit_is_due(self, iteration: int, evaluates: bool) -> bool:
        """Whether to compare what is compiled with PyTorch: at each evaluation, and now and then."""
        return self._compiled is not None and (evaluates or self._compiled.audit_is_due(iteration))

    def audit(self, minibatch: Minibatch, obs: Tensor, coefficients: Coefficients, iteration: int) -> str | None:
        """What differs from PyTorch by more than rounding, in words; arguments as of :meth:`CompiledLearner.audit`."""
        if self._compiled is None:
            return None
        in_use = self.updates is self._compiled.updates
        return self._compiled.audit(minibatch if in_use else None, obs, coefficients, iteration)

    def close(self) -> None:
        """Let go of threads and memory; how updates were made is still told."""
        if self._compiled is not None:
            self._compiled.updates.close()
            self._compiled = None
