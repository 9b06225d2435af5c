"""Copies of a single environment, stepped in worker processes.

Arrays are in shared memory; a pipe to each worker carries commands, replies and rare data. Whatever happens to a worker
becomes an exception here: nothing waits for ever, and no worker outlives its parent.

Shapes: ``N`` environments.
"""

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import CloudpickleWrapper, batch_space

from pl_rl.envs.episode_info import EpisodeInfo, episode_info
from pl_rl.envs.faults import Fault, as_fault, close_each, failure
from pl_rl.envs.parallel import EnvFns, Step, in_words
from pl_rl.envs.processors import cores
from pl_rl.envs.shared_memory import Form, Layout, form_of, write_row
from pl_rl.errors import EnvironmentFailure, UsageError
from pl_rl.networks.records import tree_map

CLOSING_SECONDS = 5.0
# A worker's last answer.
CLOSED = "closed"
# The parent handles them: it may finish an iteration first, and needs its environments for that.
IGNORED_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")


class AsyncEnvs(VectorEnv[Any, Any, Any]):
    """Steps environments in worker processes, one per processor core, each with a share of the environments.

    Observations are overwritten by the next step.

    Args:
        env_fns: Make the environments.
        timeout: Seconds that making, resetting or stepping an environment may take.
        info_keys: As :attr:`pl_rl.EnvConfig.info_keys`.

    Raises:
        EnvironmentFailure: If an environment cannot be made, or one cannot be closed.
        UsageError: If this process may start none.
    """

    def __init__(self, env_fns: EnvFns, timeout: float, info_keys: Sequence[str] = ()) -> None:
        if multiprocessing.current_process().daemon:
            raise UsageError(
                "env.vectorization=async starts processes, which Python allows no daemon, such as a process of "
                "multiprocessing.Pool; take sync or auto, or a concurrent.futures.ProcessPoolExecutor"
            )
        single = env_fns[0]()
        self.num_envs = len(env_fns)
        self.metadata = {**single.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space, self.single_action_space = single.observation_space, single.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        fault = close_each([(0, single)])
        if fault is not None:
            raise failure(fault)
        self._timeout = timeout
        shares = np.array_split(np.arange(self.num_envs), min(self.num_envs, cores()))
        context = multiprocessing.get_context()
        layout = Layout.allocate(
            context,
            [
                form_of(self.action_space),
                form_of(self.observation_space),
                Form((self.num_envs,), "<f8"),
                Form((self.num_envs,), "|b1"),
                Form((self.num_envs,), "|b1"),
                Form((len(shares),), "<i8"),
            ],
        )
        self._arrays = layout.arrays()
        self._workers: list[Worker] = []
        for number, share in enumerate(shares):
            fns = [CloudpickleWrapper(env_fns[i]) for i in share]
            self._workers.append(Worker(context, layout, number, [int(i) for i in share], fns, info_keys))
        self._finalizer = Finalize(self, _kill, [self._workers], exitpriority=10)
        self._answers("make")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in each; the ``i``-th with the seed ``seed + i``.

        Raises:
            EnvironmentFailure: If one raises an exception, gives a wrong observation, dies or hangs.
        """
        self._tell("reset", (seed, options))
        self._answers("reset")
        return self._arrays.obs, {}

    def step(self, actions: npt.NDArray[Any]) -> Step:
        """One step of all; ``infos["final_obs"][i]`` is the last observation of an ended episode.

        What else it says of the episode is in ``infos["episode_info"]``, see :mod:`pl_rl.envs.episode_info`.

        Raises:
            EnvironmentFailure: If one raises an exception, gives a wrong observation, dies or hangs.
        """
        self._arrays.actions[:] = actions
        self._tell("step", None)
        ended = {i: last for answer in self._answers("step") for i, last in answer.items()}
        infos: dict[str, Any] = {}
        if ended:
            final_obs = np.full(self.num_envs, None, dtype=object)
            for i, (obs, _) in ended.items():
                final_obs[i] = obs
            infos = {"final_obs": final_obs, "_final_obs": self._arrays.terminated | self._arrays.truncated}
            infos["episode_info"] = {i: info for i, (_, info) in ended.items()}
        _, obs, rewards, terminated, truncated, _ = self._arrays
        return obs, rewards.copy(), terminated.copy(), truncated.copy(), infos

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute of each environment."""
        self._tell("get_attr", name)
        return tuple(value for answer in self._answers("get_attr", limited=False) for value in answer)

    def set_attr(self, name: str, values: list[Any]) -> None:
        """Set an attribute of each environment to its own of ``N`` values."""
        for worker in self._workers:
            self._send(worker, ("set_attr", (name, [values[i] for i in worker.share])))
        self._answers("set_attr", limited=False)

    def close_extras(self, **kwargs: Any) -> None:
        """End the workers; those that do not end by themselves are killed.

        Raises:
            EnvironmentFailure: If an environment raises an exception when it is closed.
        """
        self.closed = True  # not again when this object is deleted
        deadline = time.monotonic() + CLOSING_SECONDS
        for worker in self._workers:
            worker.end()
        faults = [worker.last_words(deadline) for worker in self._workers]
        for worker in self._workers:
            worker.process.join(max(0.1, deadline - time.monotonic()))
        self._finalizer()
        for fault in filter(None, faults):
            raise failure(fault)

    def _tell(self, command: str, argument: Any) -> None:
        for worker in self._workers:
            self._send(worker, (command, argument))

    def _send(self, worker: "Worker", message: tuple[str, Any]) -> None:
        try:
            worker.connection.send(message)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._died(worker) from error

    def _answers(self, doing: str, limited: bool = True) -> list[Any]:
        """The reply of each worker to the latest command.

        Args:
            doing: The command.
            limited: Whether a worker that takes too long is killed.
        """
        answers = []
        for worker in self._workers:
            try:
                limit = self._timeout * len(worker.share)
                if limited and not worker.connection.poll(limit):
                    worker.process.kill()
                    index = int(self._arrays.busy[worker.number])
                    raise EnvironmentFailure(
                        index,
                        f"did not come to the end of a {doing} in {limit:g} s; if it is only slow, raise env.timeout",
                    )
                fault, answer = worker.connection.recv()
            except (EOFError, ConnectionResetError) as error:
                raise self._died(worker) from error
            if fault is not None:
                raise failure(fault)
            answers.append(answer)
        return answers

    def _died(self, worker: "Worker") -> EnvironmentFailure:
        worker.process.join(CLOSING_SECONDS)
        status = worker.process.exitcode
        how = f"ended with status {status}"
        if status is None:
            how = "closed its connection"
        elif status < 0:
            name = signal.Signals(-status).name
            how = f"was killed by {name}" + (" (has memory run out?)" if name == "SIGKILL" else "")
        index = int(self._arrays.busy[worker.number])
        return EnvironmentFailure(index, f"lost its worker process {worker.process.pid}, which {how}")


class Worker:
    """The parent's side of a worker process."""

    def __init__(
        self,
        context: Any,
        layout: Layout,
        number: int,
        share: list[int],
        env_fns: list[CloudpickleWrapper],
        info_keys: Sequence[str],
    ) -> None:
        self.number = number
        self.share = share
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=_work,
            args=(theirs, layout, number, share, env_fns, info_keys),
            name=f"environments-{number}",
            daemon=True,
        )
        # A fork inherits this process's garbage, and must not collect it: to end the threads of a simulator that it has
        # not would hang or kill it.
        gc.freeze()
        try:
            self.process.start()
        finally:
            gc.unfreeze()
        theirs.close()

    def end(self) -> None:
        """Ask it to end; it also ends when the connection is closed."""
        try:
            self.connection.send(("close", None))
        except OSError:
            self.process.kill()

    def last_words(self, deadline: float) -> Fault | None:
        """The fault in closing its environments, if there was one.

        Args:
            deadline: Until when to wait, in the seconds of the monotonic clock.
        """
        try:
            while self.connection.poll(max(0.0, deadline - time.monotonic())):
                fault: Fault | None
                fault, answer = self.connection.recv()
                if answer == CLOSED:  # not the reply to an earlier command, which nobody waited for
                    return fault
        except (EOFError, OSError):
            pass
        return None


