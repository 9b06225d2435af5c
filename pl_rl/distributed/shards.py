"""Which shards a process has, and what it exchanges with the others.

Shapes: ``S`` shards of the run, ``L`` of this process, ``W`` processes, ``P`` trained parameters.
"""

import io
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _set_pg_timeout

from pl_rl.errors import RunFailure, UsageError

PATIENCE_SECONDS = 60
"""For which a process waits for others, beyond the longest iteration so far."""


class Shards:
    """The shards of a run, dealt to processes in contiguous blocks.

    Args:
        count: ``S``, a power of two.
        rank: Number of this process.
        world: ``W``, which divides ``S``.

    Attributes:
        local: The numbers of this process's shards.
    """

    def __init__(self, count: int, rank: int = 0, world: int = 1) -> None:
        self.count, self.rank, self.world = count, rank, world
        size = count // world
        self.local = range(rank * size, (rank + 1) * size)
        self._exchanged: float | None = None
        self._longest = 0.0

    def gather(self, tensors: Sequence[Tensor], same: Callable[[], Tensor]) -> list[Tensor]:
        """What each shard has, everywhere; one exchange.

        Args:
            tensors: Each ``[L, ...]``.
            same: Gives a number that must be the same in all processes, a scalar.

        Returns:
            Each ``[S, ...]``, on the device that it was on.

        Raises:
            RunFailure: If that number is not the same.
        """
        if self.world == 1:
            return list(tensors)
        self._be_patient()
        fingerprint = same().cpu().repeat(len(self.local))
        packed = [_as_bytes(tensor) for tensor in (fingerprint, *tensors)]
        row = torch.cat(packed, 1)
        rows = [torch.empty_like(row) for _ in range(self.world)]
        dist.all_gather(rows, row)
        fields = torch.cat(rows).split([part.shape[1] for part in packed], 1)
        fingerprints, *gathered = (
            _from_bytes(field, tensor) for field, tensor in zip(fields, (fingerprint, *tensors), strict=True)
        )
        if not fingerprints.eq(fingerprint[0]).all():
            raise RunFailure(
                f"weights differ between processes: {fingerprints[:: len(self.local)].tolist()}; their machines or "
                "libraries round differently, or something changes weights in one process alone; go on from the last "
                "checkpoint with processes of one kind"
            )
        return gathered

    def sum(self, rows: Tensor) -> Tensor:
        """The sum over all shards, as a tree by their numbers: the same bits for any number of processes.

        A process adds up its own branch of the tree; branches are then exchanged between ever more distant processes
        (recursive doubling), and as ``a + b`` is ``b + a`` all have the same sum in the end.

        Args:
            rows: ``[L, P]`` of this process's shards, or ``[S, P]`` of all; it is overwritten.

        Returns:
            ``[P]``
        """
        reach = 1
        while reach < len(rows):
            rows[:: 2 * reach] += rows[reach :: 2 * reach]
            reach *= 2
        branch, distance = rows[0], 1
        while distance * len(rows) < self.count:
            branch = branch + self._swapped(branch, self.rank ^ distance)
            distance *= 2
        return branch

    def gather_plain(self, value: Any) -> list[Any]:
        """Plain data of each process, everywhere."""
        if self.world == 1:
            return [value]
        buffer = io.BytesIO()
        torch.save(value, buffer)
        content = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        dist.all_gather(sizes, torch.tensor([len(content)]))
        room = torch.zeros(int(max(sizes)), dtype=torch.uint8)
        room[: len(content)] = content
        rows = [torch.empty_like(room) for _ in range(self.world)]
        dist.all_gather(rows, room)
        contents = [io.BytesIO(row[: int(size)].numpy().tobytes()) for row, size in zip(rows, sizes, strict=True)]
        return [torch.load(content, weights_only=True) for content in contents]

    def of_first(self, value: Any) -> Any:
        """Plain data of the first process, everywhere."""
        return self.gather_plain(value)[0]

    def check_same(self, what: str, value: str, way_out: str) -> None:
        """Refuse processes that compute differently.

        Args:
            what: Is compared, in words.
            value: That of this process.
            way_out: What can be done, in words.

        Raises:
            UsageError: If others have another one.
        """
        values = list(dict.fromkeys(self.gather_plain(value)))
        if len(values) > 1:
            raise UsageError(f"{what} differ between processes: {' | '.join(values)}; {way_out}")

    def _be_patient(self) -> None:
        """Wait for others not much longer than an iteration has ever taken."""
        now = time.monotonic()
        if self._exchanged is not None and now - self._exchanged > self._longest:
            self._longest = now - self._exchanged
            _set_pg_timeout(timedelta(seconds=PATIENCE_SECONDS + self._longest))
        self._exchanged = now

    def _swapped(self, tensor: Tensor, peer: int) -> Tensor:
        received = torch.empty_like(tensor)
        sending = dist.P2POp(dist.isend, tensor.contiguous(), peer)
        for work in dist.batch_isend_irecv([sending, dist.P2POp(dist.irecv, received, peer)]):
            try:
                work.wait()
            except RuntimeError as error:  # gloo's has no class of its own
                raise dist.DistNetworkError(str(error)) from error
        return received


def checksum(tensors: Sequence[Tensor]) -> Tensor:
    """A number, an int64 scalar, that other bits of some tensors, or the same in other places, hardly ever have."""
    content = torch.cat([_as_bytes(tensor.detach().reshape(1, -1)).squeeze(0) for tensor in tensors])
    padded = torch.nn.functional.pad(content, (0, -len(content) % 8)).view(torch.int64)
    return (padded * (2 * torch.arange(len(padded)) + 1)).sum()


def _as_bytes(tensor: Tensor) -> Tensor:
    """``[L, ...]`` as ``[L, bytes]``."""
    return tensor.cpu().contiguous().reshape(len(tensor), -1).view(torch.uint8)


def _from_bytes(field: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`_as_bytes`, for all shards."""
    return field.contiguous().view(like.dtype).view(-1, *like.shape[1:]).to(like.device)
