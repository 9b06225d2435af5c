"""A new run that starts from weights in a file."""

import math
import pickle
import shlex
from functools import partial

import pytest
import torch

from pl_rl import MLPActorCritic, UsageError
from pl_rl.callbacks import PretrainedCheckpoint, RunCheckpoint
from pl_rl.inspection import describe_checkpoint
from pl_rl.weights import read_weights
from tests.networks import LinearValue
from tests.support import fit, quiet_trainer, read_checkpoint, same_bits, small_ppo
from tests.test_resume import differences, last_of, run_of, train
from tests.weights.support import DATA, reference_of

MODEL = DATA / "stable_baselines3" / "ppo_cartpole.zip"
PENDULUM = DATA / "stable_baselines3" / "ppo_pendulum.zip"


def fitting(path=MODEL, **changed):
    """The network that a file fits."""
    settings = read_weights(path).network
    return partial(MLPActorCritic, **{**settings, "activation": settings["activation"] or "relu", **changed})


def start(path=MODEL, env="CartPole-v1", network=None, **options):
    """A model at the beginning of a fit that starts from a file, and the callback."""
    model = small_ppo(env=env, network=network or fitting(path))
    callback = PretrainedCheckpoint(str(path), **options)
    fit(model, max_epochs=0, callbacks=[callback])
    return model, callback


def refusal(path=MODEL, **settings):
    """Why a fit cannot start."""
    with pytest.raises(UsageError) as refused:
        start(path, **settings)
    message = str(refused.value)
    assert "\n" not in message and not message.endswith(".")
    return message


@pytest.mark.parametrize(
    ("name", "env"),
    [
        ("stable_baselines3/ppo_cartpole.zip", "CartPole-v1"),
        ("stable_baselines3/a2c_cartpole.zip", "CartPole-v1"),
        ("stable_baselines3/ppo_pendulum.zip", "Pendulum-v1"),
        ("cleanrl/ppo.cleanrl_model", "CartPole-v1"),
        ("cleanrl/ppo_continuous_action.cleanrl_model", "Pendulum-v1"),
        ("di_engine/cartpole_seedcfg__iteration_200.pth.tar", "CartPole-v1"),
        ("di_engine/cartpole_sepenc__iteration_80.pth.tar", "CartPole-v1"),
    ],
)
def test_the_model_answers_as_the_library_did(name, env):
    model, _ = start(DATA / name, env)
    reference = reference_of(DATA / name)
    expected = next(reference[key] for key in ("logits", "logit", "mean") if key in reference)
    with torch.no_grad():
        outputs, values = model.network(reference["obs"])
    torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(values, reference["value"], rtol=0, atol=1e-5)


def test_the_run_is_a_new_one_that_differs_in_its_initial_weights_alone():
    by_callback = small_ppo(network=fitting())
    trainer = fit(by_callback, max_epochs=2, callbacks=[PretrainedCheckpoint(str(MODEL))])
    by_hand = small_ppo(network=fitting())
    by_hand.network.load_state_dict(read_weights(MODEL).tensors)
    fit(by_hand, max_epochs=2)
    assert same_bits(by_callback.state_dict(), by_hand.state_dict())
    assert (by_callback.iteration, by_callback.env_steps, trainer.global_step) == (2, 128, 8)


def test_the_optimiser_is_fresh_and_has_the_parameters_that_were_loaded():
    model = small_ppo(network=fitting())
    trainer = fit(model, max_epochs=0, callbacks=[PretrainedCheckpoint(str(MODEL))])
    (optimizer,) = trainer.optimizers
    assert not optimizer.state
    tied = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert tied == {id(parameter) for parameter in model.network.parameters()}


