"""Machine code moves CartPole's carts as NumPy does, at zero tolerance."""

import logging

import lightning as L
import numpy as np
import pytest

from pl_rl.compiled import cartpole, code_cache, learner
from pl_rl.compiled.cartpole import CompiledMotion
from pl_rl.envs import EnvConfig, make_vector_env, restore_envs, save_envs
from pl_rl.envs.native import SameStepCartPoleVectorEnv, move_carts
from pl_rl.errors import CompilationError
from tests.support import fit, same_bits, small_ppo

RIGHT = cartpole.SOURCE.read_text()


def pair(num_envs, **settings):
    """An environment by machine code and one by NumPy, begun."""
    ours, numpys = (SameStepCartPoleVectorEnv(num_envs, **settings) for _ in range(2))
    ours.move_by(CompiledMotion(num_envs))
    assert np.array_equal(ours.reset(seed=5)[0], numpys.reset(seed=5)[0])
    return ours, numpys


def assert_same_step(ours, numpys, actions):
    one, other = ours.step(actions), numpys.step(actions)
    for mine, its in zip(one[:4], other[:4], strict=True):
        assert mine.dtype == its.dtype and np.array_equal(mine, its)
        assert not np.may_share_memory(mine, ours.state)
    assert one[4].keys() == other[4].keys()
    assert all(np.array_equal(one[4][name], other[4][name]) for name in one[4])
    assert np.array_equal(ours.state, numpys.state)
    return one


@pytest.mark.parametrize("num_envs", [1, 3, 8, 61])
def test_steps_are_those_of_numpy(num_envs):
    """Over ends by falling and by the time limit; what was returned stays as it was."""
    ours, numpys = pair(num_envs, max_episode_steps=40)
    rng, ends, kept = np.random.default_rng(0), np.zeros(2, dtype=int), []
    for step in range(10_000 // num_envs):
        # Pushing back keeps a pole up for long.
        actions = ours.state[2] > 0 if step % 100 < 60 else rng.integers(2, size=num_envs)
        obs, _, terminated, truncated, _ = assert_same_step(ours, numpys, np.asarray(actions, dtype=np.int64))
        ends += [terminated.sum(), truncated.sum()]
        kept.append((obs, terminated, obs.copy(), terminated.copy()))
    assert (ends > 0).all()
    assert all(np.array_equal(obs, was) and np.array_equal(end, had) for obs, end, was, had in kept)


def test_what_a_script_assigns_takes_effect():
    """Constants, states and the integrator, at any step."""
    ours, numpys = pair(4)
    actions = np.array([0, 1, 1, 0])
    for name, value in {"gravity": 3.7, "masspole": 0.3, "tau": 0.05, "x_threshold": 0.1}.items():
        for env in (ours, numpys):
            setattr(env, name, value)
            env.state = env.state + 0.01
        assert_same_step(ours, numpys, actions)
    for env in (ours, numpys):
        env.kinematics_integrator = "semi-implicit euler"
    for _ in range(3):
        assert_same_step(ours, numpys, actions)


def test_states_are_saved_and_restored_across_both():
    config = EnvConfig("CartPole-v1")
    ours, numpys, third = (make_vector_env(config, 4, training=True) for _ in range(3))
    ours.move_by(CompiledMotion(4))
    obs, _ = ours.reset(seed=1)
    actions = np.random.default_rng(1).integers(2, size=(60, 4))
    for step in actions[:30]:
        obs, *_ = ours.step(step)
    saved = save_envs(ours)
    expected = [ours.step(step)[0] for step in actions[30:]]
    third.move_by(CompiledMotion(4))
    third.reset(seed=2)
    third.step(actions[0])
    for other in (numpys, third):
        assert restore_envs(other, saved, obs, np.zeros(4)) is None
        assert all(map(np.array_equal, expected, [other.step(step)[0] for step in actions[30:]]))


class MotionSeen(L.Callback):
    """Notes what moves the carts of a run."""

    def on_train_end(self, trainer, pl_module):
        self.motion = pl_module.collector.env._move


def test_a_compiled_run_has_the_bits_of_numpys_steps(monkeypatch):
    def train():
        model, seen = small_ppo(compile_update=True), MotionSeen()
        fit(model, callbacks=[seen])
        return model.state_dict(), seen.motion

    state, motion = train()
    assert isinstance(motion, CompiledMotion)
    monkeypatch.setattr(learner, "compile_motion", lambda env: None)
    of_numpy, motion = train()
    assert motion is move_carts
    assert same_bits(state, of_numpy)


def test_an_eager_run_compiles_nothing():
    seen = MotionSeen()
    fit(small_ppo(compile_update=False), callbacks=[seen])
    assert seen.motion is move_carts


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("not C++", "error"),
        (RIGHT.replace("4.0 / 3.0", "1.3333"), "gives other numbers"),
        # As where products and sums are contracted to FMA.
        (RIGHT.replace("x[i] += c.tau * x_dot[i]", "x[i] = std::fma(c.tau, x_dot[i], x[i])"), "gives other numbers"),
    ],
)
def test_what_cannot_be_compiled_is_stepped_by_numpy(source, why, tmp_path, monkeypatch, caplog):
    written = tmp_path / "source.cpp"
    written.write_text(source)
    monkeypatch.setattr(cartpole, "SOURCE", written)
    monkeypatch.setattr(code_cache, "keep", lambda *args: None)
    env = SameStepCartPoleVectorEnv(2)
    with caplog.at_level(logging.INFO):
        cartpole.compile_motion(env)
    assert "CartPole is stepped by NumPy: " in caplog.text and why in caplog.text
    assert env._move is move_carts
    with pytest.raises(CompilationError):
        CompiledMotion(2)
