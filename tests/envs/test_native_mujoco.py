"""MuJoCo's tasks at once: the numbers of gymnasium's own environments, and what goes to these."""

import copy
import gc
import sys
import threading
from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from mujoco.batch import SimulationError

from pl_rl import EnvConfig, UsageError
from pl_rl.envs import (
    join_shards,
    make_vector_env,
    native_mujoco,
    replayed_steps,
    restore_envs,
    save_envs,
    save_shards,
    simulations,
    vectorization_of,
)
from pl_rl.envs.mujoco_tasks import TASKS
from pl_rl.envs.simulations import BatchedSimulations
from pl_rl.errors import EnvironmentFailure
from tests.envs.test_replay import open_returns_of, same, walk

SHORT = {"max_episode_steps": 30}


def task(name, vectorization="native", **kwargs):
    return EnvConfig(f"{name}-v5", vectorization, {**SHORT, **kwargs})


def pair(name, num_envs, **kwargs):
    """The same environments natively and one by one, begun."""
    envs = [make_vector_env(task(name, how, **kwargs), num_envs, training=True) for how in ("native", "sync")]
    firsts = [env.reset(seed=7)[0] for env in envs]
    assert np.array_equal(*firsts)
    assert envs[0].single_observation_space == envs[1].single_observation_space
    assert envs[0].single_action_space == envs[1].single_action_space
    return envs


def assert_equal_steps(native, single, steps, seed=0):
    """Bit for bit, types included; returns how many episodes ended."""
    rng, ends = np.random.default_rng(seed), 0
    space = native.single_action_space
    for t in range(steps):
        # Wild actions end episodes, mild ones let them last.
        scale = 1.3 if t % 40 < 20 else 0.1
        actions = scale * rng.uniform(space.low, space.high, (native.num_envs, *space.shape)).astype(np.float32)
        one, other = native.step(actions), single.step(actions)
        for ours, theirs in zip(one[:4], other[:4], strict=True):
            assert ours.dtype == theirs.dtype
            assert np.array_equal(ours, theirs), f"step {t}"
        for i in np.flatnonzero(one[2] | one[3]):
            assert np.array_equal(one[4]["final_obs"][i], other[4]["final_obs"][i])
            assert one[4]["_final_obs"][i]
            ends += 1
    return ends


NAMES = sorted(path.rpartition(":")[2].removesuffix("Env") for path in TASKS)
ARGUMENTS = [
    ("HalfCheetah", {"exclude_current_positions_from_observation": False, "frame_skip": 3, "ctrl_cost_weight": 2}),
    ("HalfCheetah", {"xml_file": "hopper.xml", "forward_reward_weight": 0.3}),
    ("Hopper", {"terminate_when_unhealthy": False, "healthy_reward": 2, "healthy_angle_range": (-0.02, 0.02)}),
    ("Hopper", {"healthy_state_range": (-1.0, 1.0), "reset_noise_scale": 0.1}),
    ("Walker2d", {"healthy_z_range": (1.0, 1.3), "exclude_current_positions_from_observation": False}),
    ("Ant", {"include_cfrc_ext_in_observation": False, "main_body": "torso", "contact_force_range": (-0.1, 0.2)}),
    ("Ant", {"exclude_current_positions_from_observation": False, "contact_cost_weight": 0.1, "main_body": 3}),
    ("Humanoid", {"include_cvel_in_observation": False, "contact_cost_range": (0.0, 0.001)}),
    ("Humanoid", {"exclude_current_positions_from_observation": False, "include_qfrc_actuator_in_observation": False}),
    ("Swimmer", {"exclude_current_positions_from_observation": False, "max_episode_steps": -1}),
]


LONG = pytest.param("HumanoidStandup", {}, marks=pytest.mark.slow)  # it lies, in contact with the ground
CASES = [LONG if name == "HumanoidStandup" else (name, {}) for name in NAMES]


@pytest.mark.parametrize(("name", "kwargs"), [*CASES, *ARGUMENTS], ids=str)
def test_the_numbers_are_those_of_gymnasium(name, kwargs):
    """Over ends of episodes, and resets with and without seeds (anchors)."""
    native, single = pair(name, 3, **kwargs)
    ends = assert_equal_steps(native, single, 130)
    assert ends or kwargs.get("max_episode_steps") == -1
    assert np.array_equal(native.reset(seed=1)[0], single.reset(seed=1)[0])
    assert_equal_steps(native, single, 40, seed=1)
    native.close(), single.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_stay_those_of_gymnasium(name):
    native, single = pair(name, 1, max_episode_steps=500)
    assert assert_equal_steps(native, single, 10_000) >= 20
    native.close(), single.close()


@pytest.fixture
def without_batches(monkeypatch):
    """As with MuJoCo 3."""
    monkeypatch.setitem(sys.modules, "mujoco.batch", None)