def test_a_resume_needs_no_file_and_goes_on_bit_for_bit(tmp_path, capsys):
    path = tmp_path / "weights.zip"
    path.write_bytes(MODEL.read_bytes())

    def go(root, until, ckpt_path=None):
        callbacks = [PretrainedCheckpoint(str(path)), RunCheckpoint(last_every_n_iterations=1)]
        return train(root, until, ckpt_path, callbacks=callbacks, network=fitting())

    go(tmp_path / "whole", 6)
    go(tmp_path / "parts", 3)
    path.unlink()
    capsys.readouterr()
    go(tmp_path / "parts", 6, last_of(tmp_path / "parts"))
    out = capsys.readouterr().out
    assert "The resume wins: weights are the checkpoint's, and weights.zip is not read." in out
    assert "fidelity: exact" in out and "Pre-trained weights" not in out
    assert differences(tmp_path / "whole", tmp_path / "parts") == {}
    assert not run_of(tmp_path / "parts", version=1).exists()


def test_the_lineage_is_told_survives_a_resume_and_is_inspected(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    sha256 = reference_of(MODEL)["sha256"]
    for until, ckpt_path in [(1, None), (2, last_of(tmp_path))]:
        callback = PretrainedCheckpoint(str(MODEL), exclude=["critic.0.*"])
        callbacks = [callback, RunCheckpoint(last_every_n_iterations=1)]
        train(tmp_path, until, ckpt_path, callbacks=callbacks, network=fitting())
        out = capsys.readouterr().out
        told = ["Pre-trained weights", sha256[:12], "Stable-Baselines3 2.9.2", "actor.0.weight 32x4", "VecNormalize"]
        assert all((word in out) == (ckpt_path is None) for word in told)
        saved = read_checkpoint(last_of(tmp_path))["callbacks"]["PretrainedCheckpoint"]
        assert saved == callback.lineage
        assert (saved["path"], saved["sha256"], saved["missing"]) == (str(MODEL), sha256, {})
        assert saved["skipped"] == {"critic.0.weight": "32x4", "critic.0.bias": "32"}
    rows = dict(describe_checkpoint(last_of(tmp_path)))
    assert rows["started from"] == f"{MODEL}, Stable-Baselines3 2.9.2 PPO, sha256 {sha256[:12]}"
    assert rows["weights skipped"] == "critic.0.weight 32x4, critic.0.bias 32"
    assert "actor.4.bias 2" in rows["weights loaded"]


def test_without_a_path_nothing_happens(tmp_path, capsys):
    callback = PretrainedCheckpoint()
    with_it = small_ppo()
    trainer = fit(with_it, max_epochs=1, callbacks=[callback])
    without = small_ppo()
    fit(without, max_epochs=1)
    assert same_bits(with_it.state_dict(), without.state_dict())
    assert capsys.readouterr().out == ""
    assert callback.state_dict() == {} and trainer.global_step == 4


@pytest.mark.parametrize(
    ("options", "loaded"),
    [
        ({"include": ["critic.*"]}, "critic."),
        ({"exclude": ["critic.*"]}, "actor."),
        ({"include": ["*.weight", "*.bias"], "exclude": ["actor.*"]}, "critic."),
    ],
)
def test_patterns_select_what_is_loaded(options, loaded):
    initial = small_ppo(network=fitting()).network.state_dict()
    initial = {name: tensor.clone() for name, tensor in initial.items()}
    tensors = read_weights(MODEL).tensors
    model, callback = start(**options)
    expected = {name: tensors[name] if name.startswith(loaded) else initial[name] for name in initial}
    assert same_bits(model.network.state_dict(), expected)
    assert callback.lineage["loaded"].keys() | callback.lineage["skipped"].keys() == initial.keys()


def test_a_network_of_another_shape_is_refused_with_the_settings_that_fit():
    message = refusal(network=MLPActorCritic)
    assert "actor.0.weight is 32x4 in '" in message and "64x4 in the model (9 more differ); use " in message
    words = shlex.split(message.partition("; use ")[2])
    given = dict(zip(words[::2], words[1::2], strict=True))
    assert given == {
        "--model.network.init_args.encoder_sizes": "[]",
        "--model.network.init_args.actor_sizes": "[32, 32]",
        "--model.network.init_args.critic_sizes": "[32, 32]",
        "--model.network.init_args.activation": "tanh",
    }


def test_a_file_for_other_spaces_is_refused():
    message = refusal(PENDULUM)
    assert "no settings of the network fit the file to this environment's observations and actions" in message


def test_weights_that_the_model_has_no_place_for_are_refused_unless_left_out(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({**small_ppo(network=LinearValue).network.state_dict(), "extra": torch.ones(3, 2)}, path)
    message = refusal(path, network=LinearValue)
    assert message.startswith("extra is 3x2 in ") and " and absent in the model; use --pretrained.exclude" in message
    _, callback = start(path, network=LinearValue, exclude=["extra"])
    assert callback.lineage["skipped"] == {"extra": "3x2"}


def test_another_activation_is_refused_with_the_setting_that_fits():
    message = refusal(network=fitting(activation="relu"))
    assert "was trained with tanh between its layers and the model has relu" in message
    assert message.endswith("add --model.network.init_args.activation tanh")


def test_another_activation_is_noted_where_not_all_must_fit():
    _, callback = start(network=fitting(activation="relu"), strict=False)
    assert any("activation is tanh, the model's relu" in note for note in callback.lineage["notes"])
    assert not callback.lineage["missing"]


def test_not_strict_loads_what_fits():
    model, callback = start(network=fitting(actor_sizes=[32, 16]), strict=False)
    tensors, lineage = read_weights(MODEL).tensors, callback.lineage
    state = model.network.state_dict()
    assert lineage["skipped"] == {
        "actor.2.weight": "16x32 (32x32 in the file)",
        "actor.2.bias": "16 (32 in the file)",
        "actor.4.weight": "2x16 (2x32 in the file)",
    }
    for name in lineage["loaded"]:
        assert state[name].equal(tensors[name])
    assert lineage["loaded"].keys() | lineage["skipped"].keys() == state.keys()


def test_not_strict_tells_what_is_missing_and_unexpected():
    _, callback = start(network=fitting(actor_sizes=[32], critic_sizes=[32, 32, 32]), strict=False)
    assert callback.lineage["missing"].keys() == {"critic.6.weight", "critic.6.bias"}
    assert callback.lineage["unexpected"].keys() == {"actor.4.weight", "actor.4.bias"}


def test_nothing_that_matches_is_refused():
    assert "has nothing to load" in refusal(network=LinearValue, strict=False)
    assert "has nothing to load" in refusal(exclude=["*"])


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_refused(option):
    message = refusal(**{option: ["actr.*"]})
    assert f"--pretrained.{option} has 'actr.*', which matches none of 'actor.0.weight'" in message


@pytest.mark.parametrize("name", ["stable_baselines3/vec_normalize_pendulum.pkl", "rsl_rl/rsl_rl_3.3.0_normalized.pt"])
def test_normalised_observations_are_refused(name):
    message = refusal(DATA / name, network=MLPActorCritic)
    assert "holds statistics that observations are normalised by, and the model normalises none" in message


@pytest.mark.parametrize("own_checkpoint", [True, False])
def test_a_network_of_another_class_is_loaded_by_names_and_shapes(own_checkpoint, tmp_path):
    path = tmp_path / "weights.pt"
    trained = small_ppo(network=partial(LinearValue, slope=3.0))
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(trained)
    if own_checkpoint:
        trainer.save_checkpoint(path)
    else:
        torch.save(trained.network.state_dict(), path)
    model, callback = start(path, network=LinearValue)
    assert same_bits(model.network.state_dict(), trained.network.state_dict())
    assert callback.lineage["loaded"]["slope"] == "a number"
    assert not math.isclose(model.network.slope.item(), 10.0)


def test_a_network_of_another_class_whose_shapes_differ_is_refused(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"slope": torch.ones(2), "offset": torch.ones(())}, path)
    message = refusal(path, network=LinearValue)
    assert "slope is 2 in " in message and "a number in the model (1 more differ)" in message
    assert message.endswith("--pretrained.strict false to load what fits")


def test_a_pickle_is_left_closed(tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(pickle.dumps(print))
    assert "is a pickle, which could run code when opened, and was left closed" in refusal(path, network=MLPActorCritic)
