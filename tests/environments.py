"""Small environments whose every number can be worked out by hand.

They are registered as ``PlRlTest/...``; in a process of its own use ``tests.environments:PlRlTest/...``.
"""

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

STEPS_SPACE = Box(0.0, 1000.0, (1,), np.float32)


class Counter(gym.Env):
    """Observes how many steps the episode has had, which is also the reward: 1, 2, 3, ..."""

    observation_space = STEPS_SPACE
    action_space = Discrete(2)

    def __init__(self, terminate_at=None, truncate_at=None):
        self.terminate_at = terminate_at
        self.truncate_at = truncate_at

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._obs(), {}

    def step(self, action):
        self.steps += 1
        return self._obs(), float(self.steps), self.steps == self.terminate_at, self.steps == self.truncate_at, {}

    def _obs(self):
        return np.array([self.steps], np.float32)


class Goal(Counter):
    """Episodes of four steps, which succeed if action 1 was taken twice at least; how often it was is told too."""

    def __init__(self, name="is_success"):
        super().__init__(truncate_at=4)
        self.name = name

    def reset(self, *, seed=None, options=None):
        self.ones = 0
        return super().reset(seed=seed)

    def step(self, action):
        self.ones += int(action)
        return *super().step(action)[:4], {self.name: np.bool_(self.ones >= 2), "ones": self.ones, "text": "x"}


class ShortOrLong(Counter):
    """Episodes of 2 steps where the seed is even and of 20 where it is odd."""

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.terminate_at = 20 if seed % 2 else 2
        return super().reset(seed=seed)


class Recorder(Counter):
    """Keeps the actions that it receives and insists that they lie in its space."""

    def __init__(self, action_space):
        super().__init__(truncate_at=10)
        self.action_space = action_space
        self.received = []

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.received.append(np.array(action))
        return super().step(action)


class Identity(gym.Env):
    """The action that equals the target, which is observed, earns the most; an episode has 16 targets.

    ``discrete`` and ``multi_discrete`` earn the share of choices that are right (targets one-hot in the observation),
    ``box`` minus the distance between the action and the target, which lies between its asymmetric bounds.
    """

    # Read, never changed.
    ACTION_SPACES = {  # noqa: RUF012
        "discrete": Discrete(4, start=3),
        "multi_discrete": MultiDiscrete([3, 2]),
        "box": Box(np.array([-1.0, 0.0], np.float32), np.array([3.0, 0.5], np.float32)),
    }

    def __init__(self, kind):
        self.kind = kind
        self.action_space = self.ACTION_SPACES[kind]
        self.observation_space = Box(-1.0, 3.0, ({"discrete": 4, "multi_discrete": 5, "box": 2}[kind],), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._next_target(), {}

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        if self.kind == "box":
            reward = -float(np.abs(action - self.target).sum())
        else:
            reward = float(np.mean(action == self.target))
        self.steps += 1
        return self._next_target(), reward, False, self.steps == 16, {}

    def _next_target(self):
        if self.kind == "box":
            bounds = self.action_space
            self.target = self.np_random.uniform(bounds.low, bounds.high).astype(np.float32)
            return self.target
        if self.kind == "discrete":
            self.target = self.np_random.integers(3, 7)
            return np.eye(4, dtype=np.float32)[self.target - 3]
        self.target = self.np_random.integers([3, 2])
        return np.concatenate([np.eye(3)[self.target[0]], np.eye(2)[self.target[1]]]).astype(np.float32)


class Echo(Identity):
    """Observes choices or switches; an action earns the share of them that it repeats. An episode has 16 steps."""

    # Read, never changed.
    SPACES = {  # noqa: RUF012
        "discrete": Discrete(4, start=3),
        "multi_discrete": MultiDiscrete([[3, 2]], start=[[1, 2]]),
        "multi_binary": MultiBinary((2, 2)),
    }

    def __init__(self, kind):
        self.kind = kind
        self.observation_space = self.action_space = self.SPACES[kind]

    def _next_target(self):
        space = self.observation_space
        if isinstance(space, MultiBinary):
            self.target = self.np_random.integers(2, size=space.shape, dtype=np.int8)
        elif isinstance(space, MultiDiscrete):
            self.target = space.start + self.np_random.integers(space.nvec)
        else:
            self.target = space.start + self.np_random.integers(space.n)
        return self.target


class Images(Counter):
    """Observes a picture of integers."""

    observation_space = Box(0, 255, (8, 8, 3), np.uint8)

    def _obs(self):
        return np.zeros((8, 8, 3), np.uint8)


class Pictures(Counter):
    """Observes random pictures, large enough for convolutions; episodes have 10 steps."""

    observation_space = Box(0, 255, (2, 36, 36), np.uint8)

    def __init__(self):
        super().__init__(truncate_at=10)

    def _obs(self):
        return self.np_random.integers(0, 256, self.observation_space.shape, np.uint8)


class Spaces(Counter):
    """Observes and takes vectors of any length."""

    def __init__(self, observations, actions):
        super().__init__(truncate_at=10)
        self.observation_space = Box(-np.inf, np.inf, (observations,), np.float32)
        self.action_space = Box(-1.0, 1.0, (actions,), np.float32)

    def _obs(self):
        return np.full(self.observation_space.shape, self.steps, np.float32)


class _HalfMade:
    """Cannot be made, nor then be forgotten, like a viewer of MuJoCo without its library."""

    def __init__(self):
        raise AttributeError("no attribute 'glGetError'")

    def __del__(self):
        raise AttributeError("no attribute 'opengl_context'")


class Undrawable(Counter):
    """Says that it renders images, and fails to."""

    # Gymnasium declares it without ClassVar.
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode=None):
        super().__init__(truncate_at=3)
        self.render_mode = render_mode

    def render(self):
        return _HalfMade()