@pytest.mark.parametrize("cores", [1, 2, 5])
def test_threads_change_no_number(cores, monkeypatch, without_batches):
    monkeypatch.setattr(simulations, "cores", lambda: cores)
    before = threading.active_count()
    native, single = pair("Hopper", 3)
    assert threading.active_count() == before + min(cores, 3) - 1
    assert_equal_steps(native, single, 40)
    native.close(), single.close()


@pytest.mark.parametrize("cores", [1, 2, 5])
def test_batches_change_no_number(cores, monkeypatch):
    monkeypatch.setattr(simulations, "cores", lambda: cores)
    native, single = pair("Walker2d", 3)
    assert isinstance(native._simulations, BatchedSimulations)
    assert native._simulations._batch.nthread == min(cores, 3)
    assert_equal_steps(native, single, 40)
    native.close(), native.close(), single.close()


@pytest.mark.parametrize("name", ["HalfCheetah", "Swimmer", "Walker2d", "Hopper"])
def test_a_batch_goes_on_where_threads_have_been_and_back(name, monkeypatch):
    """As when a run is continued with another release of MuJoCo."""
    batched = make_vector_env(task(name), 3, training=True)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "mujoco.batch", None)
        threaded = make_vector_env(task(name), 3, training=True)
    assert type(batched._simulations) is not type(threaded._simulations)
    threaded.reset(seed=3), batched.reset(seed=4)
    assert_equal_steps(threaded, make_begun(name, 3), 25)
    for source, target in ((threaded, batched), (batched, threaded)):
        assert target.load_state_dict(copy.deepcopy(source.state_dict()))
        assert_equal_steps(source, target, 45)
        assert torch.equal(source.state_dict()["simulation"], target.state_dict()["simulation"])
    batched.close(), threaded.close()


def make_begun(name, seed):
    env = make_vector_env(task(name, "sync"), 3, training=True)
    env.reset(seed=seed)
    return env


def test_no_thread_stays(monkeypatch, without_batches):
    monkeypatch.setattr(simulations, "cores", lambda: 3)
    before = set(threading.enumerate())
    for closes in (True, False):
        env = make_vector_env(task("HalfCheetah"), 3)
        env.reset(seed=0)
        started = set(threading.enumerate()) - before
        assert len(started) == 2
        if closes:
            env.close()
        del env
        gc.collect()
        for thread in started:
            thread.join(5)
            assert not thread.is_alive()


def test_a_model_that_may_keep_more_than_its_state_is_stepped_by_threads():
    xml = "<mujoco><option><flag energy='{}'/></option><worldbody/></mujoco>"
    for flag, kind in (("disable", BatchedSimulations), ("enable", simulations.ThreadedSimulations)):
        model = mujoco.MjModel.from_xml_string(xml.format(flag))
        made = simulations.make_simulations(model, 2, 1, with_forces=False)
        assert type(made) is kind
        made.close()


def threads_of_process():
    return len(list(Path("/proc/self/task").iterdir()))


def test_no_thread_of_a_batch_stays(monkeypatch):
    monkeypatch.setattr(simulations, "cores", lambda: 3)
    before = threads_of_process()
    for closes in (True, False):
        env = make_vector_env(task("HalfCheetah"), 3)
        env.reset(seed=0)
        assert threads_of_process() == before + 2
        if closes:
            env.close()
            assert threads_of_process() == before
        del env
        gc.collect()
        assert threads_of_process() == before


def played(config, steps, num_envs=4):
    """Environments after random steps, their observations and the returns of their open episodes."""
    env = make_vector_env(config, num_envs, training=True)
    obs, _ = env.reset(seed=5)
    seen = walk(env, obs, steps, np.random.default_rng(0))
    return env, seen[-1][0], open_returns_of(seen, num_envs)


def through_a_file(state, tmp_path):
    torch.save(state, tmp_path / "state")
    return torch.load(tmp_path / "state", weights_only=True)


@pytest.mark.parametrize("name", ["HalfCheetah", "Hopper", "Ant", "Humanoid", "InvertedPendulum"])
def test_a_state_is_all_that_the_future_depends_on(name, tmp_path):
    """Also split into shards and put together."""
    config = task(name)
    for steps in (10, 130):
        env, obs, returns = played(config, steps)
        saved = save_envs(env)
        parts = through_a_file(save_shards(env, 2), tmp_path)
        assert saved["class"] == "NativeMujocoEnvs"
        assert replayed_steps(saved) == 0
        expected = walk(env, obs, 50, np.random.default_rng(1))
        env.close()
        other = make_vector_env(config, 4, training=True)
        other.reset(seed=99)
        assert restore_envs(other, join_shards(other, parts), obs, returns) is None
        assert same(walk(other, obs, 50, np.random.default_rng(1)), expected)
        other.close()


