"""Environments that do what environments must not do, in one of them only and at a known step."""

import os
import signal
import sys
import time

import gymnasium as gym
import numpy as np

FAULT_AT = 5


class Faulty(gym.Env):
    """Sound until step 5 of an environment whose seed is odd."""

    observation_space = gym.spaces.Box(-100.0, 100.0, (3,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, fault, at=FAULT_AT):
        self.fault = fault
        self.at = at

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.breaks, self.steps = seed % 2 == 1, 0
        if self.breaks and self.fault == "raises in a reset" and self.steps >= self.at:
            raise RuntimeError("no way back")
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.steps += 1
        obs, reward, ended = np.full(3, self.steps % 50, np.float32), 1.0, self.steps % 7 == 0
        if self.breaks and self.steps >= self.at:
            match self.fault:
                case "raises":
                    raise ZeroDivisionError("the pole is infinitely long")
                case "nan reward":
                    reward = float("nan")
                case "infinite observation":
                    obs[1] = np.inf
                case "wrong shape":
                    obs = np.zeros(1, np.float32)
                case "wrong type":
                    obs = np.zeros(3, np.complex64)
                case "raises in a reset":
                    ended = True
                case "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "exits":
                    os._exit(3)
                case "leaves":
                    sys.exit(0)
                case "leaves in words":
                    raise SystemExit("the window was closed")
                case "cancelled":
                    raise GeneratorExit("cancelled")
                case "no reward":
                    reward = None
                case "two rewards":
                    reward = np.ones(2)
                case "hangs":
                    time.sleep(10_000)
        return obs, reward, ended, False, {}


class Unclosable(Faulty):
    """Raises when it is closed, if it has made a step; one that was looked at alone has not."""

    def __init__(self, fault="none", error="RuntimeError"):
        super().__init__(fault)
        self.error = error
        self.steps = 0

    def close(self):
        self.breaks = False
        if self.steps and self.error == "exit":
            sys.exit(0)
        if self.steps:
            raise RuntimeError("the simulator is gone")


class Unmakeable(gym.Env):
    """Ends the process when it is made."""

    def __init__(self):
        sys.exit("no display")


class Endless(Faulty):
    """Has no end."""

    def __init__(self):
        super().__init__("none")

    def step(self, action):
        obs, reward, *_ = super().step(action)
        return obs, reward, False, False, {}


for cls in (Faulty, Unclosable, Unmakeable, Endless):
    if f"PlRlTest/{cls.__name__}-v0" not in gym.registry:
        gym.register(f"PlRlTest/{cls.__name__}-v0", cls, disable_env_checker=True)
