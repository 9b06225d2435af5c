"""CartPole's motion as machine code (``cartpole.cpp``), for the same numbers.

Of few environments NumPy's steps take as long as all of the policy: some twenty calls, each for a handful of numbers.

Shapes: ``N`` environments.
"""

import ctypes
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from pl_rl.compiled.function import Library
from pl_rl.envs import AnyVectorEnv
from pl_rl.envs.native import Actions, Bools, Floats, SameStepCartPoleVectorEnv, move_carts
from pl_rl.errors import CompilationError

SOURCE = Path(__file__).with_name("cartpole.cpp")
# In the order of its structure; they are read at each step, as a script may assign them.
CONSTANTS = (
    *("gravity", "force_mag", "masspole", "total_mass", "length", "polemass_length", "tau"),
    *("x_threshold", "theta_threshold_radians"),
)


class CompiledMotion:
    """:func:`pl_rl.envs.native.move_carts` by one call; sines and cosines stay NumPy's, whose bits others do not give.

    Args:
        num_envs: ``N``.

    Raises:
        CompilationError: If it cannot be compiled, or gives other numbers.
    """

    def __init__(self, num_envs: int) -> None:
        self._constants = np.empty(len(CONSTANTS))
        self._constants_of = attrgetter(*CONSTANTS)
        self._given: tuple[float, ...] = ()
        self._actions = np.empty(num_envs, dtype=np.int64)
        self._cosines, self._sines = np.empty((2, num_envs))
        self._state = np.empty((4, num_envs))
        self._obs = np.empty((num_envs, 4), dtype=np.float32)
        self._failed = np.empty(num_envs, dtype=np.bool_)
        arrays = self._constants, self._actions, self._cosines, self._sines, self._state, self._obs, self._failed
        addresses = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
        self._arguments = addresses[0], ctypes.c_size_t(num_envs), *addresses[1:]
        self._run = Library(SOURCE.read_text()).load().move
        self._run.restype = None
        if not self._gives_the_same():
            raise CompilationError("machine code gives other numbers than NumPy")

    def __call__(self, env: Any, action: Actions) -> tuple[Floats, Bools]:
        """As :func:`pl_rl.envs.native.move_carts`, on a state that becomes this object's own."""
        if env.state is not self._state:
            self._state[:] = env.state
            env.state = self._state
        given = self._constants_of(env)
        if given != self._given:
            self._constants[:] = self._given = given
        self._actions[:] = action
        angle = self._state[2]
        np.cos(angle, out=self._cosines)
        np.sin(angle, out=self._sines)
        self._run(*self._arguments)
        return self._obs.copy(), self._failed.copy()

    def _gives_the_same(self) -> bool:
        num_envs = len(self._actions)
        ours: Any = SameStepCartPoleVectorEnv(num_envs)
        numpys: Any = SameStepCartPoleVectorEnv(num_envs)
        rng = np.random.default_rng(0)
        for _ in range(100):
            actions = rng.integers(2, size=num_envs)
            ours.state = numpys.state = rng.normal(size=(4, num_envs))
            one, other = self(ours, actions), move_carts(numpys, actions)
            if not all(map(np.array_equal, (*one, ours.state), (*other, numpys.state))):
                return False
        return True


def compile_motion(env: AnyVectorEnv) -> None:
    """Let machine code move the carts of a native CartPole; other environments, and bits, stay as they are."""
    if not isinstance(env, SameStepCartPoleVectorEnv):
        return
    try:
        env.move_by(CompiledMotion(env.num_envs))
    except CompilationError as error:
        rank_zero_info(f"CartPole is stepped by NumPy: {error}.")
