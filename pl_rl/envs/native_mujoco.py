"""Gymnasium's MuJoCo tasks: simulations in a thread for each processor core, all else of all environments at once.

Shapes: ``N`` environments.
"""

import weakref
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cache
from typing import Any, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

from pl_rl.envs.config import EnvConfig
from pl_rl.envs.faults import STOPS, as_fault, close_each, failure
from pl_rl.envs.make import AnyEnv, close_single, make_env
from pl_rl.envs.mujoco_tasks import TASKS, Task
from pl_rl.envs.native import NoNativeVectorization
from pl_rl.envs.parallel import Step
from pl_rl.envs.replay import anchor_seed, anchor_steps
from pl_rl.envs.simulations import Floats, make_simulations

# Gymnasium's own, which do nothing that is not done here.
MAKING_WRAPPERS = (OrderEnforcing, PassiveEnvChecker, TimeLimit)


class NativeMujocoEnvs(VectorEnv[Any, Any, Any]):
    """Steps MuJoCo tasks with the numbers that :class:`~pl_rl.envs.replay.ReplayEnv` around each gives, bit for bit.

    Resets are gymnasium's own, with their seeds at anchors.

    Args:
        single: Gymnasium's environment, which from now on belongs to this one.
        num_envs: ``N``.
        task: What its steps give.
        make: Makes further single environments, to take over their state.
    """

    def __init__(self, single: AnyEnv, num_envs: int, task: type[Task], make: Callable[[], AnyEnv]) -> None:
        self.make, self.num_envs = make, num_envs
        self._env = cast(Any, single.unwrapped)
        self._limit = single.spec.max_episode_steps if single.spec is not None else None
        self.metadata = {**single.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space, self.single_action_space = single.observation_space, single.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        model = self._env.model
        self._simulations = make_simulations(model, num_envs, self._env.frame_skip, task.needs_forces)
        weakref.finalize(self, self._simulations.close)
        self._task = task(self._env, self._simulations)
        self._generators = [np_random()[0] for _ in range(num_envs)]
        self._position = np.zeros(num_envs)
        # Steps of the open episodes, and as in ReplayEnv since the last anchor; anchors, and seeds of the first.
        self._elapsed, self._since, self._anchors = np.zeros((3, num_envs), np.int64)
        self._first_seeds = [0] * num_envs

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Floats, dict[str, Any]]:
        """Begin an episode in each; the ``i``-th with the seed ``seed + i``.

        Raises:
            EnvironmentFailure: If one raises an exception.
        """
        begun = [self._begin(i, None if seed is None else seed + i, "in a reset") for i in range(self.num_envs)]
        self._position = self._task.position()
        return np.stack(begun), {}

    def step(self, actions: npt.NDArray[Any]) -> Step:
        """One step of all; ``infos["final_obs"][i]`` is the last observation of an ended episode.

        Raises:
            EnvironmentFailure: If one raises an exception.
        """
        self._simulations.step(actions)
        before, self._position = self._position, self._task.position()
        obs, rewards, terminated = self._task.outcome(self._position - before, actions)
        self._elapsed += 1
        self._since += 1
        truncated = self._elapsed >= (self._limit or np.inf)
        ended = terminated | truncated
        infos: dict[str, Any] = {}
        if ended.any():
            final_obs = np.full(self.num_envs, None, dtype=object)
            for i in np.flatnonzero(ended):
                final_obs[i] = obs[i].copy()
                obs[i] = self._begin(int(i), None, "in the reset after an episode")
            infos = {"final_obs": final_obs, "_final_obs": ended, "episode_info": {}}
            self._position = self._task.position()
        return obs, rewards, terminated, truncated, infos

    def close_extras(self, **kwargs: Any) -> None:
        """End the threads.

        Raises:
            EnvironmentFailure: If gymnasium's environment raises an exception.
        """
        self.closed = True  # not again when this object is deleted
        self._simulations.close()
        fault = close_each([(0, self._env)])
        if fault is not None:
            raise failure(fault)

    def state_dict(self) -> dict[str, Any]:
        """All that simulations and resets depend on, as plain data, the environments' one after another."""
        counts = {"elapsed": self._elapsed, "since_anchor": self._since, "anchors": self._anchors}
        return {
            "simulation": torch.from_numpy(self._simulations.states()),
            "position": torch.from_numpy(self._position.copy()),
            **{name: torch.from_numpy(count.copy()) for name, count in counts.items()},
            "first_seeds": list(self._first_seeds),
            "generators": [generator.bit_generator.state for generator in self._generators],
        }

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """The inverse of :meth:`state_dict`; whether it is of as many environments of this model."""
        simulations = state["simulation"].numpy()
        if simulations.shape != self._simulations.states().shape:
            return False
        self._simulations.load_states(simulations)
        for generator, saved in zip(self._generators, state["generators"], strict=True):
            generator.bit_generator.state = saved
        names = ("position", "elapsed", "since_anchor", "anchors")
        self._position, self._elapsed, self._since, self._anchors = (state[name].numpy().copy() for name in names)
        self._first_seeds = list(state["first_seeds"])
        return True

    def take_over(self, replayed: Sequence[AnyEnv]) -> None:
        """Go on from the states of as many environments, each in a :class:`~pl_rl.envs.replay.ReplayEnv`."""
        import mujoco

        for i, env in enumerate(replayed):
            single = cast(Any, env.unwrapped)
            mujoco.mj_copyData(self._simulations.data[i], single.model, single.data)
            self._simulations.begin(i)
            self._generators[i] = single.np_random
            replay = env.get_wrapper_attr("replay")
            window = replay["window"]
            self._first_seeds[i], self._anchors[i] = replay["first_seed"], window["anchors"]
            self._since[i] = len(window["actions"])
            self._elapsed[i] = self._since[i] - (window["resets"][-1] if window["resets"] else 0)
        self._position = self._task.position()

    def _begin(self, i: int, seed: int | None, doing: str) -> Floats:
        """Begin an episode, with the seed of an anchor if one is due; returns its observation."""
        if seed is not None:
            self._first_seeds[i], self._anchors[i], self._since[i] = seed, 0, 0
        elif self._since[i] >= anchor_steps(int(self._anchors[i])):
            self._anchors[i] += 1
            self._since[i] = 0
            seed = anchor_seed(self._first_seeds[i], int(self._anchors[i]))
        self._elapsed[i] = 0
        env = self._env
        env.data, env.np_random = self._simulations.data[i], self._generators[i]
        try:
            obs: Floats = env.reset(seed=seed)[0]
        except STOPS:
            raise
        except BaseException as error:
            raise failure(as_fault(i, doing, error)) from error
        self._generators[i] = env.np_random
        self._simulations.begin(i)
        return obs


