"""Atari as the shipped configs have it, for libraries that read no config of ours."""

import importlib.util
import sys
from pathlib import Path

import ale_py
import gymnasium
from gymnasium.wrappers import AtariPreprocessing, ClipReward, FrameStackObservation

gymnasium.register_envs(ale_py)
ROOT = Path(__file__).parents[3]
# By its file, as its package imports what only the environment of pl_rl has; the file itself imports its errors alone.
sys.path.append(str(ROOT))
spec = importlib.util.spec_from_file_location("atari_wrappers", ROOT / "pl_rl" / "envs" / "atari.py")
assert spec is not None and spec.loader is not None
wrappers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(wrappers)


def make(env_id: str) -> gymnasium.Env:
    """A game with the wrappers of configs/pong.yaml."""
    game = AtariPreprocessing(gymnasium.make(env_id, frameskip=1), noop_max=30, frame_skip=4, screen_size=84)
    return ClipReward(wrappers.EpisodicLife(FrameStackObservation(game, 4)), -1, 1)
