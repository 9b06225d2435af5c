import pytest
import torch

from pl_rl.errors import UsageError
from pl_rl.pretrained import read_weights
from tests.pretrained.support import DATA, files, network_of, read_renamed, reference_of

SHARED = DATA / "di_engine" / "cartpole_seedcfg__iteration_200.pth.tar"
CONTINUOUS = DATA / "di_engine" / "pendulum_tanh__iteration_3140.pth.tar"
CLOSE = {"rtol": 0.0, "atol": 1e-5}


@pytest.mark.parametrize("path", files("di_engine"), ids=lambda path: path.name)
def test_the_network_answers_as_di_engine_does(path, tmp_path):
    weights, reference = read_renamed(path, tmp_path), reference_of(path)
    settings = reference["model_kwargs"]
    outputs, values = network_of(weights, settings.get("activation", "relu"))(reference["obs"])
    torch.testing.assert_close(values, reference["value"], **CLOSE)
    if "logit" in reference:
        torch.testing.assert_close(outputs, reference["logit"], **CLOSE)
    else:
        assert settings["bound_type"] == "tanh"
        torch.testing.assert_close(outputs.tanh(), reference["mu"], **CLOSE)
        std = weights.tensors["distribution.log_std"].exp()
        torch.testing.assert_close(std.expand_as(outputs), reference["sigma"], **CLOSE)
    assert (weights.source, weights.sha256) == ("DI-engine VAC", reference["sha256"])
    assert {state["step"] for state in weights.optimizer.values()} == {reference["optimizer_step"]}


def test_a_shared_encoder_becomes_the_encoder():
    assert read_weights(SHARED).network == {
        "encoder_sizes": [64, 64, 128],
        "actor_sizes": [128],
        "critic_sizes": [128],
        "activation": None,
    }


def test_separate_encoders_become_layers_of_actor_and_critic():
    network = read_weights(DATA / "di_engine" / "cartpole_sepenc__iteration_80.pth.tar").network
    assert network["encoder_sizes"] == []
    assert network["actor_sizes"] == network["critic_sizes"] == [32, 64, 64, 64]


def test_adam_follows_the_order_of_encoder_critic_and_actor():
    saved = torch.load(SHARED, weights_only=True)
    optimizer, states = read_weights(SHARED).optimizer, saved["optimizer"]["state"]
    for number, name in [(0, "encoder.0.weight"), (6, "critic.0.weight"), (10, "actor.0.weight"), (13, "actor.2.bias")]:
        assert optimizer[name]["exp_avg"].equal(states[number]["exp_avg"])
        assert optimizer[name]["exp_avg_sq"].equal(states[number]["exp_avg_sq"])


def test_what_the_file_does_not_tell_is_noted():
    discrete, continuous = read_weights(SHARED).notes, read_weights(CONTINUOUS).notes
    assert any("value_norm=True" in note for note in discrete) and any("activation" in note for note in discrete)
    assert not any("bound_type" in note for note in discrete)
    assert any("bound_type='tanh'" in note for note in continuous)


def test_a_standard_deviation_that_depends_on_the_observation_is_refused(tmp_path):
    saved = torch.load(CONTINUOUS, weights_only=True)
    del saved["model"]["actor_head.log_sigma_param"]
    torch.save(saved, tmp_path / "fixed.pth.tar")
    with pytest.raises(UsageError, match="lacks the standard deviation"):
        read_weights(tmp_path / "fixed.pth.tar")


def test_weights_alone_are_enough(tmp_path):
    torch.save({"model": torch.load(SHARED, weights_only=True)["model"]}, tmp_path / "model.pth.tar")
    weights = read_weights(tmp_path / "model.pth.tar")
    assert weights.optimizer is None and not any("optimizer" in note for note in weights.notes)