def native_mujoco(config: EnvConfig, num_envs: int, training: bool, entry_point: str) -> NativeMujocoEnvs:
    """As many environments of a task in ``TASKS``.

    Raises:
        NoNativeVectorization: With the first setting that it does not support.
        UsageError: If the environment cannot be made.
    """
    for what, given in (("wrappers", config.wrapped(training)), ("info_keys", config.info_keys)):
        if given:
            raise NoNativeVectorization(config.id, what)
    single = env = make_env(config, training)
    try:
        if env.render_mode is not None:
            raise NoNativeVectorization(config.id, f"render_mode={env.render_mode!r}")
        while isinstance(env, gym.Wrapper):
            if type(env) not in MAKING_WRAPPERS:
                raise NoNativeVectorization(config.id, f"the wrapper {type(env).__name__}")
            env = env.env
        classes: list[Any] = [type(env), TASKS[entry_point]]  # mypy takes no class for hashable
        if not _computes_as_gymnasium(*classes):
            raise NoNativeVectorization(config.id, f"gymnasium {gym.__version__}, which computes its steps otherwise")
    except NoNativeVectorization:
        close_single(single, config.id)
        raise
    return NativeMujocoEnvs(single, num_envs, TASKS[entry_point], lambda: make_env(config, training))


@cache
def _computes_as_gymnasium(make: type[AnyEnv], task: type[Task]) -> bool:
    """Whether a few steps give the numbers of gymnasium's environment, another release of which may have changed."""
    with closing(make()) as single, closing(NativeMujocoEnvs(make(), 1, task, make)) as native:
        (begun, _), (rows, _) = single.reset(seed=0), native.reset(seed=0)
        outcomes = [(begun, rows[0])]
        action = (0.5 * cast(Any, single.action_space).high).astype(np.float32)
        for _ in range(3):
            own, ours = single.step(action)[:3], native.step(action[np.newaxis])
            final = ours[4]["final_obs"][0] if ours[2][0] else ours[0][0]
            outcomes += zip(own, (final, ours[1][0], ours[2][0]), strict=True)
            if own[2]:
                break
        return all(np.array_equal(one, other) for one, other in outcomes)
