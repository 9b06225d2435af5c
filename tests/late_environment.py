"""Registers an environment when it is imported, and is imported by nobody but ``gymnasium.make``."""

import gymnasium as gym

from tests.environments import Counter

gym.register("PlRlTest/Late-v0", Counter)
