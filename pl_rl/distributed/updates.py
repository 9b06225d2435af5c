"""Gradient updates of several shards.

Shapes: ``S`` shards of the run, ``R`` whose gradients are computed here, ``b`` samples of a shard in a minibatch, ``P``
trained parameters.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pl_rl.algorithm.loss import Coefficients, Minibatch
from pl_rl.algorithm.updates import PartUpdater, Updater
from pl_rl.distributed.shards import Shards
from pl_rl.networks.records import split, tree_map


class ShardedUpdater(Updater):
    """Averages the gradients of all shards, each computed by itself.

    Args:
        updater: Computes the gradient of one shard, and makes the steps.
        shards: Of the run.
        part_size: ``b``.
    """

    def __init__(self, updater: PartUpdater, shards: Shards, part_size: int) -> None:
        super().__init__(updater.loss, updater.optimizer)
        self.description = updater.description
        self._updater, self._shards, self._part_size = updater, shards, part_size

    @contextmanager
    def iteration(self, coefficients: Coefficients, max_grad_norm: float | None) -> Iterator[None]:
        """As the shard's updater."""
        with self._updater.iteration(coefficients, max_grad_norm):
            yield

    def gradient(self, minibatch: Minibatch) -> Tensor:
        """The mean gradient of all shards; ``minibatch`` ``[R * b, ...]`` is of this process's, or of all."""
        rows = []
        for part in split(minibatch, self._part_size):
            # In memory of its own, as bits may depend on where memory begins.
            metrics = self._updater.gradient(tree_map(Tensor.clone, part))
            rows.append(torch.cat([self._updater.flat_gradient(), metrics]))
        mean = self._shards.sum(torch.stack(rows)) / self._shards.count
        count = len(mean) - len(metrics)
        self._updater.take_gradient(mean[:count])
        return mean[count:]

    def step(self) -> Tensor:
        """As the shard's updater."""
        return self._updater.step()
