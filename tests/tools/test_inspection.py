from pathlib import Path

import lightning as L
import pytest

import pl_rl
from pl_rl.callbacks import RunCheckpoint
from pl_rl.checkpoints.format import FORMAT_VERSION
from pl_rl.tools.inspection import describe_checkpoint
from tests.support import SMALL


def checkpoint(env="CartPole-v1"):
    L.seed_everything(3, verbose=False)
    trainer = pl_rl.Trainer(
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, callbacks=[RunCheckpoint()]
    )
    trainer.fit(pl_rl.PPO(**{**SMALL, "env": env, "eval_freq": 16, "eval_episodes": 2}))
    return Path("lightning_logs/version_0/checkpoints/last.ckpt")


@pytest.mark.slow
def test_a_checkpoint_is_described_in_words():
    rows = dict(describe_checkpoint(checkpoint()))
    assert f"sound, format {FORMAT_VERSION}" in rows["file"]
    assert rows["run"] == "lightning_logs/version_0"
    assert rows["at"] == "iteration 8, train_iter 32, env_steps 512 of 512"
    assert rows["seed"] == "3"
    assert rows["environment"] == "4 x CartPole-v1"
    assert rows["environment state"] == "saved whole (SameStepCartPoleVectorEnv)"
    # (4*64 + 64 + 64*64 + 64) * 2 + (64*2 + 2) + (64 + 1) parameters.
    assert rows["network"] == "pl_rl.networks.MLPActorCritic, 9,155 parameters"
    assert rows["evaluation"].startswith("best return ")
    assert "threads 1" in rows["saved on"]


@pytest.mark.slow
def test_the_length_of_a_replay_is_told():
    assert "seeds and actions to replay, " in dict(describe_checkpoint(checkpoint("Acrobot-v1")))["environment state"]


def test_environments_that_are_saved_whole_one_by_one_are_said_to_be():
    rows = dict(describe_checkpoint(checkpoint("InvertedPendulum-v5")))
    assert rows["environment state"] == "saved whole (NativeMujocoEnvs)"


@pytest.mark.slow
def test_a_damaged_file_is_refused_in_a_sentence():
    path = checkpoint()
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(pl_rl.UsageError, match="is no checkpoint, or a damaged one"):
        describe_checkpoint(path)
