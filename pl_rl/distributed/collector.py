"""Rollouts of several shards: environments are stepped together, and all arithmetic is done by shard.

Shapes: ``T`` steps of a rollout, ``N`` environments of this process, ``n`` of a shard, ``S`` shards of the run, ``L``
of this process, ``K`` numbers of running statistics.
"""

import copy
from collections.abc import Generator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import VectorEnv
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from pl_rl.algorithm.acting import ActionSelector
from pl_rl.algorithm.episodes import EpisodeStatistics
from pl_rl.algorithm.rollout import Rollout, RolloutCollector
from pl_rl.distributed.shards import Shards
from pl_rl.envs import (
    AnyVectorEnv,
    EnvConfig,
    join_shards,
    make_vector_env,
    restore_envs,
    save_shards,
    vectorization_of,
)
from pl_rl.errors import EnvironmentFailure
from pl_rl.networks.actor_critic import ActorCritic
from pl_rl.networks.normalization import ObservationNormalizer, RewardScaler, merged_moments
from pl_rl.networks.records import split, tree_map
from pl_rl.seeding.streams import Stream, derive_seed

WINDOW = 100
"""Latest episodes that means are taken over, in equal parts of all shards."""


class ShardedCollector(RolloutCollector):
    """Steps the environments of this process's shards together.

    What a shard does depends on nothing that others do: its random numbers, its statistics since the last exchange and
    each call of the network are its own, in the shapes of one shard.

    Args:
        env: The environments of all its shards, as a :class:`~pl_rl.algorithm.rollout.RolloutCollector` has them.
        network: As there.
        num_steps: ``T``.
        shards: Of the run.
        normalizer: With the statistics of all shards, see :meth:`take`.
        reward_scaler: Likewise.
    """

    def __init__(
        self,
        env: AnyVectorEnv,
        network: ActorCritic,
        num_steps: int,
        shards: Shards,
        normalizer: ObservationNormalizer | None = None,
        reward_scaler: RewardScaler | None = None,
    ) -> None:
        super().__init__(env, network, num_steps, torch.Generator(), normalizer, reward_scaler)
        self._shards = shards
        self.num_envs = env.num_envs // len(shards.local)
        self._first_env = shards.local.start * self.num_envs
        self._parts = []
        for _ in shards.local:
            statistics = copy.deepcopy((normalizer, reward_scaler))
            slice_of_env = _EnvSlice(env, self.num_envs)
            part = RolloutCollector(slice_of_env, network, num_steps, torch.Generator(), *statistics)
            part.episodes = EpisodeStatistics(self.num_envs, max(1, WINDOW // shards.count))
            self._parts.append(part)
        self.act_with(self.acting)

    def act_with(self, acting: ActionSelector) -> None:
        """Let another one select actions; each shard gets a copy, with the rollout's memory in it."""
        self.acting = acting
        for part in self._parts:
            part.act_with(copy.copy(acting))

    def reseed(self, run_seed: int) -> None:
        """Give each shard random numbers of its own."""
        for shard, part in zip(self._shards.local, self._parts, strict=True):
            part.generator.manual_seed(derive_seed(run_seed, Stream.SAMPLING, shard))

    def reset(self, seed: int) -> None:
        """Begin an episode in each environment; they have the seeds that they have without shards."""
        obs, _ = self.env.reset(seed=seed + self._first_env)
        for part, rows in zip(self._parts, self._split(obs), strict=True):
            part.begin(rows)
        self._join_episodes()

    def state_dict(self, with_environments: bool = True) -> dict[str, Any]:
        """The states of all shards, of all processes, which must all ask for them."""
        environments: list[dict[str, Any] | None] = [None for _ in self._parts]
        if with_environments:
            environments = save_shards(self.env, len(self._parts))
        states = []
        for shard, part, saved in zip(self._shards.local, self._parts, environments, strict=True):
            if shard > 0 and saved is not None and isinstance(saved["state"], list):
                saved["state"][0]["digest"]["before"] = None  # that of the first environment tests their class
            states.append({**part.state_dict(with_environments=False), "environments": saved})
        return {"shards": list(chain(*self._shards.gather_plain(states)))}

    def load_state_dict(self, state: dict[str, Any], restart_seed: int) -> str | None:
        """The inverse of :meth:`state_dict`, of this process's shards."""
        states = [state["shards"][shard] for shard in self._shards.local]
        environments = join_shards(self.env, [part["environments"] for part in states])
        obs = tree_map(lambda *parts: torch.cat(parts).numpy(), *(part["obs"] for part in states))
        open_returns = torch.cat([part["episodes"]["open_returns"] for part in states]).numpy()
        failure = restore_envs(self.env, environments, obs, open_returns)
        for part, saved in zip(self._parts, states, strict=True):
            part.load_without_environments(saved)
        if failure is not None:
            self.reset(restart_seed)
        self._join_episodes()
        failures: list[str | None] = self._shards.gather_plain(failure)
        return next((one for one in failures if one is not None), None)

    def episode_scalars(self) -> dict[str, float]:
        """Of all shards, of all processes, which must all ask for them."""
        states = self._shards.gather_plain([part.episodes.state_dict() for part in self._parts])
        return join_episodes(list(chain(*states))).scalars()

    def shared(self) -> list[Tensor]:
        """What the other processes must know of each shard after a rollout.

        Returns:
            Seeds of the orders ``[L]`` in which samples are learnt from, and statistics ``[L, K]``.
        """
        seeds = [torch.randint(2**62, (1,), generator=part.generator) for part in self._parts]
        moments = zip(*([one.moments() for one in part.statistics] for part in self._parts), strict=True)
        return [torch.cat(seeds), *map(torch.stack, moments)]

    def take(self, shared: Sequence[Tensor]) -> list[torch.Generator]:
        """Merge what all shards have learnt of observations and rewards.

        Args:
            shared: Of :meth:`shared`, of all shards.

        Returns:
            Generators of the orders, of all shards.
        """
        seeds, *moments = shared
        for statistics, after in zip(self.statistics, moments, strict=True):
            statistics.load_moments(merged_moments(statistics.moments(), after))
        return [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]

    def _collect(self) -> Rollout:
        for part in self._parts:
            for own, merged in zip(part.statistics, self.statistics, strict=True):
                own.load_state_dict(merged.state_dict())
            if part.reward_scaler is not None and self.reward_scaler is not None:
                part.reward_scaler.gamma = self.reward_scaler.gamma
        steps = [part.steps() for part in self._parts]
        try:
            answers = [_next(part) for part in steps]
            while not isinstance(answers[0], Rollout):
                given = self._step(steps, np.concatenate(answers))
                answers = [_next(part, step) for part, step in zip(steps, given, strict=True)]
        except EnvironmentFailure as failure:
            failure.index += self._first_env
            raise
        self._join_episodes()
        return Rollout.join(answers)

    def _revalue(self, rollout: Rollout) -> Rollout:
        parts = zip(self._parts, rollout.split(len(self._parts)), strict=True)
        return Rollout.join([part.revalue(of_part) for part, of_part in parts])

    def _step(self, steps: "Sequence[_Steps]", actions: npt.NDArray[Any]) -> list[tuple[Any, ...]]:
        """One step of all, split into those of shards."""
        try:
            *arrays, infos = self.env.step(actions)
        except EnvironmentFailure as failure:
            for part in steps:  # a number of one may be the fault to report
                try:
                    part.throw(failure)
                except EnvironmentFailure as found:
                    if found is not failure:
                        raise
            raise
        parts = zip(*map(self._split, arrays), strict=True)
        return [(*step, self._infos(infos, number)) for number, step in enumerate(parts)]

    def _infos(self, infos: dict[str, Any], number: int) -> dict[str, Any]:
        if "final_obs" not in infos:
            return {}
        first = number * self.num_envs
        episodes = infos.get("episode_info", {})
        told = {i: episodes[first + i] for i in range(self.num_envs) if first + i in episodes}
        return {"final_obs": infos["final_obs"][first : first + self.num_envs], "episode_info": told}

    def _split(self, arrays: Any) -> list[Any]:
        """``[N, ...]``, an array or a dictionary, as ``[n, ...]`` of each shard, in memory of its own."""
        return [tree_map(np.copy, part) for part in split(arrays, self.num_envs)]

    def _join_episodes(self) -> None:
        self.episodes = join_episodes([part.episodes.state_dict() for part in self._parts])


def make_collector(
    shards: Shards,
    env_config: EnvConfig,
    num_envs: int,
    network: ActorCritic,
    num_steps: int,
    normalizer: ObservationNormalizer | None,
    reward_scaler: RewardScaler | None,
) -> RolloutCollector:
    """The collector of this process, with new environments; ``num_envs`` are those of all processes."""
    env = make_vector_env(env_config, num_envs // shards.world, training=True, shards=len(shards.local))
    if env_config.vectorization == "auto":
        rank_zero_info(f"Environments: {num_envs} of {env_config.id}, {vectorization_of(env)}.")
    if shards.count > 1:
        return ShardedCollector(env, network, num_steps, shards, normalizer, reward_scaler)
    return RolloutCollector(env, network, num_steps, torch.Generator(), normalizer, reward_scaler)


_Steps = Generator[npt.NDArray[Any], Any, Rollout]


def _next(steps: _Steps, given: Any = None) -> Any:
    """The actions of the next step, or the rollout."""
    try:
        return steps.send(given)
    except StopIteration as end:
        return end.value


def join_episodes(states: Sequence[dict[str, Any]]) -> EpisodeStatistics:
    """The statistics of all shards' episodes, from their states."""
    recent = [episode for state in states for episode in state["recent"]]
    info = [said for state in states for said in state.get("info") or [{} for _ in state["recent"]]]
    joined = EpisodeStatistics(0, max(len(recent), 1))
    counts = {name: torch.cat([state[name] for state in states]) for name in ("open_returns", "open_lengths")}
    joined.load_state_dict({**counts, "recent": recent, "info": info, "total": sum(s["total"] for s in states)})
    return joined


class _EnvSlice(VectorEnv[Any, Any, Any]):
    """As many environments as a shard has; they are stepped with those of other shards."""

    def __init__(self, env: AnyVectorEnv, num_envs: int) -> None:
        self.num_envs = num_envs
        self.single_observation_space = env.single_observation_space
