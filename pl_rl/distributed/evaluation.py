"""Evaluations whose episodes are dealt to shards."""

from itertools import chain

import numpy as np

from pl_rl.algorithm.evaluation import Episodes, evaluate
from pl_rl.distributed.shards import Shards
from pl_rl.envs import EnvConfig
from pl_rl.networks.actor_critic import ActorCritic
from pl_rl.networks.normalization import ObservationNormalizer
from pl_rl.seeding.streams import derive_seed


def evaluate_by_shard(
    shards: Shards,
    network: ActorCritic,
    env_config: EnvConfig,
    num_envs: int,
    num_episodes: int,
    run_seed: int,
    key: tuple[int, ...],
    deterministic: bool,
    normalizer: ObservationNormalizer | None,
) -> Episodes:
    """As :func:`~pl_rl.algorithm.evaluation.evaluate`, each shard with a share of environments and episodes.

    Args:
        shards: Of the run.
        network: As there.
        env_config: As there.
        num_envs: Of all shards.
        num_episodes: Of all shards.
        run_seed: As of :func:`~pl_rl.seeding.streams.derive_seed`.
        key: As there; shards add their numbers.
        deterministic: As there.
        normalizer: As there.

    Returns:
        The episodes of all shards, shard by shard.
    """
    played = []
    for shard in shards.local:
        envs, episodes = (len(np.array_split(range(total), shards.count)[shard]) for total in (num_envs, num_episodes))
        seed = derive_seed(run_seed, *key) if shards.count == 1 else derive_seed(run_seed, *key, shard)
        if episodes:
            share = network, env_config, max(1, envs), episodes, seed, deterministic, normalizer
            played.append(tuple(evaluate(*share)))
    every = chain(*shards.gather_plain(played))
    returns, lengths, infos = (list(chain(*lists)) for lists in zip(*every, strict=True))
    return Episodes(returns, lengths, infos)
