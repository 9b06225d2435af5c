"""What is said while a state is being restored."""

import time

import numpy as np

from pl_rl.checkpoints.training_state import _progress
from pl_rl.envs import EnvConfig, make_vector_env, replayed_steps, save_envs


def test_a_long_replay_is_said_and_a_short_one_is_not(caplog):
    with caplog.at_level("INFO"):
        with _progress(12_345):
            pass
        assert not caplog.text
        with _progress(12_345):
            time.sleep(1.3)
    assert "Replaying 12,345 steps of the environments since their anchors: 1 s so far." in caplog.text


def test_the_steps_of_a_replay_are_counted():
    for vectorization, expected in (("sync", 14), ("async", 14), ("native", 0)):
        env = make_vector_env(EnvConfig("CartPole-v1", vectorization), 2)
        env.reset(seed=0)
        for t in range(7):
            env.step(np.array([t % 2] * 2))
        assert replayed_steps(save_envs(env)) == expected
        env.close()
    assert replayed_steps(None) == 0
