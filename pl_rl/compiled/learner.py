"""The choice between eager and compiled updates, for the length of a fit."""

import torch

from pl_rl.algorithm.acting import EagerActionSelector
from pl_rl.algorithm.loss import Coefficients, Minibatch, PPOLoss
from pl_rl.algorithm.rollout import RolloutCollector
from pl_rl.algorithm.schedule import LearningRates
from pl_rl.algorithm.updates import EagerUpdater, PartUpdater, Updater
from pl_rl.compiled.backend import CompiledLearner, flops_of, is_worth_compiling
from pl_rl.compiled.cartpole import compile_motion
from pl_rl.compiled.function import Compiled
from pl_rl.distributed.experience import pooling_pays
from pl_rl.distributed.shards import Shards
from pl_rl.distributed.updates import ShardedUpdater
from pl_rl.networks.records import Observations


class Learner:
    """Selects the updater and the action selector of one fit: eager, or compiled as long as that computes the same.

    Args:
        collector: Of the rollouts; its ``acting`` is replaced by a compiled one.
        optimizer: As ``configure_optimizers`` made it.
        clip_vloss: Whether the value loss is clipped.
        learning_rate: The model's setting.
        shards: Of the run.

    Attributes:
        rates: Learning rates of the optimizer's groups.
        description: How updates are computed, see :class:`~pl_rl.algorithm.updates.Updater`.
        pools_rollouts: Whether processes exchange rollouts, and each makes all updates by itself.
    """

    def __init__(
        self,
        collector: RolloutCollector,
        optimizer: torch.optim.Optimizer,
        clip_vloss: bool,
        learning_rate: float,
        shards: Shards,
    ) -> None:
        self._shards = shards
        self.rates = LearningRates(optimizer, learning_rate)
        self._collector = collector
        self._eager = EagerUpdater(PPOLoss(collector.network, clip_vloss), optimizer)
        self._compiled: CompiledLearner | None = None
        self.description = self._eager.description
        self.pools_rollouts = False

    def choose_exchange(self, minibatch_size: int) -> None:
        """Choose what processes exchange, where there are several; both give the same bits."""
        if self._shards.world > 1:
            flops = flops_of(self._eager.loss, self._collector.obs_dtype, minibatch_size)
            self.pools_rollouts = pooling_pays(flops, self._eager.loss.parameters(), self._shards.world)

    def is_worth_compiling(self, num_updates: int, minibatch_size: int) -> bool:
        """See :func:`pl_rl.compiled.backend.is_worth_compiling`."""
        return is_worth_compiling(self._eager.loss, num_updates, self._collector.obs_dtype, minibatch_size)

    def compile(self, minibatch_size: int, back_end: type[Compiled] = Compiled) -> None:
        """Compile updates and action selection.

        Raises:
            CompilationError: If that is not possible; both stay eager.
        """
        self._compiled = CompiledLearner(
            self._eager.loss,
            self._eager.optimizer,
            self._collector.obs_dtype,
            minibatch_size // self._shards.count,
            self._collector.num_envs,
            back_end,
        )
        self._collector.act_with(self._compiled.acting)
        compile_motion(self._collector.env)
        self.description = self._compiled.updates.description

    def follow(self, optimizer: torch.optim.Optimizer, clip_vloss: bool) -> str | None:
        """Take over changes of the model, and fall back to eager updates where compiled ones would miss one.

        Args:
            optimizer: The model's current one.
            clip_vloss: The model's current setting.

        Returns:
            Why updates are eager from here on, in words; ``None`` if nothing changes.
        """
        self._eager.loss.clip_vloss = clip_vloss
        if optimizer is not self._eager.optimizer:
            self._eager = EagerUpdater(self._eager.loss, optimizer)
        change = None if self._compiled is None else self._compiled.change(optimizer)
        if change is not None:
            self.close()
            self._collector.act_with(EagerActionSelector(self._collector.network))
            self.description = self._eager.description
        return change

    def updates(self, minibatch_size: int) -> Updater:
        """The updater of the current iteration, of minibatches of all shards."""
        if self._shards.count == 1:
            return self._of_shard
        return ShardedUpdater(self._of_shard, self._shards, self.part_size(minibatch_size))

    def part_size(self, minibatch_size: int) -> int:
        """How many samples of a minibatch are of one shard, or sequences for a network with a memory."""
        return minibatch_size // self._shards.count // (self._collector.network.sequence_length or 1)

    @property
    def _of_shard(self) -> PartUpdater:
        """The updater of one shard's part: eager while a parameter is frozen."""
        if self._compiled is None:
            return self._eager
        # A compiled step would move frozen parameters, too.
        frozen = any(not parameter.requires_grad for parameter in self._collector.network.parameters())
        return self._eager if frozen else self._compiled.updates

    def audit_is_due(self, iteration: int, evaluates: bool) -> bool:
        """Whether an audit is due: before each evaluation, and every 100 iterations."""
        return self._compiled is not None and (evaluates or self._compiled.audit_is_due(iteration))

    def audit(self, minibatch: Minibatch, obs: Observations, coefficients: Coefficients, iteration: int) -> str | None:
        """See :meth:`CompiledLearner.audit`; ``None`` if nothing is compiled."""
        if self._compiled is None:
            return None
        in_use = self._of_shard is self._compiled.updates
        return self._compiled.audit(minibatch if in_use else None, obs, coefficients, iteration)

    def close(self) -> None:
        """Free threads and memory; ``description`` stays."""
        if self._compiled is not None:
            self._compiled.close()
            self._compiled = None
