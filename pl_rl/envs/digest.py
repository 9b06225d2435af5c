"""Checksums of all that an environment gives, by which a replay is known to have given the same."""

from array import array
from typing import Any
from zlib import crc32

import numpy as np


class Digest:
    """Running checksums, looked at where an episode begins and whenever a state is saved.

    Observations count byte for byte as the environment gives them, rewards as float64. CRC-32 takes 60 ns for a small
    observation, where SHA-1 takes four times that; it is to find mistakes, and nobody has a reason to forge one.

    Attributes:
        observed: The checksum of the observations, in a list of one.
        rewards: Those that are in no checksum yet.
    """

    def __init__(self) -> None:
        self.observed = [0]
        self.rewards = array("d")
        self.clear()

    def clear(self) -> None:
        """Forget all."""
        self.observed[0] = self._earned = 0
        del self.rewards[:]
        self._episodes: list[list[int]] = []

    def observe(self, obs: Any) -> None:
        """Add an observation, however it lies in memory."""
        self.observed[0] = crc32(np.ascontiguousarray(obs).data, self.observed[0])

    def end(self, terminated: Any, truncated: Any) -> None:
        """Add how an episode ended."""
        self._earned = crc32(bytes([bool(terminated), bool(truncated)]), self._earned_by_now())

    def begin_episode(self) -> None:
        """Note the checksums of what came before."""
        self._episodes.append(self._by_now())

    def sums(self) -> list[list[int]]:
        """By the end of each episode, and by now: the checksum of the observations, and that of rewards and ends."""
        return [*self._episodes, self._by_now()]

    def _by_now(self) -> list[int]:
        return [self.observed[0], self._earned_by_now()]

    def _earned_by_now(self) -> int:
        self._earned = crc32(self.rewards, self._earned)
        del self.rewards[:]
        return self._earned
