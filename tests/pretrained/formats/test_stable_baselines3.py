import base64
import io
import json
import pickle
import zipfile

import pytest
import torch

from pl_rl.errors import UsageError
from pl_rl.pretrained import read_weights
from tests.pretrained.support import (
    DATA,
    Bomb,
    assert_adam_as,
    assert_answers_as,
    files,
    read_renamed,
    reference_of,
    rewritten,
)

FOLDER = DATA / "stable_baselines3"
MODEL = FOLDER / "ppo_cartpole.zip"


def with_settings(target, **changed):
    with zipfile.ZipFile(MODEL) as archive:
        settings = json.loads(archive.read("data"))
    return rewritten(MODEL, target, data=json.dumps(settings | changed))


@pytest.mark.parametrize("path", files("stable_baselines3", ".zip"), ids=lambda path: path.name)
def test_the_network_answers_as_stable_baselines3_does(path, tmp_path):
    weights = read_renamed(path, tmp_path)
    assert_answers_as(path, weights)
    assert weights.source == f"Stable-Baselines3 2.9.2 {path.name[:3].upper()}"
    assert weights.sha256 == reference_of(path)["sha256"]


@pytest.mark.parametrize("path", files("stable_baselines3", ".zip"), ids=lambda path: path.name)
def test_adam_is_kept_and_another_optimizer_is_not(path):
    weights = read_weights(path)
    if path.name.startswith("ppo"):
        assert_adam_as(path, weights)
    else:
        assert weights.optimizer is None
        assert any("not Adam's" in note for note in weights.notes)


@pytest.mark.parametrize(
    ("name", "actor", "critic", "activation"),
    [
        ("ppo_cartpole", [32, 32], [32, 32], "tanh"),
        ("ppo_pendulum", [32], [48, 24, 16], "relu"),
        ("a2c_cartpole", [], [32], "elu"),
    ],
)
def test_depths_and_activation_are_told_by_the_file(name, actor, critic, activation):
    assert read_weights(FOLDER / f"{name}.zip").network == {
        "encoder_sizes": [],
        "actor_sizes": actor,
        "critic_sizes": critic,
        "activation": activation,
        **({"distribution": "gaussian"} if name == "ppo_pendulum" else {}),  # of continuous actions
    }


@pytest.mark.parametrize(("name", "ours"), [("GELU", "gelu"), ("LeakyReLU", "leaky_relu"), ("SiLU", "silu")])
def test_the_activation_is_found_by_its_class(name, ours, tmp_path):
    settings = {"activation_fn": f"<class 'torch.nn.modules.activation.{name}'>"}
    assert read_weights(with_settings(tmp_path / "model.zip", policy_kwargs=settings)).network["activation"] == ours


def test_pickles_in_the_settings_stay_closed(tmp_path):
    pickled = base64.b64encode(pickle.dumps(Bomb(tmp_path / "executed"))).decode()
    path = with_settings(tmp_path / "model.zip", policy_kwargs={":type:": "<class 'dict'>", ":serialized:": pickled})
    assert read_weights(path).network["activation"] == "tanh"
    assert not (tmp_path / "executed").exists()


def test_code_in_place_of_weights_is_not_run(tmp_path):
    buffer = io.BytesIO()
    torch.save({"action_net.weight": Bomb(tmp_path / "executed")}, buffer)
    path = rewritten(MODEL, tmp_path / "model.zip", **{"policy.pth": buffer.getvalue()})
    with pytest.raises(UsageError, match="more than tensors and plain data"):
        read_weights(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"use_sde": True, "policy_kwargs": {"use_expln": True}}, "noise with use_expln=True, which our gsde has not"),
        ({"use_sde": True, "policy_kwargs": {"full_std": False}}, "noise with full_std=False, which our gsde has not"),
        ({"observation_space": {":type:": "<class 'gymnasium.spaces.graph.Graph'>"}}, "which no network of ours takes"),
        ({"observation_space": "Box"}, "space that is not told"),
        ({"policy_kwargs": {"features_extractor_class": "<class 'mine.Transformer'>"}}, "extracts features"),
        ({"policy_kwargs": {"activation_fn": "<class 'torch.nn.modules.activation.Mish'>"}}, "activation.Mish"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused(changed, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        read_weights(with_settings(tmp_path / "model.zip", **changed))


@pytest.mark.parametrize("data", [b"not JSON", b"[1, 2]", b"\xff\xfe", b"[" * 100_000])
def test_damaged_settings_are_refused(data, tmp_path):
    with pytest.raises(UsageError, match="has settings that are no JSON"):
        read_weights(rewritten(MODEL, tmp_path / "model.zip", data=data))


def test_another_algorithms_model_is_refused(tmp_path):
    buffer = io.BytesIO()
    torch.save({"q_net.q_net.0.weight": torch.zeros(4, 4), "q_net.q_net.0.bias": torch.zeros(4)}, buffer)
    path = rewritten(MODEL, tmp_path / "dqn.zip", **{"policy.pth": buffer.getvalue()})
    with pytest.raises(UsageError, match=r"no place for: 'q_net\.q_net\.0\.weight'"):
        read_weights(path)


def test_a_model_without_optimizer_and_version_can_be_read(tmp_path):
    left_out = {"policy.optimizer.pth": None, "_stable_baselines3_version": None}
    weights = read_weights(rewritten(MODEL, tmp_path / "model.zip", **left_out))
    assert weights.source == "Stable-Baselines3 PPO" and weights.optimizer is None
