"""What an iteration learns from: samples of shards, in minibatches that all processes agree on.

Shapes: ``S`` shards of the run, ``R`` of which this process has samples, ``M`` samples of one, ``B`` of a minibatch, of
which ``b`` are of one shard. For a network with a memory ``M`` and ``b`` count sequences.
"""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pl_rl.algorithm import functional as F
from pl_rl.algorithm.loss import Minibatch
from pl_rl.algorithm.rollout import RolloutCollector
from pl_rl.distributed.shards import Shards, checksum
from pl_rl.networks.records import leaves, tree_map, unbind

# Measured with gloo on one machine, and a network's arithmetic on one core.
SECONDS_OF_EXCHANGE = 0.4e-3
SECONDS_OF_FLOAT = 10e-9
SECONDS_OF_FLOP = 1 / 150e9


class Experience(NamedTuple):
    """Samples of a rollout, and what of other shards' samples a minibatch depends on."""

    samples: Minibatch
    """``[R * M, ...]``, shard by shard."""
    shards: range
    """The numbers of these ``R`` shards."""
    advantages: Tensor
    """``[S, M]`` of all."""
    values: Tensor
    """``[S, M]`` of all, V(s) when they were collected."""
    generators: list[torch.Generator]
    """Of the orders, of all shards."""

    def minibatches(self, size: int, norm_adv: bool) -> Iterator[Minibatch]:
        """One pass in a new order.

        Args:
            size: ``B``.
            norm_adv: Whether the advantages of each whole minibatch are normalized.

        Returns:
            Minibatches of ``R * b`` samples, shard by shard.
        """
        num_shards, samples = self.advantages.shape[:2]
        of_shard = size // num_shards // self.advantages[0, 0].numel()  # sequences have more than one number
        orders = [torch.randperm(samples, generator=each) + samples * i for i, each in enumerate(self.generators)]
        order = torch.stack(orders).view(num_shards, -1, of_shard).transpose(0, 1)  # [minibatches, S, b]
        order = order.to(self.advantages.device)
        advantages = self.advantages.flatten(0, 1)[order]
        if norm_adv:
            advantages = F.normalize(advantages.reshape(-1, size)).view(advantages.shape)
        here = slice(self.shards.start, self.shards.stop)
        order = (order[:, here] - samples * here.start).flatten()

        def shuffled(field: Tensor) -> Tensor:
            selected: Tensor = field.index_select(0, order).unflatten(0, (len(advantages), -1))
            return selected

        minibatches: Minibatch = tree_map(shuffled, self.samples)
        yield from unbind(minibatches._replace(advantages=advantages[:, here].flatten(1, 2)))

    def explained_variance(self) -> Tensor:
        """See :func:`pl_rl.algorithm.functional.explained_variance`."""
        return F.explained_variance(self.values.flatten(), (self.advantages + self.values).flatten())

    def with_values_of(self, samples: Minibatch, shards: Shards) -> "Experience":
        """The same samples with other values, and the advantages and returns by them; all processes exchange these.

        Args:
            samples: ``[L * M, ...]`` of this process's shards.
            shards: Of the run.
        """
        own = [field.unflatten(0, (len(shards.local), -1)) for field in (samples.advantages, samples.values)]
        # Weights are compared once an iteration.
        advantages, values = shards.gather(own, lambda: torch.zeros((), dtype=torch.int64))
        here = slice(self.shards.start, self.shards.stop)
        known = advantages[here].flatten(0, 1), values[here].flatten(0, 1)
        samples = self.samples._replace(advantages=known[0], values=known[1], returns=known[0] + known[1])
        return self._replace(samples=samples, advantages=advantages, values=values)


def pooling_pays(flops: int, parameters: Iterable[Tensor], world: int) -> bool:
    """Whether every process had better compute all gradients than exchange those that it has computed.

    Args:
        flops: Of an update's gradient.
        parameters: Of the network.
        world: Number of processes.
    """
    exchange = SECONDS_OF_EXCHANGE + SECONDS_OF_FLOAT * sum(parameter.numel() for parameter in parameters)
    return flops * SECONDS_OF_FLOP * (1 - 1 / world) < exchange * math.log2(world)


def share(samples: Minibatch, collector: RolloutCollector, shards: Shards, whole: bool) -> Experience:
    """Exchange what processes must know of each other's rollouts, once an iteration.

    Args:
        samples: ``[L * M, ...]`` of this process's shards.
        collector: Has collected them.
        shards: Of the run.
        whole: Exchange the samples as well: every process then makes all updates by itself.

    Raises:
        RunFailure: If the processes' weights differ.
    """
    by_shard: Minibatch = tree_map(lambda field: field.unflatten(0, (len(shards.local), -1)), samples)
    sent = leaves(by_shard) if whole else [by_shard.advantages, by_shard.values]
    gathered = shards.gather([*sent, *collector.shared()], lambda: checksum(list(collector.network.parameters())))
    generators = collector.take(gathered[len(sent) :])
    if not whole:
        return Experience(samples, shards.local, gathered[0], gathered[1], generators)
    received = iter(gathered)
    every: Minibatch = tree_map(lambda _: next(received), by_shard)
    flat: Minibatch = tree_map(lambda field: field.flatten(0, 1), every)
    return Experience(flat, range(shards.count), every.advantages, every.values, generators)
