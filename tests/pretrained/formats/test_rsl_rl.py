import pytest
import torch

from pl_rl.errors import UsageError
from pl_rl.pretrained import read_weights
from tests.pretrained.support import DATA, assert_adam_as, assert_answers_as, files, read_renamed, reference_of

FILES = files("rsl_rl")
SPLIT = DATA / "rsl_rl" / "rsl_rl_5.5.1_normalized.pt"
JOINT = DATA / "rsl_rl" / "rsl_rl_3.3.0_normalized.pt"


def changed(path, target, change):
    saved = torch.load(path, weights_only=True)
    change(saved)
    torch.save(saved, target)
    return target


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_network_answers_as_rsl_rl_does(path, tmp_path):
    weights, reference = read_renamed(path, tmp_path), reference_of(path)
    assert_answers_as(path, weights, reference["activation"])
    release = int(path.name.split("_")[2][0])
    assert weights.source == ("rsl_rl 4 or later" if release >= 4 else "rsl_rl 1 to 3")
    assert weights.sha256 == reference["sha256"]
    assert (weights.normalizer is not None) == ("normalized" in path.name)
    assert weights.network["activation"] is None and any("elu" in note for note in weights.notes)


@pytest.mark.parametrize("path", [path for path in FILES if "log_std" in path.name], ids=lambda path: path.name)
def test_adam_is_kept(path):
    assert_adam_as(path, read_weights(path))


@pytest.mark.parametrize("path", [path for path in FILES if "normalized" in path.name], ids=lambda path: path.name)
def test_the_moments_of_a_standard_deviation_become_those_of_its_logarithm(path):
    weights, saved = read_weights(path), torch.load(path, weights_only=True)["optimizer_state_dict"]["state"][0]
    state, std = weights.optimizer["distribution.log_std"], weights.tensors["distribution.log_std"].exp()
    torch.testing.assert_close(state["exp_avg"], saved["exp_avg"] * std)
    torch.testing.assert_close(state["exp_avg_sq"], saved["exp_avg_sq"] * std**2)


def test_the_statistics_are_those_of_the_file():
    saved = torch.load(SPLIT, weights_only=True)["actor_state_dict"]
    normalizer = read_weights(SPLIT).normalizer
    assert normalizer["mean"].equal(saved["obs_normalizer._mean"][0])
    assert normalizer["var"].equal(saved["obs_normalizer._var"][0])
    assert normalizer["count"] == saved["obs_normalizer.count"] > 0
    assert (normalizer["epsilon"], normalizer["clip"]) == (0.01, None)


@pytest.mark.parametrize(
    ("path", "change", "message"),
    [
        (JOINT, lambda saved: saved["model_state_dict"].pop("std"), "without a standard deviation"),
        (JOINT, lambda saved: saved["model_state_dict"].pop("actor_obs_normalizer._var"), "without a finite mean"),
        (
            JOINT,
            lambda saved: saved["model_state_dict"].update({"actor_obs_normalizer.count": torch.zeros(3)}),
            "without a finite mean, variance or count",
        ),
        (
            DATA / "rsl_rl" / "rsl_rl_2.3.3_normalized.pt",
            lambda saved: saved["obs_norm_state_dict"].update(_mean=torch.zeros(1, 6), _var=torch.ones(1, 6)),
            "not 5 numbers each",
        ),
        (JOINT, lambda saved: saved["model_state_dict"]["critic_obs_normalizer._mean"].add_(1), "differently"),
        (
            SPLIT,
            lambda saved: [saved["critic_state_dict"].pop(n) for n in [*saved["critic_state_dict"]] if "normal" in n],
            "differently",
        ),
        (
            SPLIT,
            lambda saved: saved["actor_state_dict"].update({"rnn.weight_ih_l0": torch.zeros(2, 2)}),
            r"no place for: 'actor_rnn\.weight_ih_l0'",
        ),
        (
            DATA / "rsl_rl" / "rsl_rl_3.3.0_log_std.pt",
            lambda saved: saved["model_state_dict"].update({"critic.0.weight": torch.zeros(24, 9)}),
            "a policy of 5 inputs and a value function of 9",
        ),
        (JOINT, lambda saved: saved.update(model_state_dict="text"), "without a standard deviation"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused(path, change, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        read_weights(changed(path, tmp_path / "model.pt", change))