@pytest.mark.parametrize(
    ("name", "vectorization"),
    [
        ("HalfCheetah", "sync"),
        pytest.param("HalfCheetah", "async", marks=pytest.mark.slow),
        pytest.param("Humanoid", "sync", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_was_stepped_one_by_one_goes_on_natively(name, vectorization, tmp_path):
    """Old checkpoints of runs with ``auto``, bit for bit, over further anchors."""
    for steps in (10, 130):
        env, obs, returns = played(task(name, vectorization), steps)
        parts = through_a_file(save_shards(env, 2), tmp_path)
        expected = walk(env, obs, 150, np.random.default_rng(1))
        env.close()
        native = make_vector_env(task(name), 4, training=True)
        assert restore_envs(native, join_shards(native, parts), obs, returns) is None
        assert same(walk(native, obs, 150, np.random.default_rng(1)), expected)
        native.close()


def test_a_replay_that_leads_elsewhere_is_said():
    env, obs, returns = played(task("HalfCheetah", "sync"), 20)
    saved = save_envs(env)
    native = make_vector_env(task("HalfCheetah", ctrl_cost_weight=3.0), 4)
    assert "a replay of environment 0's seed and actions led elsewhere" in restore_envs(native, saved, obs, returns)
    native.close(), env.close()


def test_what_does_not_fit_is_said():
    env, obs, returns = played(task("HalfCheetah"), 5)
    saved = save_envs(env)
    failed = "they could not be brought into the state that was saved"
    for config, num_envs, sentence in [
        (task("HalfCheetah", "sync"), 4, "they were stepped by a NativeMujocoEnvs, and are by a SyncEnvs"),
        (task("HalfCheetah"), 3, failed),  # a resume deals them before
        (task("Ant"), 4, failed),
    ]:
        other = make_vector_env(config, num_envs)
        assert restore_envs(other, saved, obs, returns) == sentence
        other.close()
    env.close()


@pytest.mark.parametrize(
    ("what", "settings"),
    [
        ("wrappers", {"wrappers": ["gymnasium.wrappers.ClipAction"]}),
        ("info_keys", {"info_keys": ["x_position"]}),
        ("render_mode='rgb_array'", {"kwargs": {"render_mode": "rgb_array"}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_it_does_not_do_goes_to_gymnasium(what, settings):
    with pytest.raises(UsageError, match=f"'HalfCheetah-v5' has no native vectorization that goes with {what}"):
        make_vector_env(EnvConfig("HalfCheetah-v5", "native", **settings), 2)
    env = make_vector_env(EnvConfig("HalfCheetah-v5", **settings), 2)
    assert vectorization_of(env) == "sync"
    env.close()


def test_a_release_of_gymnasium_that_computes_otherwise_is_left_to_itself(monkeypatch):
    of_before = HalfCheetahEnv._get_rew
    monkeypatch.setattr(HalfCheetahEnv, "_get_rew", lambda self, *args: (1 + of_before(self, *args)[0], {}))
    native_mujoco._computes_as_gymnasium.cache_clear()
    try:
        assert vectorization_of(make_vector_env(task("HalfCheetah", "auto"), 2, training=True)) != "native"
        with pytest.raises(
            UsageError, match=r"that goes with gymnasium [\d.]+, which computes its steps otherwise; use"
        ):
            make_vector_env(task("HalfCheetah"), 2, training=True)
    finally:
        native_mujoco._computes_as_gymnasium.cache_clear()


@pytest.mark.parametrize("index", [0, 2])
def test_an_exception_while_stepping_is_a_sentence_and_no_hang(index, monkeypatch, without_batches):
    """Be it in the caller's thread or in another."""
    monkeypatch.setattr(simulations, "cores", lambda: 2)
    env = make_vector_env(task("HalfCheetah"), 3)
    env.reset(seed=0)
    step, broken = mujoco.mj_step, env._simulations.data[index]

    def failing(model, data, frames):
        if data is broken:
            raise RuntimeError("the solver gave up")
        step(model, data, frames)

    monkeypatch.setattr(mujoco, "mj_step", failing)
    with pytest.raises(EnvironmentFailure, match="raised RuntimeError: the solver gave up") as caught:
        env.step(np.zeros((3, 6), np.float32))
    assert caught.value.index == index
    assert "Traceback of environment" in caught.value.__notes__[0]
    monkeypatch.undo()
    env.step(np.zeros((3, 6), np.float32))
    env.close()


def test_an_error_of_a_batch_is_a_sentence(monkeypatch):
    env = make_vector_env(task("HalfCheetah"), 3)
    env.reset(seed=0)
    batch = env._simulations._batch

    def failing(nstep):
        raise SimulationError(np.array([1, 2]), "the stack is full", 3)

    monkeypatch.setattr(batch, "step", failing, raising=False)
    with pytest.raises(EnvironmentFailure, match=r"raised SimulationError: .*the stack is full") as caught:
        env.step(np.zeros((3, 6), np.float32))
    assert caught.value.index == 1
    monkeypatch.undo()
    env.step(np.zeros((3, 6), np.float32))
    env.close()
