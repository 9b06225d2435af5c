"""Checksums of an environment's outputs, which verify that a replay reproduces them."""

from array import array
from typing import Any
from zlib import crc32

import numpy as np

from pl_rl.networks.records import leaves


class Digest:
    """Running checksums, read where an episode begins and whenever a state is saved.

    Observations count byte for byte as the environment gives them, rewards as float64. CRC-32 suffices, as it is
    to find errors and not forgeries; it takes 60 ns for a small observation, SHA-1 four times that.

    Attributes:
        observed: The checksum of the observations, in a list of one.
        rewards: Rewards that are in no checksum yet.
    """

    def __init__(self) -> None:
        self.observed = [0]
        self.rewards = array("d")
        self.clear()

    def clear(self) -> None:
        """Start anew."""
        self.observed[0] = self._earned = 0
        del self.rewards[:]
        self._episodes: list[list[int]] = []

    def observe(self, obs: Any) -> None:
        """Add an observation of any memory layout, or all entries of one."""
        for entry in leaves(obs):
            self.observed[0] = crc32(np.ascontiguousarray(entry).data, self.observed[0])

    def end(self, terminated: Any, truncated: Any) -> None:
        """Add how an episode ended."""
        self._earned = crc32(bytes([bool(terminated), bool(truncated)]), self._earned_by_now())

    def begin_episode(self) -> None:
        """Note the checksums of what came before."""
        self._episodes.append(self._by_now())

    def sums(self) -> list[list[int]]:
        """Checksums at the end of each episode and now: of observations, and of rewards and ends of episodes."""
        return [*self._episodes, self._by_now()]

    def _by_now(self) -> list[int]:
        return [self.observed[0], self._earned_by_now()]

    def _earned_by_now(self) -> int:
        self._earned = crc32(self.rewards, self._earned)
        del self.rewards[:]
        return self._earned