class Nested(Counter):
    """Observes random numbers in dictionaries and tuples; episodes of 7 steps, every second one of which is cut."""

    observation_space = Dict(
        {
            "camera": Box(0, 255, (8, 8, 3), np.uint8),
            "robot": Dict({"joints": Box(-np.inf, np.inf, (2, 2), np.float32), "mode": Discrete(3, start=1)}),
            "flags": Tuple([MultiBinary(2), MultiDiscrete([2, 3])]),
        }
    )

    def __init__(self, without=None, odd=None):
        super().__init__()
        self.without, self.odd, self.episodes = without, odd, 0

    def reset(self, *, seed=None, options=None):
        self.episodes = 0 if seed is not None else self.episodes + 1
        if self.episodes % 2:
            self.terminate_at, self.truncate_at = 7, None
        else:
            self.terminate_at, self.truncate_at = None, 7
        return super().reset(seed=seed)

    def step(self, action):
        obs, _, *others = super().step(action)
        return obs, float(obs["robot"]["joints"].sum() + action), *others

    def _obs(self):
        draw = self.np_random.integers
        obs = {
            "camera": draw(0, 256, (8, 8, 3), np.uint8),
            "robot": {"joints": self.np_random.normal(size=(2, 2)).astype(np.float32), "mode": draw(1, 4)},
            "flags": (draw(0, 2, 2, np.int8), draw([2, 3])),
        }
        if self.odd is not None and self.steps == 3:
            obs["robot"]["joints"] = self.odd
        if self.without and self.steps == 3:
            del obs[self.without]
        return obs


class Masked(Counter):
    """Allows random choices, and insists that they are among these; episodes of 5 steps.

    The mask is in the info, in the observation and given by a method; ``mask`` takes its place, after the last step
    there is none.
    """

    def __init__(self, sizes=(3,), mask=None, start=0):
        super().__init__(truncate_at=5)
        self.sizes, self.mask = sizes, mask
        self.action_space = Discrete(sizes[0], start=start) if len(sizes) == 1 else MultiDiscrete(sizes)
        entry = MultiBinary(sum(sizes))
        self.observation_space = Dict({"noise": Box(-np.inf, np.inf, (2,), np.float32), "allowed": entry})

    def reset(self, *, seed=None, options=None):
        obs, _ = super().reset(seed=seed)
        return obs, {"action_mask": self.masks()}

    def step(self, action):
        chosen = np.ravel(action - getattr(self.action_space, "start", 0))
        parts = np.split(self.allowed, np.cumsum(self.sizes)[:-1])
        assert all(part[choice] for part, choice in zip(parts, chosen, strict=True)), f"{action} is not allowed"
        obs, reward, terminated, truncated, _ = super().step(action)
        return obs, reward, terminated, truncated, {} if truncated else {"action_mask": self.masks()}

    def masks(self):
        return self.allowed if self.mask is None or self.steps < 2 else np.array(self.mask)

    def _obs(self):
        ones = [self.np_random.permutation([1, *self.np_random.integers(0, 2, size - 1)]) for size in self.sizes]
        self.allowed = np.concatenate(ones).astype(np.int8)
        return {"noise": self.np_random.normal(size=2).astype(np.float32), "allowed": self.allowed}


for env_class in (
    *(Counter, Goal, ShortOrLong, Recorder, Identity, Echo, Images, Pictures, Spaces, Undrawable),
    *(Nested, Masked),
):
    gym.register(f"PlRlTest/{env_class.__name__}-v0", env_class)
