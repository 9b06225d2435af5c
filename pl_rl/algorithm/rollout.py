"""Rollouts: stepping the environments with the current policy.

Shapes: ``T`` steps of a rollout, ``N`` environments.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pl_rl.algorithm.acting import ActionSelector, EagerActionSelector
from pl_rl.algorithm.episodes import EpisodeStatistics
from pl_rl.algorithm.following import Following, values_of_steps
from pl_rl.envs import AnyVectorEnv, restore_envs, save_envs
from pl_rl.envs.faults import check_finite, too_large
from pl_rl.errors import EnvironmentFailure, UsageError
from pl_rl.networks.actor_critic import ActorCritic
from pl_rl.networks.modes import evaluation_mode
from pl_rl.networks.normalization import ObservationNormalizer, RewardScaler, RunningStatistics
from pl_rl.networks.records import (
    Memory,
    Observations,
    Remembered,
    leaves,
    next_memory,
    rows,
    space_tree,
    stack,
    tensor_type,
    tree_map,
    unbind,
    with_memory,
)
from pl_rl.seeding.streams import Stream, derive_seed


class Rollout(NamedTuple):
    """``T * N`` transitions of one policy."""

    obs: Observations
    """``[T, N, *observation_space.shape]``, as the network saw them; a dictionary of such tensors for a ``Dict``, and
    with what a network with a memory remembered."""
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

    def split(self, shards: int) -> list["Rollout"]:
        """Of each of some equal blocks of environments, ``[T, N / shards]``, in memory of its own."""
        size = self.rewards.shape[1] // shards
        blocks = (slice(shard * size, (shard + 1) * size) for shard in range(shards))
        return [tree_map(lambda field: field.contiguous(), rows(self, (slice(None), block))) for block in blocks]

    @staticmethod
    def join(parts: Sequence["Rollout"]) -> "Rollout":
        """The inverse of :meth:`split`."""
        joined: Rollout = tree_map(lambda *fields: torch.cat(fields, 1), *parts)
        return joined


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
        acting: Selects the actions, see :meth:`act_with`.
        num_envs: Environments that it selects for at once.
        episodes: Returns and lengths of episodes.
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
        self.num_envs = env.num_envs
        self.episodes = EpisodeStatistics(env.num_envs)
        self._obs: Any = None
        self._memory = network.first_memory(env.num_envs)

    @property
    def obs_dtype(self) -> Any:
        """The type of observations in a rollout: floats as the parameters, integers (images) as the environment's."""
        return tree_map(self._dtype_of, space_tree(self.env.single_observation_space))

    def _dtype_of(self, space: gym.Space[Any]) -> torch.dtype:
        if isinstance(space, gym.spaces.MultiBinary):
            return torch.bool  # gymnasium's int8 cannot be compiled
        if space.dtype is None:
            raise UsageError("the environment's observations have no type of numbers; give its space a dtype")
        if np.issubdtype(space.dtype, np.floating):
            return next(self.network.parameters()).dtype
        return tensor_type(space.dtype)

    @property
    def statistics(self) -> list[RunningStatistics]:
        """Of observations and of rewards, as far as there are any."""
        return [statistics for statistics in (self.normalizer, self.reward_scaler) if statistics is not None]

    def act_with(self, acting: ActionSelector) -> None:
        """Let another one select actions, from the next rollout on."""
        self.acting = acting

    def reseed(self, run_seed: int) -> None:
        """Take new random numbers for sampling actions."""
        self.generator.manual_seed(derive_seed(run_seed, Stream.SAMPLING))

    def reset(self, seed: int) -> None:
        """Begin an episode in each environment."""
        obs, _ = self.env.reset(seed=seed)
        self.begin(obs)

    def begin(self, obs: Any) -> None:
        """Go on from the first observations ``[N, ...]`` of new episodes."""
        self._obs = obs
        self._memory = self.network.first_memory(self.env.num_envs)
        self._discounted_sums = torch.zeros(self.env.num_envs, dtype=torch.float64)
        self.episodes.begin(self.env.num_envs)

    def state_dict(self, with_environments: bool = True) -> dict[str, Any]:
        """The state between two rollouts, as plain data; that of the environments is left out on request."""
        if self._obs is None:
            raise RuntimeError("reset before asking for the state")
        state = {
            "environments": save_envs(self.env) if with_environments else None,
            "obs": tree_map(lambda array: torch.from_numpy(array.copy()), self._obs),
            "episodes": self.episodes.state_dict(),
            "generator": self.generator.get_state(),
        }
        if self.reward_scaler is not None:
            state["discounted_sums"] = self._discounted_sums.clone()
        if self._memory is not None:
            memory = self._memory.state
            # NumPy, which checkpoints keep to, has no bfloat16.
            saved = memory.to("cpu", torch.promote_types(memory.dtype, torch.float32), copy=True)
            state["memory"] = {"state": saved, "begins": self._memory.begins.to("cpu", copy=True)}
        return state

    def load_state_dict(self, state: dict[str, Any], restart_seed: int) -> str | None:
        """The inverse of :meth:`state_dict`.

        Args:
            state: From :meth:`state_dict`.
            restart_seed: For fresh episodes, should the environments not come back into the state they were in.

        Returns:
            Why episodes were begun afresh, or ``None`` if they go on.
        """
        obs = tree_map(Tensor.numpy, state["obs"])
        open_returns = state["episodes"]["open_returns"].numpy()
        failure = restore_envs(self.env, state["environments"], obs, open_returns)
        self.load_without_environments(state)
        if failure is not None:
            self.reset(restart_seed)
        return failure

    def load_without_environments(self, state: dict[str, Any]) -> None:
        """As :meth:`load_state_dict`, of environments that are in the state already."""
        self.generator.set_state(state["generator"])
        self.episodes.load_state_dict(state["episodes"])
        self._obs = tree_map(lambda tensor: tensor.numpy().copy(), state["obs"])
        if self.reward_scaler is not None:
            self._discounted_sums = state["discounted_sums"].clone()
        if self._memory is not None:
            self._memory = _restored(state.get("memory"), self._memory)

    def episode_scalars(self) -> dict[str, float]:
        """Of the latest episodes, see :meth:`EpisodeStatistics.scalars`."""
        return self.episodes.scalars()

    def shared(self) -> list[Tensor]:
        """What others must know after a rollout: nothing, as there are none."""
        return []

    def take(self, shared: Sequence[Tensor]) -> list[torch.Generator]:
        """The generator of the order in which samples are learnt from; ``shared`` is what others have learnt."""
        return [self.generator]

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

    @torch.no_grad()
    def revalue(self, rollout: Rollout) -> Rollout:
        """The latest rollout with the values that the network, in evaluation mode, gives now."""
        with evaluation_mode(self.network):
            return self._revalue(rollout)

    def _revalue(self, rollout: Rollout) -> Rollout:
        values, next_values = self._following.next_values(self.network, values_of_steps(self.network, rollout.obs))
        return rollout._replace(values=values, next_values=next_values)

    def _collect(self) -> Rollout:
        steps = self.steps()
        actions = next(steps)
        while True:
            try:
                step = self.env.step(actions)
            except EnvironmentFailure as failure:
                steps.throw(failure)
                raise
            try:
                actions = steps.send(step)
            except StopIteration as end:
                rollout: Rollout = end.value
                return rollout

    def steps(self) -> Generator[npt.NDArray[Any], Any, Rollout]:
        """A rollout as a coroutine: yields the actions of each step, and is sent what the environments gave.

        An :class:`EnvironmentFailure` that is thrown into it comes back with the step, or as another one before it.
        """
        if self._obs is None:
            raise RuntimeError("collect() needs a reset(seed) first")
        steps, num_envs = self.num_steps, self.env.num_envs
        distribution = self.network.distribution
        noise = distribution.noise((steps, num_envs), self.generator)
        obs = tree_map(lambda now, dtype: torch.empty((steps, *now.shape), dtype=dtype), self._obs, self.obs_dtype)
        rewards = np.empty((steps, num_envs), dtype=np.float32)
        terminated = np.empty((steps, num_envs), dtype=np.bool_)
        truncated = np.empty((steps, num_envs), dtype=np.bool_)
        final_obs: dict[tuple[int, int], Observations] = {}
        final_states: list[Tensor] = []
        seen = with_memory(obs, self._memory_of(steps))

        self.acting.begin(seen, noise)
        see = self._seeing(seen)
        for t in range(steps):
            if self.normalizer is not None and not self.normalizer.update(self._obs):
                check_finite(rows(obs, slice(t)), rewards[:t], self._obs, final_obs)
                raise too_large(self.normalizer.joined(self._obs), t)
            see(t)
            env_actions = distribution.to_env(self.acting.act(t))
            try:
                self._obs, rewards[t], terminated[t], truncated[t], infos = yield env_actions
            except EnvironmentFailure as failure:
                # The action may be the consequence of a number that is not finite: that is the fault to report.
                check_finite(rows(obs, slice(t + 1)), rewards[:t], self._obs, final_obs)
                failure.step = t + 1
                raise
            if self._memory is not None:
                self._memory = next_memory(self.acting.state, terminated[t] | truncated[t])
            ended = terminated[t] | truncated[t] if "final_obs" in infos else None
            self.episodes.add(rewards[t], ended, infos.get("episode_info"))
            if ended is not None:
                for i in np.flatnonzero(truncated[t] & ~terminated[t]):
                    final_obs[t, int(i)] = self._final_input(infos["final_obs"][i])
                    final_states += [] if self._memory is None else [self._memory.state[i]]
        check_finite(obs, rewards, self._obs, final_obs)
        ends = torch.from_numpy(terminated), torch.from_numpy(truncated)
        return self._rollout(seen, torch.from_numpy(rewards), *ends, final_obs, final_states)

    def _seeing(self, seen: Observations) -> Callable[[int], None]:
        """What writes the current observations, as the network sees them, into a step of ``[T, N, ...]``."""
        if self.normalizer is None and isinstance(seen, Tensor) and seen.dtype == tensor_type(self._obs.dtype):
            steps = seen.numpy()  # whose assignment takes a tenth of the time
            return lambda t: steps.__setitem__(t, self._obs)
        # Unbinding all rows at once is cheaper than indexing at each step.
        rows_seen = unbind(seen)
        return lambda t: tree_map(Tensor.copy_, rows_seen[t], with_memory(self._as_input(self._obs), self._memory))

    def _rollout(
        self,
        seen: Observations,
        rewards: Tensor,
        terminated: Tensor,
        truncated: Tensor,
        final_obs: dict[tuple[int, int], Observations],
        final_states: list[Tensor],
    ) -> Rollout:
        """What the steps ``[T, N]`` were, with what the policy decided in them."""
        outputs, values, actions = self.acting.decisions()
        device = next(self.network.parameters()).device
        self._following = self._what_follows(final_obs, final_states, device)
        values, next_values = self._following.next_values(self.network, values)
        step_rewards = self._scaled(rewards, terminated | truncated)
        return Rollout(
            obs=tree_map(lambda steps: steps.to(device), seen),
            actions=actions,
            log_probs=self.network.distribution.log_prob(outputs, actions),
            values=values,
            next_values=next_values,
            rewards=step_rewards.to(next_values),
            terminated=terminated.to(device),
            truncated=truncated.to(device),
        )

    def _memory_of(self, steps: int) -> Memory | None:
        """Room for the memory at each of ``T`` steps; ``None`` if the network has none."""
        if self._memory is None:
            return None
        room = (torch.empty((steps, *now.shape), dtype=now.dtype) for now in self._memory)
        return Memory(*room)

    def _as_input(self, obs: Any) -> Observations:
        """Observations as the network sees them, normalized or not."""
        tensors = tree_map(torch.as_tensor, obs)
        return tensors if self.normalizer is None else self.normalizer(tensors)

    def _final_input(self, obs: Any) -> Observations:
        """As :meth:`_as_input`, but what is not finite stays, as clipping would hide it from the check."""
        final = tree_map(torch.as_tensor, obs)
        if all(entry.isfinite().all() for entry in leaves(final)):
            final = self._as_input(final)
        return tree_map(Tensor.to, final, self.obs_dtype)

    def _scaled(self, rewards: Tensor, ended: Tensor) -> Tensor:
        """Rewards ``[T, N]``, scaled or not; ``ended`` ``[T, N]`` says which steps ended an episode."""
        if self.reward_scaler is None:
            return rewards
        scaled: Tensor
        scaled, self._discounted_sums = self.reward_scaler(rewards, ended, self._discounted_sums)
        return scaled

    def _what_follows(
        self, final_obs: dict[tuple[int, int], Observations], final_states: list[Tensor], device: torch.device
    ) -> Following:
        """What the steps led to.

        Args:
            final_obs: By (step, environment), the last observations of episodes that a time limit ended.
            final_states: Of the memory there, if the network has one.
            device: The network's.
        """
        obs = tree_map(Tensor.to, self._as_input(self._obs), self.obs_dtype)
        last, final = unbind(with_memory(obs, self._memory)), list(final_obs.values())
        if self._memory is not None:
            going_on = torch.zeros((), dtype=torch.bool, device=self._memory.begins.device)
            final = [Remembered(*both) for both in zip(final, (Memory(s, going_on) for s in final_states), strict=True)]
        return Following(tree_map(lambda rows: rows.to(device), stack([*last, *final])), list(final_obs))


def _restored(saved: Mapping[str, Tensor] | None, like: Memory) -> Memory:
    """The memory of open episodes from a checkpoint, as ``like``.

    Raises:
        UsageError: If it is not there, or another network's.
    """
    if saved is None or saved["state"].shape != like.state.shape:
        raise UsageError("the checkpoint has no memory of its episodes that fits the network; use another copy of it")
    return Memory(*(saved[name].to(now, copy=True) for name, now in like._asdict().items()))


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
