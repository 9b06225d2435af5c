"""Ray Train starts the processes of a run, and starts them again when one dies: the same bits."""

import os
import signal

import pytest

from tests.distributed.test_processes import SHARDED, differences
from tests.resume.test_resume import last_of, train
from tests.support import counters_in

pytest.importorskip("ray.train.lightning", reason="pip install 'pl-rl[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
UNTIL = 12


def fit_in_worker(config):
    """What each worker of Ray Train calls."""
    import lightning as L
    import ray.train.lightning as rl

    import pl_rl
    from pl_rl.callbacks import RunCheckpoint
    from tests.resume.test_resume import RUN

    class Die(L.Callback):
        """Ends one worker of the first attempt."""

        def on_train_epoch_end(self, trainer, pl_module):
            if config["dies"] and not resumes and pl_module.iteration == 6 and trainer.global_rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)

    resumes = last_of(config["root"]).is_file()
    L.seed_everything(0, verbose=False)
    trainer = pl_rl.Trainer(
        accelerator="cpu",
        devices="auto",
        strategy=rl.RayDDPStrategy(),
        plugins=[rl.RayLightningEnvironment()],
        default_root_dir=config["root"],
        max_epochs=UNTIL,
        callbacks=[RunCheckpoint(last_every_n_iterations=4), Die()],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.command = ["under", "Ray"]
    rl.prepare_trainer(trainer).fit(pl_rl.PPO(**{**RUN, **SHARDED}), auto_resume=True)


@pytest.fixture(scope="module")
def ray():
    import ray

    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.mark.parametrize("dies", [False, True])
def test_a_run_in_two_workers_has_the_same_bits(ray, tmp_path, dies):
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    TorchTrainer(
        fit_in_worker,
        train_loop_config={"root": str(tmp_path / "ray"), "dies": dies},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(storage_path=str(tmp_path / "of_ray"), failure_config=FailureConfig(max_failures=2)),
    ).fit()
    train(tmp_path / "alone", UNTIL, **SHARDED)
    assert counters_in(last_of(tmp_path / "ray"))["iteration"] == UNTIL
    assert differences(tmp_path / "alone", tmp_path / "ray") == {}
