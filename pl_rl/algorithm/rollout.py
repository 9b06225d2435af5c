"""Rollouts: stepping the environments with the current policy.

Shapes: ``T`` steps of a rollout, ``N`` environments.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pl_rl.algorithm.acting import ActionSelector, EagerActionSelector
from pl_rl.envs import AnyVectorEnv, restore_envs, save_envs
from pl_rl.envs.episode_info import EpisodeInfo, info_statistics
from pl_rl.envs.faults import check_finite, too_large
from pl_rl.errors import EnvironmentFailure, UsageError
from pl_rl.networks.actor_critic import ActorCritic
from pl_rl.networks.distributions import to_numpy
from pl_rl.networks.modes import evaluation_mode
from pl_rl.networks.normalization import ObservationNormalizer, RewardScaler


class Rollout(NamedTuple):
    """``T * N`` transitions of one policy."""

    obs: Tensor
    """``[T, N, *observation_space.shape]``, as the network saw them."""
    actions: Tensor
    """``[T, N]`` of one discrete choice, else ``[T, N, A]``; as sampled, before any clipping to bounds."""
    log_probs: Tensor
    """``[T, N]``, log pi_old(a|s)."""
    values: Tensor
    """``[T, N]``, V(s_t)."""
    next_values: Tensor
    """``[T, N]``, V of the state that the step led to, where an episode was truncated that of its final observation;
    without meaning where one terminated, as there is no future value."""
    rewards: Tensor
    """``[T, N]``, scaled where the agent scales rewards."""
    terminated: Tensor
    """``[T, N]`` bool: the episode is over, there is no future reward."""
    truncated: Tensor
    """``[T, N]`` bool: the episode was cut, by a time limit for example."""


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


class RolloutCollector:
    """Steps the environments with the current policy.

    Args:
        env: Vector environment that resets within the step that ends an episode (see :mod:`pl_rl.envs.vector`).
        network: Policy and value function; read at each step, so that updates between rollouts take effect.
        num_steps: ``T``.
        generator: Random numbers for sampling actions.
        normalizer: Normalizes observations for the network; updated with those of each step before it is applied.
        reward_scaler: Scales the rewards of a rollout; updated with them.

    Attributes:
        acting: Selects the actions; may be replaced between rollouts.
    """

    def __init__(
        self,
        env: AnyVectorEnv,
        network: ActorCritic,
        num_steps: int,
        generator: torch.Generator,
        normalizer: ObservationNormalizer | None = None,
        reward_scaler: RewardScaler | None = None,
    ) -> None:
        self.env = env
        self.network = network
        self.num_steps = num_steps
        self.generator = generator
        self.normalizer = normalizer
        self.reward_scaler = reward_scaler
        self.acting: ActionSelector = EagerActionSelector(network)
        self.episodes = EpisodeStatistics(env.num_envs)
        self._obs: npt.NDArray[Any] | None = None

    @property
    def obs_dtype(self) -> torch.dtype:
        """The type of observations in a rollout: floats as the parameters, integers (images) as the environment's."""
        if isinstance(self.env.single_observation_space, gym.spaces.MultiBinary):
            return torch.bool  # gymnasium's int8 cannot be compiled
        dtype = self.env.single_observation_space.dtype
        if dtype is None:
            raise UsageError("the environment's observations have no type of numbers; give its space a dtype")
        if np.issubdtype(dtype, np.floating):
            return next(self.network.parameters()).dtype
        return torch.from_numpy(np.empty(0, dtype)).dtype

    def reset(self, seed: int) -> None:
        """Begin an episode in each environment."""
        self._obs, _ = self.env.reset(seed=seed)
        self._discounted_sums = torch.zeros(self.env.num_envs, dtype=torch.float64)
        self.episodes.begin(self.env.num_envs)

    def state_dict(self, with_environments: bool = True) -> dict[str, Any]:
        """The state between two rollouts, as plain data; that of the environments is left out on request."""
        if self._obs is None:
            raise RuntimeError("reset before asking for the state")
        state = {
            "environments": save_envs(self.env) if with_environments else None,
            "obs": torch.from_numpy(self._obs.copy()),
            "episodes": self.episodes.state_dict(),
            "generator": self.generator.get_state(),
        }
        if self.reward_scaler is not None:
            state["discounted_sums"] = self._discounted_sums.clone()
        return state

    def load_state_dict(self, state: dict[str, Any], restart_seed: int) -> str | None:
        """The inverse of :meth:`state_dict`.

        Args:
            state: From :meth:`state_dict`.
            restart_seed: For fresh episodes, should the environments not come back into the state they were in.

        Returns:
            Why episodes were begun afresh, or ``None`` if they go on.
        """
        self.generator.set_state(state["generator"])
        obs = state["obs"].numpy().copy()
        open_returns = state["episodes"]["open_returns"].numpy()
        failure = restore_envs(self.env, state["environments"], obs, open_returns)
        self.episodes.load_state_dict(state["episodes"])
        if failure is not None:
            self.reset(restart_seed)
            return failure
        self._obs = obs
        if self.reward_scaler is not None:
            self._discounted_sums = state["discounted_sums"].clone()
        return None

    @torch.no_grad()
    def collect(self) -> Rollout:
        """One rollout of the current policy, on the network's device.

        The network acts in evaluation mode (dropout passes all, batch norm uses its running statistics), and is in
        the mode that it was in afterwards.

        Raises:
            EnvironmentFailure: If an environment fails, or gives numbers that are not finite or cannot be normalized.
        """
        with evaluation_mode(self.network, self.normalizer):
            return self._collect()

    def _collect(self) -> Rollout:
        if self._obs is None:
            raise RuntimeError("collect() needs a reset(seed) first")
        steps, num_envs = self.num_steps, self.env.num_envs
        device, distribution = next(self.network.parameters()).device, self.network.distribution
        noise = distribution.noise((steps, num_envs), self.generator)
        obs = torch.empty((steps, *self._obs.shape), dtype=self.obs_dtype)
        rewards = np.empty((steps, num_envs), dtype=np.float32)
        terminated = np.empty((steps, num_envs), dtype=np.bool_)
        truncated = np.empty((steps, num_envs), dtype=np.bool_)
        final_obs: dict[tuple[int, int], Tensor] = {}

        self.acting.begin(obs, noise)
        # Unbinding all rows at once is cheaper than indexing at each step.
        obs_rows = obs.unbind()
        for t in range(steps):
            if self.normalizer is not None and not self.normalizer.update(self._obs):
                check_finite(obs[:t], rewards[:t], self._obs, final_obs)
                raise too_large(self._obs, t)
            obs_rows[t].copy_(self._as_input(self._obs))
            env_actions = distribution.to_env(to_numpy(self.acting.act(t)))
            try:
                self._obs, rewards[t], terminated[t], truncated[t], infos = self.env.step(env_actions)
            except EnvironmentFailure as failure:
                # The action may be the consequence of a number that is not finite: that is the fault to report.
                check_finite(obs[: t + 1], rewards[:t], self._obs, final_obs)
                failure.step = t + 1
                raise
            ended = terminated[t] | truncated[t] if "final_obs" in infos else None
            self.episodes.add(rewards[t], ended, infos.get("episode_info"))
            if ended is not None:
                for i in np.flatnonzero(truncated[t] & ~terminated[t]):
                    final_obs[t, int(i)] = self._final_input(infos["final_obs"][i]).to(obs.dtype)
        check_finite(obs, rewards, self._obs, final_obs)
        outputs, values, actions = self.acting.decisions()
        values, next_values = self._with_next_values(values, final_obs)
        step_rewards = self._scaled(torch.from_numpy(rewards), torch.from_numpy(terminated | truncated))
        return Rollout(
            obs=obs.to(device),
            actions=actions,
            log_probs=distribution.log_prob(outputs, actions),
            values=values,
            next_values=next_values,
            rewards=step_rewards.to(next_values),
            terminated=torch.from_numpy(terminated).to(device),
            truncated=torch.from_numpy(truncated).to(device),
        )

    def _as_input(self, obs: Any) -> Tensor:
        """Observations as the network sees them, normalized or not."""
        tensor = torch.as_tensor(obs)
        if self.normalizer is None:
            return tensor
        normalized: Tensor = self.normalizer(tensor)
        return normalized

    def _final_input(self, obs: Any) -> Tensor:
        """As :meth:`_as_input`, but what is not finite stays, as clipping would hide it from the check."""
        final = torch.as_tensor(obs)
        return self._as_input(final) if final.isfinite().all() else final

    def _scaled(self, rewards: Tensor, ended: Tensor) -> Tensor:
        """Rewards ``[T, N]``, scaled or not; ``ended`` ``[T, N]`` says which steps ended an episode."""
        if self.reward_scaler is None:
            return rewards
        scaled: Tensor
        scaled, self._discounted_sums = self.reward_scaler(rewards, ended, self._discounted_sums)
        return scaled

    def _with_next_values(self, values: Tensor, final_obs: dict[tuple[int, int], Tensor]) -> tuple[Tensor, Tensor]:
        """Values and next values, both ``[T, N]``.

        Args:
            values: ``[T, N]``.
            final_obs: By (step, environment), the last observations of episodes that a time limit ended.
        """
        obs = self._as_input(self._obs).to(self.obs_dtype)
        last_obs = torch.stack([*obs, *final_obs.values()]).to(values.device)
        last_values, final_values = self.network.value(last_obs).split([len(obs), len(final_obs)])
        every_value = torch.cat([values, last_values.unsqueeze(0)])
        # In float32 at least, whatever the network computes in.
        every_value = every_value.to(torch.promote_types(every_value.dtype, torch.float32))
        next_values = every_value[1:].clone()
        for step_and_env, final_value in zip(final_obs, final_values, strict=True):
            next_values[step_and_env] = final_value
        return every_value[:-1], next_values


class RolloutLoader:
    """Collects a rollout when its one batch is asked for.

    It is sized, since Lightning fetches ahead from an unsized loader and would learn from rollouts of an outdated
    policy.
    """

    def __init__(self, collect: Callable[[], Rollout]) -> None:
        self._collect = collect

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Rollout]:
        yield self._collect()
