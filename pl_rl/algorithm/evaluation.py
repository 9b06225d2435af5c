"""Evaluation: playing whole episodes."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from pl_rl.envs import AnyVectorEnv, EnvConfig, make_vector_env
from pl_rl.envs.episode_info import EpisodeInfo, info_statistics
from pl_rl.envs.faults import check_finite, closing
from pl_rl.errors import EnvironmentFailure
from pl_rl.networks.actor_critic import ActorCritic
from pl_rl.networks.distributions import to_numpy
from pl_rl.networks.modes import evaluation_mode
from pl_rl.networks.normalization import ObservationNormalizer
from pl_rl.networks.records import Observations, as_input, leaves, next_memory, tree_map, with_memory
from pl_rl.seeding.random_state import random_state_kept

# The largest limit in common use is Atari's, 27,000 steps of four frames.
LONGEST_EPISODE = 100_000
LIMIT_EPISODES = "give the environment a limit with --model.env.kwargs '{\"max_episode_steps\": N}'"


class Episodes(NamedTuple):
    """Episodes in the order in which they ended."""

    returns: list[float]
    """Undiscounted sums of rewards."""
    lengths: list[int]
    """Steps."""
    infos: list[EpisodeInfo]
    """What environments say at their ends, see :mod:`pl_rl.envs.episode_info`."""

    def statistics(self) -> dict[str, float]:
        """Mean, minimum, maximum and standard deviation of return and length; ``success_rate`` where it is known."""
        statistics: dict[str, float] = {}
        for name, numbers in [("return", np.array(self.returns)), ("length", np.array(self.lengths))]:
            statistics[f"{name}_mean"] = float(numbers.mean())
            statistics[f"{name}_min"] = float(numbers.min())
            statistics[f"{name}_max"] = float(numbers.max())
            statistics[f"{name}_std"] = float(numbers.std())
        return {**statistics, **info_statistics(self.infos)}


def format_return(value: float) -> str:
    """A return as text: three decimals below 10, as many environments' returns lie between 0 and 1, else one."""
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def evaluate(
    network: ActorCritic,
    env_config: EnvConfig,
    num_envs: int,
    num_episodes: int,
    seed: int,
    deterministic: bool = True,
    normalizer: ObservationNormalizer | None = None,
) -> Episodes:
    """Play episodes in environments made for this call: the outcome depends on the arguments alone.

    Args:
        network: The policy.
        env_config: The environment; worker processes are not started for it.
        num_envs: Environments that are stepped together.
        num_episodes: Episodes in all. Each environment plays a share fixed beforehand, so that short episodes do not
            bias the mean.
        seed: Of the environments and of sampled actions.
        deterministic: Take the most probable actions rather than sampled ones.
        normalizer: Normalizes observations for the network; not updated.
    """
    if env_config.vectorization == "async":
        env_config = dataclasses.replace(env_config, vectorization="auto")
    env = make_vector_env(env_config, min(num_envs, num_episodes))
    with closing(env):
        return play(network, env, num_episodes, seed, deterministic, normalizer)


@torch.no_grad()
def play(
    network: ActorCritic,
    env: AnyVectorEnv,
    num_episodes: int,
    seed: int,
    deterministic: bool,
    normalizer: ObservationNormalizer | None = None,
) -> Episodes:
    """Play ``num_episodes`` episodes in ``env`` from a seeded reset on; arguments as in :func:`evaluate`.

    The network is in evaluation mode. Afterwards the modes of its submodules and the states of the global random
    generators are restored, as an environment or a custom network may draw from these: evaluating more often changes
    nothing in training, and the same weights give the same episodes anywhere.

    An episode that has not ended after 100,000 steps counts as it is, and is the last of its environment.

    Raises:
        EnvironmentFailure: If an environment fails, or gives numbers that are not finite.
    """
    with random_state_kept(), evaluation_mode(network, normalizer):
        return _play(network, env, num_episodes, seed, deterministic, normalizer)


def _play(
    network: ActorCritic,
    env: AnyVectorEnv,
    num_episodes: int,
    seed: int,
    deterministic: bool,
    normalizer: ObservationNormalizer | None,
) -> Episodes:
    parameter = next(network.parameters())
    generator = torch.Generator().manual_seed(seed)
    remaining = np.full(env.num_envs, num_episodes // env.num_envs)
    remaining[: num_episodes % env.num_envs] += 1
    open_returns, open_lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, dtype=np.int64)
    episodes = Episodes([], [], [])
    try:
        obs, _ = env.reset(seed=seed)
    except EnvironmentFailure as failure:
        failure.when = "at the beginning of an evaluation"
        raise
    step, memory = 0, network.first_memory(env.num_envs)
    while remaining.any():
        step += 1
        seen = with_memory(network_input(obs, parameter, normalizer), memory)
        actions, state = choose_actions(network, seen, generator, deterministic)
        try:
            obs, rewards, terminated, truncated, infos = env.step(network.distribution.to_env(to_numpy(actions)))
            if not (np.isfinite(rewards).all() and all(np.isfinite(entry).all() for entry in leaves(obs))):
                check_finite(tree_map(lambda entry: torch.from_numpy(entry[None, :0]), obs), rewards[None], obs, {})
        except EnvironmentFailure as failure:
            failure.when = f"at step {step:,} of an evaluation"
            raise
        memory = next_memory(state, terminated | truncated)
        open_returns += rewards
        open_lengths += 1
        endless = (open_lengths >= LONGEST_EPISODE) & (remaining > 0)
        if endless.any():
            first = int(np.argmax(endless))
            rank_zero_info(
                f"Evaluation cut {endless.sum()} episode(s) that had not ended after {LONGEST_EPISODE:,} steps, "
                f"the first of environment {first} at a return of {format_return(float(open_returns[first]))}; "
                f"{LIMIT_EPISODES}."
            )
        for i in np.flatnonzero(terminated | truncated | endless):
            if remaining[i]:
                episodes.returns.append(float(open_returns[i]))
                episodes.lengths.append(int(open_lengths[i]))
                episodes.infos.append(infos.get("episode_info", {}).get(int(i), {}))
                remaining[i] = 0 if endless[i] else remaining[i] - 1
            open_returns[i] = open_lengths[i] = 0
    return episodes


def choose_actions(
    network: ActorCritic, seen: Any, generator: torch.Generator, deterministic: bool
) -> tuple[Tensor, Tensor | None]:
    """What a network does, ``[B]`` or ``[B, A]``, before :meth:`ActionDistribution.to_env`, and its memory then.

    Args:
        network: The policy, in evaluation mode.
        seen: Its input ``[B, ...]``, as :func:`network_input` gives it, with the memory if it has one.
        generator: Of sampled actions, on the CPU.
        deterministic: Take the most probable actions rather than sampled ones.
    """
    outputs, state = network.policy_step(seen)
    if deterministic:
        return network.distribution.mode(outputs), state
    noise = network.distribution.noise(tuple(outputs.shape[:-1]), generator)
    return network.distribution.sample(outputs, noise.to(outputs.device)), state


def network_input(obs: Any, parameter: Tensor, normalizer: ObservationNormalizer | None) -> Observations:
    """Observations ``[B, ...]`` of environments on a network's device.

    Args:
        obs: A NumPy array, or a dictionary of them.
        parameter: One of the network, for its device and type, which floats are given; integers stay as they are.
        normalizer: Stands between the observations and the network.
    """
    tensors = tree_map(torch.from_numpy, obs)
    return as_input(tensors if normalizer is None else normalizer(tensors), parameter)
