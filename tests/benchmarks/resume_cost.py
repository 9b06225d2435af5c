"""What exact resume costs: recording for replay while collecting, a checkpoint, and a restore.

Run it with ``python -m tests.benchmarks.resume_cost``; environments whose packages are missing are left out.
The cost of recording is the median ratio of processor time, with and without, over alternating rounds of the same
rollouts.
"""

import contextlib
import statistics
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import lightning as L
import torch

import pl_rl
from pl_rl.algorithm.rollout import RolloutCollector
from pl_rl.callbacks import RunCheckpoint
from pl_rl.checkpoints.saving import DurableCheckpointIO
from pl_rl.envs import make_env, make_vector_env, restore_envs

SYNC = ("CartPole-v1", "Pendulum-v1", "HalfCheetah-v5")
ENVIRONMENTS = [("CartPole-v1", "native"), *((name, "sync") for name in SYNC)]
ROUNDS = 60


def model(env: pl_rl.EnvConfig, iterations: int) -> pl_rl.PPO:
    """Eight environments of 256 steps."""
    L.seed_everything(0, verbose=False)
    return pl_rl.PPO(env, total_env_steps=2048 * iterations, num_steps=256, update_epochs=1, eval_freq=0)


def make_collector(env: pl_rl.EnvConfig, recording: bool) -> RolloutCollector:
    """Collects in environments that remember or do not."""
    plain = patch("pl_rl.envs.vector.ReplayEnv", lambda make: make())
    with contextlib.nullcontext() if recording else plain:
        vector_env = make_vector_env(env, 8)
    collector = RolloutCollector(vector_env, model(env, 1).network, 256, torch.Generator().manual_seed(0))
    collector.reset(0)
    return collector


def recording_cost(env: pl_rl.EnvConfig) -> float:
    """Median share that remembering adds to collecting."""
    collectors = {recording: make_collector(env, recording) for recording in (True, False)}
    ratios = []
    for number in range(ROUNDS):
        took = {}
        for recording in [True, False] if number % 2 else [False, True]:
            started = time.process_time()
            collectors[recording].collect()
            took[recording] = time.process_time() - started
        ratios.append(took[True] / took[False])
    return statistics.median(ratios) - 1


class Stopwatch(L.Callback):
    """Times a checkpoint after training, and a restore at its start."""

    save_seconds = restore_seconds = 0.0

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save ten times and take the median."""
        times = []
        for _ in range(10):
            started = time.perf_counter()
            trainer.save_checkpoint(Path(trainer.default_root_dir, "timed.ckpt"), weights_only=False)
            times.append(time.perf_counter() - started)
        self.save_seconds = statistics.median(times)


def checkpoint_cost(env: pl_rl.EnvConfig) -> tuple[float, int, float]:
    """Seconds to save, bytes, and seconds to restore the environments."""
    with tempfile.TemporaryDirectory() as folder:
        stopwatch = Stopwatch()
        settings = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
        trainer = pl_rl.Trainer(default_root_dir=folder, callbacks=[RunCheckpoint(), stopwatch], **settings)
        trainer.fit(model(env, iterations=10))
        path = Path(folder, "timed.ckpt")
        saved = torch.load(path, weights_only=True)["pl_rl"]["collector"]
        vector_env = make_vector_env(env, 8)
        vector_env.reset(seed=1)
        started = time.perf_counter()
        failure = restore_envs(
            vector_env, saved["environments"], saved["obs"].numpy(), saved["episodes"]["open_returns"].numpy()
        )
        assert failure is None, failure
        restore_seconds = time.perf_counter() - started
        vector_env.close()
        return stopwatch.save_seconds, path.stat().st_size, restore_seconds


def saving_cost(mebibytes: int) -> tuple[float, float]:
    """Seconds that a save keeps training waiting, and until the file is safe; medians of five."""
    content = {str(part): torch.randn(mebibytes * 2**20 // 40) for part in range(10)}
    waits, wholes = [], []
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        for _ in range(5):
            durable, started = DurableCheckpointIO(), time.perf_counter()
            durable.save_checkpoint(content, Path(folder, "last.ckpt"))
            waits.append(time.perf_counter() - started)
            durable.teardown()
            wholes.append(time.perf_counter() - started)
    return statistics.median(waits), statistics.median(wholes)


def main() -> None:
    """Print a row for each environment, and for each size of a file."""
    torch.set_num_threads(1)
    print(f"{'environment':28}{'recording':>10}{'checkpoint':>12}{'bytes':>11}{'restore':>10}")
    for name, vectorization in ENVIRONMENTS:
        env = pl_rl.EnvConfig(name, vectorization)
        label = f"{name}, {vectorization}"
        try:
            make_env(env).close()
        except pl_rl.UsageError as error:
            print(f"{label:28}left out: {error}")
            continue
        save, size, restore = checkpoint_cost(env)
        print(f"{label:28}{recording_cost(env):>+10.1%}{1e3 * save:>9.1f} ms{size:>11,}{1e3 * restore:>7.0f} ms")
    for mebibytes in (1, 4, 7, 10, 100):
        waiting, whole = saving_cost(mebibytes)
        print(f"{mebibytes:3} MiB: training waits {1e3 * waiting:.0f} ms, the file is safe after {1e3 * whole:.0f} ms")


if __name__ == "__main__":
    main()
