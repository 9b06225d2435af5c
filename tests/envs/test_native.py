"""Our step of gymnasium's vectorized CartPole gives its numbers, at zero tolerance."""

import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv

from pl_rl.envs import native
from pl_rl.envs.native import SameStepCartPoleVectorEnv


class Theirs(SameStepCartPoleVectorEnv):
    """Steps as gymnasium's class."""

    def _step(self, action):
        return CartPoleVectorEnv.step(self, action)

    def step(self, action):
        result = super().step(action)
        self.prev_done = np.zeros_like(self.prev_done)
        return result


@pytest.mark.parametrize("num_envs", [1, 3, 8, 64])
@pytest.mark.parametrize("sutton_barto_reward", [False, True])
def test_steps_are_those_of_gymnasium(num_envs, sutton_barto_reward):
    """Over ends by falling and by the time limit."""
    assert native._computes_as_gymnasium()  # or gymnasium's step would be compared with itself
    settings = {"num_envs": num_envs, "sutton_barto_reward": sutton_barto_reward, "max_episode_steps": 40}
    ours, theirs = (make(**settings) for make in (SameStepCartPoleVectorEnv, Theirs))
    assert np.array_equal(ours.reset(seed=5)[0], theirs.reset(seed=5)[0])
    rng, ends = np.random.default_rng(0), np.zeros(2, dtype=int)
    for step in range(400):
        # Pushing back keeps a pole up for long.
        actions = ours.state[2] > 0 if step % 100 < 60 else rng.integers(2, size=num_envs)
        one, other = (env.step(np.asarray(actions, dtype=np.int64)) for env in (ours, theirs))
        for mine, its in zip(one[:4], other[:4], strict=True):
            assert mine.dtype == its.dtype and np.array_equal(mine, its)
            assert not np.may_share_memory(mine, ours.state)
        assert one[4].keys() == other[4].keys()
        assert all(np.array_equal(one[4][name], other[4][name]) for name in one[4])
        assert np.array_equal(ours.state, theirs.state) and np.array_equal(ours.steps, theirs.steps)
        ends += [one[2].sum(), one[3].sum()]
    assert (ends > 0).all()


def test_another_integrator_is_gymnasiums():
    ours, theirs = SameStepCartPoleVectorEnv(num_envs=3), Theirs(num_envs=3)
    for env in (ours, theirs):
        env.kinematics_integrator = "semi-implicit euler"
        env.reset(seed=1)
    for _ in range(80):
        one, other = (env.step(np.ones(3, dtype=np.int64)) for env in (ours, theirs))
        assert all(np.array_equal(*both) for both in zip(one[:4], other[:4], strict=True))


def test_a_release_of_gymnasium_that_computes_otherwise_is_left_to_itself(monkeypatch):
    """It would be another environment, with other results."""
    step, stepped = CartPoleVectorEnv.step, []

    def heavier(env, action):
        env.masspole = 0.1000001
        stepped.append(action)
        return step(env, action)

    monkeypatch.setattr(CartPoleVectorEnv, "step", heavier)
    native._computes_as_gymnasium.cache_clear()
    try:
        assert not native._computes_as_gymnasium()
        env = SameStepCartPoleVectorEnv(num_envs=2)
        env.reset(seed=0)
        stepped.clear()
        env.step(np.ones(2, dtype=np.int64))
        assert len(stepped) == 1
    finally:
        monkeypatch.undo()
        native._computes_as_gymnasium.cache_clear()
    assert native._computes_as_gymnasium()
