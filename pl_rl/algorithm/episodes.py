"""Episodes of training: what is told of them.

Shapes: ``N`` environments.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pl_rl.envs.episode_info import EpisodeInfo, info_statistics


class EpisodeStatistics:
    """Returns, lengths and successes of training episodes: of the open ones, and of a window of the latest that ended.

    Args:
        num_envs: ``N``.
        window: How many ended episodes the means are taken over.
    """

    def __init__(self, num_envs: int, window: int = 100) -> None:
        self.recent: deque[tuple[float, int]] = deque(maxlen=window)
        self.recent_info: deque[EpisodeInfo] = deque(maxlen=window)
        self.total = 0
        self.begin(num_envs)

    def begin(self, num_envs: int) -> None:
        """Open an episode in each of ``N`` environments; those that were open do not count."""
        self.open_returns = np.zeros(num_envs)
        self.open_lengths = np.zeros(num_envs, dtype=np.int64)

    def add(
        self,
        rewards: npt.NDArray[Any],
        ended: npt.NDArray[np.bool_] | None,
        info: Mapping[int, EpisodeInfo] | None = None,
    ) -> None:
        """Account for one step.

        Args:
            rewards: ``[N]``.
            ended: Which episodes ``[N]`` it ended, or ``None`` for none.
            info: What environments say of these, by their indices.
        """
        self.open_returns += rewards
        self.open_lengths += 1
        if ended is None:
            return
        for i in np.flatnonzero(ended):
            self.recent.append((float(self.open_returns[i]), int(self.open_lengths[i])))
            self.recent_info.append((info or {}).get(int(i), {}))
            self.total += 1
            self.open_returns[i] = self.open_lengths[i] = 0

    def state_dict(self) -> dict[str, Any]:
        """The statistics as plain data."""
        state = {
            "open_returns": torch.from_numpy(self.open_returns.copy()),
            "open_lengths": torch.from_numpy(self.open_lengths.copy()),
            "recent": list(self.recent),
            "total": self.total,
        }
        # Most environments say nothing.
        return {**state, "info": list(self.recent_info)} if any(self.recent_info) else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.open_returns = state["open_returns"].numpy().copy()
        self.open_lengths = state["open_lengths"].numpy().copy()
        self.recent.clear()
        self.recent.extend(state["recent"])
        self.recent_info.clear()
        self.recent_info.extend(state.get("info") or [{} for _ in state["recent"]])
        self.total = state["total"]

    def mean_return(self) -> float:
        """Mean undiscounted return of the latest episodes; NaN before the first has ended."""
        return float(np.mean([episode_return for episode_return, _ in self.recent])) if self.recent else np.nan

    def mean_length(self) -> float:
        """Mean length in steps of the latest episodes; NaN before the first has ended."""
        return float(np.mean([length for _, length in self.recent])) if self.recent else np.nan

    def scalars(self) -> dict[str, float]:
        """Means over the latest episodes, of what environments say at their ends too, and how many there were."""
        means = {"return_mean": self.mean_return(), "length_mean": self.mean_length()} if self.recent else {}
        return {**means, **info_statistics(self.recent_info), "episodes": float(self.total)}
