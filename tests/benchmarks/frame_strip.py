"""Pictures of a trained policy at work, side by side.

Run it with ``python -m tests.benchmarks.frame_strip CHECKPOINT PNG``.
"""

import argparse
import os
from pathlib import Path

import gymnasium as gym
import matplotlib.image
import numpy as np
import torch

import pl_rl
from pl_rl.envs import make_env
from pl_rl.networks.distributions import to_numpy

FRAMES = 8
BEGIN = 300
"""Steps before the first picture, by when the policy is at full speed."""


@torch.no_grad()
def frames(checkpoint: Path, every: int) -> list[np.ndarray]:
    """Pictures ``[height, width, 3]``, so many steps apart, of an episode played with the most probable actions."""
    model = pl_rl.PPO.load_from_checkpoint(checkpoint)
    network, normalizer = model.network, model.normalizer or torch.nn.Identity()
    env: gym.Env = make_env(model.env_config, render_mode="rgb_array")
    obs, _ = env.reset(seed=0)
    taken = []
    for step in range(BEGIN + FRAMES * every):
        if step >= BEGIN and (step - BEGIN) % every == 0:
            taken.append(env.render())
        outputs = network.policy(normalizer(torch.from_numpy(obs).unsqueeze(0)))
        [action] = network.distribution.to_env(to_numpy(network.distribution.mode(outputs)))
        obs, *_ = env.step(action)
    env.close()
    return taken


def main() -> None:
    """Every third pixel, without the sky."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("png", type=Path)
    parser.add_argument("--every", type=int, default=2, help="steps from one picture to the next")
    arguments = parser.parse_args()
    os.environ.setdefault("MUJOCO_GL", "egl")
    pictures = [frame[150::3, ::3] for frame in frames(arguments.checkpoint, arguments.every)]
    matplotlib.image.imsave(arguments.png, np.concatenate(pictures, axis=1))


if __name__ == "__main__":
    main()
