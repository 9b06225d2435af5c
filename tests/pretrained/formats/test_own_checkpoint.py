from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch

import pl_rl
from pl_rl.callbacks import RunCheckpoint
from pl_rl.checkpoints.format import FORMAT_VERSION
from pl_rl.errors import UsageError
from pl_rl.networks.actor_critic import MLPActorCritic
from pl_rl.pretrained import read_weights
from tests.example_networks import LinearValue
from tests.pretrained.support import network_of, read_renamed
from tests.support import SMALL


def trained(**settings):
    L.seed_everything(3, verbose=False)
    trainer = pl_rl.Trainer(
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, callbacks=[RunCheckpoint()]
    )
    model = pl_rl.PPO(**{**SMALL, **settings})
    trainer.fit(model)
    return model, Path("lightning_logs/version_0/checkpoints/last.ckpt")


@pytest.mark.slow
def test_the_network_of_a_checkpoint_is_read(tmp_path):
    network = partial(MLPActorCritic, encoder_sizes=[8], actor_sizes=[7], critic_sizes=[6, 5], activation="elu")
    model, path = trained(env="Pendulum-v1", network=network)
    weights = read_renamed(path, tmp_path)
    assert weights.source == f"pl_rl checkpoint, format {FORMAT_VERSION}" and weights.notes == []
    assert weights.network == {
        "encoder_sizes": [8],
        "actor_sizes": [7],
        "critic_sizes": [6, 5],
        "activation": "elu",
        "distribution": "gaussian",
    }
    obs = torch.randn(5, 3)
    assert network_of(weights).policy(obs).equal(model.network.policy(obs))
    assert network_of(weights).value(obs).equal(model.network.value(obs))


def test_adams_state_is_that_of_each_parameter():
    model, path = trained(env="Pendulum-v1")
    optimizer = read_weights(path).optimizer
    saved = torch.load(path, weights_only=True)["optimizer_states"][0]["state"]
    assert list(optimizer) == [name for name, _ in model.network.named_parameters()]
    for number, state in enumerate(optimizer.values()):
        assert state["step"] == 32 and state["exp_avg"].equal(saved[number]["exp_avg"])


def test_the_default_activation_is_known():
    assert read_weights(trained()[1]).network["activation"] == "tanh"


def test_weights_of_a_network_of_ones_own_keep_their_names():
    model, path = trained(network=partial(LinearValue, slope=2.0, offset=1.0))
    weights = read_weights(path)
    assert weights.network is None and "LinearValue" in weights.notes[0]
    assert weights.tensors.keys() == model.network.state_dict().keys()
    assert weights.optimizer.keys() == weights.tensors.keys()


@pytest.mark.parametrize("lost", ["state_dict", "hyper_parameters", "optimizer_states"])
def test_a_checkpoint_without_a_part_is_refused(lost, tmp_path):
    checkpoint = torch.load(trained()[1], weights_only=True)
    del checkpoint[lost]
    torch.save(checkpoint, tmp_path / "cut.ckpt")
    with pytest.raises(UsageError, match=f"{lost} is absent or null, and should be there"):
        read_weights(tmp_path / "cut.ckpt")


def test_a_newer_checkpoint_is_refused(tmp_path):
    checkpoint = torch.load(trained()[1], weights_only=True)
    checkpoint["pl_rl"]["format_version"] = 99
    torch.save(checkpoint, tmp_path / "new.ckpt")
    with pytest.raises(UsageError, match=r"newer pl_rl \(format 99"):
        read_weights(tmp_path / "new.ckpt")
