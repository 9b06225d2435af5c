"""Choosing sync or async by timing a few steps of each."""

import math
import multiprocessing
import time

import gymnasium as gym

from pl_rl.envs.config import EnvConfig
from pl_rl.envs.faults import STOPS, close_each
from pl_rl.envs.make import make_env
from pl_rl.envs.processors import cores
from pl_rl.seeding.random_state import restore_random_state, save_random_state

# The overhead of commands and replies in a step of all environments: four times the 60 us measured with two workers, as
# processor cores are seldom all free.
OVERHEAD_SECONDS = 240e-6
WARM_UP_STEPS = 5
PROBED_STEPS = 20
LONGEST_PROBE_SECONDS = 1.0


def workers_pay(config: EnvConfig, num_envs: int) -> bool:
    """Whether stepping the environments in worker processes saves clearly more time than it costs.

    The choice affects speed alone: both give the same numbers, and a resumed run may change between them.
    """
    in_turn = math.ceil(num_envs / cores())
    if in_turn == num_envs or multiprocessing.current_process().daemon:  # which may start no others
        return False
    random_state = save_random_state()
    env = make_env(config, training=True)
    try:
        return (num_envs - in_turn) * _seconds_per_step(env) > OVERHEAD_SECONDS
    except STOPS:
        raise
    except BaseException:  # it will come again, and be reported, when the environment is used
        return False
    finally:
        close_each([(0, env)])
        restore_random_state(random_state)


def _seconds_per_step(env: "gym.Env[object, object]") -> float:
    env.action_space.seed(0)
    env.reset(seed=0)
    began, steps = time.perf_counter(), 0
    for number in range(WARM_UP_STEPS + PROBED_STEPS):
        if number == WARM_UP_STEPS:
            began, steps = time.perf_counter(), 0
        *_, terminated, truncated, _ = env.step(env.action_space.sample())
        steps += 1
        if time.perf_counter() - began > LONGEST_PROBE_SECONDS:
            break
        if terminated or truncated:
            env.reset()
    return (time.perf_counter() - began) / steps