class _Share:
    """The environments of one worker, on the worker's side."""

    def __init__(
        self,
        layout: Layout,
        number: int,
        share: list[int],
        env_fns: Sequence[Callable[[], Any]],
        info_keys: Sequence[str],
    ) -> None:
        self._info_keys = info_keys
        self._arrays = layout.arrays()
        self._number = number
        self._share = share
        self.envs: list[gym.Env[Any, Any]] = []
        self._doing = "while it was made"
        for i, env_fn in zip(share, env_fns, strict=True):
            self._arrays.busy[number] = i
            self.envs.append(env_fn())

    def reset(self, arguments: tuple[int | None, dict[str, Any] | None]) -> None:
        seed, options = arguments
        for i, env in zip(self._share, self.envs, strict=True):
            self._arrays.busy[self._number] = i
            obs, _ = env.reset(seed=None if seed is None else seed + i, options=options)
            write_row(self._arrays.obs, i, obs)

    def step(self, argument: None) -> dict[int, tuple[npt.NDArray[Any], EpisodeInfo]]:
        actions, all_obs, rewards, terminated, truncated, busy = self._arrays
        ended = {}
        for i, env in zip(self._share, self.envs, strict=True):
            busy[self._number] = i
            self._doing = "step"
            obs, rewards[i], terminated[i], truncated[i], info = env.step(actions[i])
            if terminated[i] or truncated[i]:
                ended[i] = tree_map(np.array, obs), episode_info(info, self._info_keys)
                self._doing = "reset"
                obs, _ = env.reset()
            write_row(all_obs, i, obs)
        return ended

    def get_attr(self, name: str) -> list[Any]:
        return [getattr(env, name) for env in self.envs]

    def set_attr(self, arguments: tuple[str, list[Any]]) -> None:
        name, values = arguments
        for i, env, value in zip(self._share, self.envs, values, strict=True):
            self._arrays.busy[self._number] = i
            setattr(env, name, value)

    def doing(self, command: str) -> str:
        """What the environment was doing when a fault occurred, in words."""
        return in_words(self._doing, self._arrays.actions[self.busy]) if command == "step" else f"in a {command}"

    @property
    def busy(self) -> int:
        """The index of the environment that is being stepped."""
        return int(self._arrays.busy[self._number])


def _work(
    connection: Connection,
    layout: Layout,
    number: int,
    share: list[int],
    env_fns: list[CloudpickleWrapper],
    info_keys: Sequence[str],
) -> None:
    """The main function of a worker process."""
    for name in IGNORED_SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        environments = _Share(layout, number, share, env_fns, info_keys)
    except BaseException as error:  # none of a signal, as these are ignored here
        connection.send((as_fault(int(layout.arrays().busy[number]), "while it was made", error), None))
        return
    connection.send((None, None))
    while True:
        try:
            command, argument = connection.recv()
        except EOFError:
            break
        if command == "close":
            break
        try:
            connection.send((None, getattr(environments, command)(argument)))
        except BaseException as error:
            connection.send((as_fault(environments.busy, environments.doing(command), error), None))
    fault = close_each(zip(share, environments.envs, strict=True))
    with suppress(OSError):  # the parent may have closed its end
        connection.send((fault, CLOSED))


def _end_with_parent() -> None:
    """End the process, even if it hangs, when the parent is killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _kill(workers: list[Worker]) -> None:
    for worker in workers:
        if worker.process.is_alive():
            worker.process.kill()
        worker.process.join()
        worker.connection.close()
