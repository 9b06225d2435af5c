"""Freezes checkpoints of the present format: ``python -m tests.data.checkpoints.make``.

Made once for a format, and then never again: the files of all formats must load and be continued for ever. When a
change alters what checkpoints hold, raise ``FORMAT_VERSION`` in :mod:`pl_rl.checkpoints.format`, add the step from the
format before to its ``MIGRATIONS``, and run this.
"""

import functools
import tempfile
from pathlib import Path

import lightning as L

import pl_rl
from pl_rl.callbacks import RunCheckpoint
from pl_rl.checkpoints.format import FORMAT_VERSION

HERE = Path(__file__).parent
SETTINGS = {
    "network": functools.partial(pl_rl.MLPActorCritic, actor_sizes=[8], critic_sizes=[8]),
    "total_env_steps": 640,
    "num_envs": 2,
    "num_steps": 16,
    "update_epochs": 2,
    "minibatch_size": 16,
    "eval_freq": 8,
    "eval_episodes": 2,
    "eval_num_envs": 2,
    "compile_update": False,
}
# One whose state is saved whole, and one whose actions are replayed.
ENVIRONMENTS = ("CartPole-v1", "Pendulum-v1")
ITERATIONS = 6


def make(env: str) -> Path:
    """A checkpoint after a few iterations."""
    L.seed_everything(0, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl_rl.Trainer(
            accelerator="cpu",
            default_root_dir=folder,
            max_epochs=ITERATIONS,
            callbacks=[RunCheckpoint()],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(pl_rl.PPO(env, **SETTINGS))
        target = HERE / f"format_{FORMAT_VERSION}_{env}.ckpt"
        target.write_bytes(Path(folder, "lightning_logs", "version_0", "checkpoints", "last.ckpt").read_bytes())
        return target


if __name__ == "__main__":
    for name in ENVIRONMENTS:
        print(make(name))
