"""Simulations of MuJoCo, several at once; MuJoCo releases the interpreter's lock while it simulates.

Shapes: ``N`` environments, ``A`` actuators, ``S`` numbers of a simulation's state (``mjSTATE_INTEGRATION``).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy as np
import numpy.typing as npt

from pl_rl.envs.faults import STOPS, Fault, as_fault, failure
from pl_rl.envs.parallel import in_words
from pl_rl.envs.processors import cores

Floats = npt.NDArray[np.float64]


class Simulations(ABC):
    """Simulations of one model; whichever class steps them, and on however many threads, the numbers are the same.

    Args:
        model: MuJoCo's.
        count: ``N``.
        frames: Steps of the simulation in one of an environment.

    Attributes:
        data: MuJoCo's, of each environment ``[N]``, to reset it in.
    """

    data: Sequence[Any]

    def __init__(self, model: Any, count: int, frames: int) -> None:
        import mujoco

        self._mujoco, self._model, self._frames = mujoco, model, frames
        self._threads = min(count, cores())

    @abstractmethod
    def step(self, actions: npt.NDArray[Any]) -> None:
        """One step of each environment, with actions ``[N, A]``.

        Raises:
            EnvironmentFailure: If MuJoCo raises an exception.
        """

    @abstractmethod
    def now(self, name: str) -> Floats:
        """An array of MuJoCo's data, flat ``[N, K]``; not to be written to, nor to be kept."""

    @abstractmethod
    def states(self) -> Floats:
        """``[N, S]``, a copy."""

    @abstractmethod
    def load_states(self, states: Floats) -> None:
        """The inverse of :meth:`states`."""

    @abstractmethod
    def begin(self, i: int) -> None:
        """Simulation ``i`` has been reset in its ``data``."""

    @abstractmethod
    def close(self) -> None:
        """End the threads."""

    @property
    def signature(self) -> int:
        """Of a simulation's state."""
        return int(self._mujoco.mjtState.mjSTATE_INTEGRATION)

    def state_of(self, data: Any) -> Floats:
        """``[S]``"""
        state = np.empty(self._mujoco.mj_stateSize(self._model, self.signature))
        self._mujoco.mj_getState(self._model, data, state, self.signature)
        return state


class BatchedSimulations(Simulations):
    """Steps them in MuJoCo's own batch, whose threads wait awake for a while: to wake one can take as long as a step.

    What MuJoCo derives from states is not kept; MuJoCo has batches from version 4 on.
    """

    def __init__(self, model: Any, count: int, frames: int) -> None:
        from mujoco.batch import Batch

        super().__init__(model, count, frames)
        self.data = [self._mujoco.MjData(model)] * count  # of one alone, as nothing is read of it later
        self._batch: Any = Batch(model, count, self._threads)
        self._ctrl: Any = self._batch.bind("ctrl")
        self._bound: dict[str, Floats] = {name: self._batch.bind(name).reshape(count, -1) for name in ("qpos", "qvel")}

    def step(self, actions: npt.NDArray[Any]) -> None:
        """Each goes on from its row of states."""
        self._ctrl[:] = actions
        try:
            self._batch.step(nstep=self._frames)
        except STOPS:
            raise
        except BaseException as error:
            first = int(next(iter(getattr(error, "ids", [0]))))
            raise failure(as_fault(first, in_words("step", actions[first]), error)) from error

    def now(self, name: str) -> Floats:
        """Positions or velocities."""
        return self._bound[name]

    def states(self) -> Floats:
        """The batch's rows."""
        return np.array(self._batch.state)

    def load_states(self, states: Floats) -> None:
        """Into the batch's rows."""
        self._batch.state[:] = states

    def begin(self, i: int) -> None:
        """Its state goes into the batch."""
        self._batch.state[i] = self.state_of(self.data[i])

    def close(self) -> None:
        """The batch ends its threads when it is deleted."""
        self._bound, self._ctrl, self._batch = {}, None, None


class ThreadedSimulations(Simulations):
    """Steps them in a thread for each processor core, of which the caller's is one; all data of MuJoCo's can be read.

    Args:
        model: As of the base class.
        count: As there.
        frames: As there.
        with_forces: Whether external forces are computed, too.
    """

    def __init__(self, model: Any, count: int, frames: int, with_forces: bool) -> None:
        super().__init__(model, count, frames)
        self.data = [self._mujoco.MjData(model) for _ in range(count)]
        self._with_forces = with_forces
        self._views: dict[str, list[Any]] = {}
        self._share, *others = np.array_split(np.arange(count), self._threads)
        self._asked: list[SimpleQueue[Any]] = [SimpleQueue() for _ in others]
        self._answers: SimpleQueue[Fault | None] = SimpleQueue()
        for share, asked in zip(others, self._asked, strict=True):
            # A pool of concurrent.futures takes more time for the errand than a simulation does.
            Thread(target=self._work, args=(share, asked), daemon=True).start()

    def step(self, actions: npt.NDArray[Any]) -> None:
        """Each thread steps its share."""
        for asked in self._asked:
            asked.put(actions)
        try:
            faults = [self._step_share(self._share, actions)]
        finally:
            others = [self._answers.get() for _ in self._asked]  # before anybody touches their data
        for fault in filter(None, [*faults, *others]):
            raise failure(fault)

    def now(self, name: str) -> Floats:
        """Of any name that MuJoCo's data have."""
        if name not in self._views:
            self._views[name] = [getattr(data, name).reshape(-1) for data in self.data]
        return np.concatenate(self._views[name]).reshape(len(self.data), -1)

    def states(self) -> Floats:
        """Of all data."""
        return np.stack([self.state_of(data) for data in self.data])

    def load_states(self, states: Floats) -> None:
        """Into all data."""
        for data, state in zip(self.data, states, strict=True):
            self._mujoco.mj_setState(self._model, data, state, self.signature)

    def begin(self, i: int) -> None:
        """It goes on in its data."""

    def close(self) -> None:
        """Ask the threads to end."""
        for asked in self._asked:
            asked.put(None)

    def _work(self, share: npt.NDArray[np.int64], asked: "SimpleQueue[Any]") -> None:
        while (actions := asked.get()) is not None:
            self._answers.put(self._step_share(share, actions))

    def _step_share(self, share: npt.NDArray[np.int64], actions: npt.NDArray[Any]) -> Fault | None:
        for i in share:
            try:
                data = self.data[i]
                data.ctrl[:] = actions[i]
                self._mujoco.mj_step(self._model, data, self._frames)
                if self._with_forces:
                    self._mujoco.mj_rnePostConstraint(self._model, data)
            except STOPS:
                raise
            except BaseException as error:
                return as_fault(int(i), in_words("step", actions[i]), error)
        return None


def make_simulations(model: Any, count: int, frames: int, with_forces: bool) -> Simulations:
    """The faster class that can be had.

    Args:
        model: MuJoCo's.
        count: ``N``.
        frames: Steps of the simulation in one of an environment.
        with_forces: Whether more than positions and velocities is read, external forces among it.
    """
    # Plugins and what is enabled beyond the default, such as sleep, may keep more than the state; a batch does not.
    if with_forces or model.nplugin or model.opt.enableflags:
        return ThreadedSimulations(model, count, frames, with_forces)
    try:
        return BatchedSimulations(model, count, frames)
    except ModuleNotFoundError:
        return ThreadedSimulations(model, count, frames, with_forces)
