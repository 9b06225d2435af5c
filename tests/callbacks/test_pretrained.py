"""A new run that starts from weights in a file."""

import math
import pickle
import shlex
from functools import partial

import fsspec
import gymnasium as gym
import pytest
import torch

from pl_rl import EnvConfig, MLPActorCritic, UsageError
from pl_rl.callbacks import PretrainedCheckpoint, RunCheckpoint
from pl_rl.callbacks.pretrained import lineage_rows
from pl_rl.pretrained import read_weights
from pl_rl.pretrained.matching import Rules, match
from pl_rl.tools.inspection import describe_checkpoint
from tests.example_networks import LinearValue
from tests.pretrained.support import DATA, reference_of
from tests.resume.test_resume import differences, last_of, run_of, train
from tests.support import fit, quiet_trainer, read_checkpoint, same_bits, small_ppo

MODEL = DATA / "stable_baselines3" / "ppo_cartpole.zip"
PENDULUM = DATA / "stable_baselines3" / "ppo_pendulum.zip"
NORMALIZED = DATA / "stable_baselines3" / "ppo_pendulum_normalized.zip"
STATISTICS = DATA / "stable_baselines3" / "vec_normalize_pendulum.pkl"


def fitting(path=MODEL, **changed):
    """The network that a file fits."""
    settings = read_weights(path).network
    return partial(MLPActorCritic, **{**settings, "activation": settings["activation"] or "relu", **changed})


def start(path=MODEL, env="CartPole-v1", network=None, norm_obs=False, **options):
    """A model at the beginning of a fit that starts from a file, and the callback."""
    model = small_ppo(env=env, network=network or fitting(path), norm_obs=norm_obs)
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


def test_the_optimizer_is_fresh_and_has_the_parameters_that_were_loaded():
    model = small_ppo(network=fitting())
    trainer = fit(model, max_epochs=0, callbacks=[PretrainedCheckpoint(str(MODEL))])
    (optimizer,) = trainer.optimizers
    assert not optimizer.state
    tied = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert tied == {id(parameter) for parameter in model.network.parameters()}


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert "was trained with activation=tanh and the model has relu" in message
    assert message.endswith("add --model.network.init_args.activation tanh")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trained", "words"),
    [
        ("squashed_gaussian", "was trained with distribution=squashed_gaussian and the model has gaussian"),
        ("beta", r"distribution.log_std is absent in .* and 1 in the\s+model|actor.4.weight is 2x64 in"),
    ],
)
def test_a_run_with_another_distribution_is_refused_with_the_setting_that_fits(tmp_path, trained, words):
    train(tmp_path, 1, env="Pendulum-v1", network=partial(MLPActorCritic, distribution=trained))
    with pytest.raises(UsageError, match=rf"{words}.* --model.network.init_args.distribution {trained}"):
        start(last_of(tmp_path), env="Pendulum-v1", network=MLPActorCritic)


def test_another_activation_is_noted_where_not_all_must_fit():
    _, callback = start(network=fitting(activation="relu"), strict=False)
    assert any("activation is tanh, the model's relu" in note for note in callback.lineage["notes"])
    assert not callback.lineage["missing"]


def test_weights_of_other_shapes_can_be_skipped():
    model, callback = start(network=fitting(actor_sizes=[32, 16]), shapes="skip")
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
    _, callback = start(network=fitting(actor_sizes=[32], critic_sizes=[32, 32, 32]), strict=False, shapes="skip")
    assert callback.lineage["missing"].keys() == {"critic.6.weight", "critic.6.bias"}
    assert callback.lineage["unexpected"].keys() == {"actor.4.weight", "actor.4.bias"}


def test_nothing_that_matches_is_refused():
    assert "has nothing to load" in refusal(network=LinearValue, strict=False)
    assert "has nothing to load" in refusal(exclude=["*"])


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_refused(option):
    message = refusal(**{option: ["actr.*"]})
    assert f"--pretrained.{option} has 'actr.*', which matches none of 'actor.0.weight'" in message


def answers(model, obs):
    """Of the whole agent, to observations as the environment gives them."""
    with torch.no_grad():
        return model.network(model.normalizer(obs))


def test_statistics_of_observations_are_taken_from_a_file_of_their_own():
    model, callback = start(NORMALIZED, "Pendulum-v1", normalizer=str(STATISTICS), norm_obs=True)
    reference = reference_of(STATISTICS)
    normalized = model.normalizer(reference["obs"])
    torch.testing.assert_close(normalized, reference["normalized_obs"], rtol=0, atol=1e-5)
    for ours, theirs in zip(answers(model, reference["obs"]), model.network(reference["normalized_obs"]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    rows = dict(lineage_rows(callback.lineage))
    assert rows["statistics"] == "of 4,097 observations, which normalize them"


def test_statistics_of_observations_are_taken_with_the_weights():
    path = DATA / "rsl_rl" / "rsl_rl_3.3.0_normalized.pt"
    reference = reference_of(path)
    shapes = (reference["obs"].shape[1], reference["mean"].shape[1])
    env = EnvConfig("PlRlTest/Spaces-v0", kwargs={"observations": shapes[0], "actions": shapes[1]})
    model, _ = start(path, env, fitting(path, activation=reference["activation"]), norm_obs=True)
    outputs, values = answers(model, reference["obs"])
    torch.testing.assert_close(outputs, reference["mean"], rtol=0, atol=1e-5)
    torch.testing.assert_close(values, reference["value"], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_statistics_of_our_own_are_taken_bit_for_bit(tmp_path):
    trained = small_ppo(norm_obs=True)
    trainer = fit(trained, max_epochs=3)
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    state = {name: t for name, t in trained.state_dict().items() if name.startswith(("network.", "normalizer."))}
    torch.save(state, tmp_path / "state_dict.pt")
    for name in ("own.ckpt", "state_dict.pt"):
        model, callback = start(tmp_path / name, network=MLPActorCritic, norm_obs=True)
        assert same_bits(model.state_dict(), trained.state_dict())
        assert callback.lineage["observations"] == 192


@pytest.mark.slow
def test_statistics_of_observations_can_be_left():
    path = DATA / "rsl_rl" / "rsl_rl_3.3.0_normalized.pt"
    message = refusal(path, env="Pendulum-v1", network=MLPActorCritic, strict=False, shapes="overlap")
    assert "has statistics that observations are normalized by, and the model normalizes none; add" in message
    model, callback = start(STATISTICS.with_name("ppo_pendulum.zip"), "Pendulum-v1", fitting(PENDULUM), norm_obs=True)
    assert "The statistics of observations start afresh." in callback.lineage["notes"]
    assert callback.lineage["observations"] is None and model.normalizer.count == 0
    own = {"env": "Pendulum-v1", "network": fitting(PENDULUM), "shapes": "overlap", "strict": False}
    _, callback = start(path, normalizer=False, **own)
    assert callback.lineage["observations"] is None


def test_statistics_that_do_not_fit_are_refused():
    message = refusal(STATISTICS, env="Pendulum-v1", network=MLPActorCritic)
    assert "holds statistics of observations and no policy; name the policy's file with --pretrained.path" in message
    message = refusal(normalizer=str(MODEL), norm_obs=True)
    assert message.endswith("has no statistics of observations; leave out --pretrained.normalizer")
    message = refusal(normalizer=str(STATISTICS), norm_obs=True)
    assert "has statistics of 3 numbers of an observation, and the environment observes 4" in message


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
    assert message.endswith("--pretrained.shapes skip or overlap")


def test_a_pickle_is_left_closed(tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(pickle.dumps(print))
    assert "is a pickle, which could run code when opened, and was left closed" in refusal(path, network=MLPActorCritic)


def test_names_can_be_changed_until_they_fit(tmp_path):
    path = tmp_path / "weights.pt"
    own = small_ppo().network.state_dict()
    foreign = {name.replace("actor.", "pi.").replace("critic.", "vf."): tensor for name, tensor in own.items()}
    torch.save(foreign, path)
    assert "has entries that belong to no known policy" in refusal(path, network=MLPActorCritic)
    model, callback = start(path, network=MLPActorCritic, rename={"pi.": "actor.", "vf.": "critic."})
    assert same_bits(model.network.state_dict(), own)
    assert callback.lineage["loaded"].keys() == own.keys()
    message = refusal(path, network=MLPActorCritic, rename={"q.": "actor."})
    assert "has no weight whose name begins with 'q.', as --pretrained.rename has it; its names are 'pi.0" in message
    message = refusal(path, network=MLPActorCritic, rename={"pi.": "actor.", "vf.": "actor."})
    assert "would have two weights named 'actor.0.weight'" in message


def test_names_of_a_known_file_and_of_a_network_of_another_class_can_be_changed(tmp_path):
    shared = partial(MLPActorCritic, encoder_sizes=[32], actor_sizes=[32], critic_sizes=[32])
    rename = {"actor.0": "encoder.0", "actor.2": "actor.0", "actor.4": "actor.2"}
    model, _ = start(network=shared, rename=rename, exclude=["critic.*"], optimizer=True)
    tensors = read_weights(MODEL).tensors
    assert model.network.state_dict()["encoder.0.weight"].equal(tensors["actor.0.weight"])
    assert model.network.state_dict()["actor.2.bias"].equal(tensors["actor.4.bias"])
    torch.save({"a": torch.tensor(1.0), "b": torch.tensor(2.0), "outputs": torch.zeros(2)}, tmp_path / "linear.pt")
    model, _ = start(tmp_path / "linear.pt", network=LinearValue, rename={"a": "slope", "b": "offset"})
    assert (model.network.slope.item(), model.network.offset.item()) == (1.0, 2.0)


def test_a_policy_takes_its_weights_into_larger_spaces():
    weights, space = read_weights(MODEL), gym.spaces.Box(-1, 1, (6,))
    network = fitting()(space, gym.spaces.Discrete(3))
    small = fitting()(gym.spaces.Box(-1, 1, (4,)), gym.spaces.Discrete(2))
    small.load_state_dict(weights.tensors)
    found = match("FILE", weights, network, Rules(shapes="overlap"))
    assert found.groups["reshaped"] == {
        "actor.0.weight": "32x6 (32x4 in the file)",
        "actor.4.weight": "3x32 (2x32 in the file)",
        "actor.4.bias": "3 (2 in the file)",
        "critic.0.weight": "32x6 (32x4 in the file)",
    }
    initial = network.state_dict()["actor.4.weight"][2].clone()
    network.load_state_dict({**network.state_dict(), **found.tensors})
    obs = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    outputs, values = network(obs)
    expected, expected_values = small(obs[:, :4])
    torch.testing.assert_close(outputs[:, :2], expected)
    torch.testing.assert_close(values, expected_values)
    assert network.state_dict()["actor.4.weight"][2].equal(initial)


def test_a_policy_takes_its_weights_into_smaller_spaces():
    weights = read_weights(MODEL)
    found = match(
        "FILE", weights, fitting()(gym.spaces.Box(-1, 1, (3,)), gym.spaces.Discrete(2)), Rules(shapes="overlap")
    )
    assert found.tensors["actor.0.weight"].equal(weights.tensors["actor.0.weight"][:, :3])


def test_adam_goes_on_with_the_averages_of_what_was_loaded():
    states = read_weights(MODEL).optimizer
    model = small_ppo(network=fitting())
    trainer = fit(
        model, max_epochs=0, callbacks=[PretrainedCheckpoint(str(MODEL), optimizer=True, exclude=["critic.*"])]
    )
    (optimizer,) = trainer.optimizers
    for name, parameter in model.network.named_parameters():
        assert (parameter in optimizer.state) == name.startswith("actor.")
        if name.startswith("actor."):
            saved = optimizer.state[parameter]
            assert saved["step"].item() == states[name]["step"] > 0
            assert all(saved[key].equal(states[name][key]) for key in ("exp_avg", "exp_avg_sq"))


def test_a_file_without_the_averages_of_adam_is_refused_where_they_are_asked_for(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(small_ppo().network.state_dict(), path)
    assert "has no state of Adam for its weights" in refusal(path, network=MLPActorCritic, optimizer=True)


def test_a_file_may_be_anywhere_that_fsspec_reaches():
    with fsspec.open("memory://weights/policy.zip", "wb") as file:
        file.write(MODEL.read_bytes())
    model, callback = start("memory://weights/policy.zip", network=fitting())
    assert same_bits(model.network.state_dict(), read_weights(MODEL).tensors)
    assert callback.lineage["path"] == "memory://weights/policy.zip"
    assert callback.lineage["sha256"] == read_weights(MODEL).sha256
    rows = dict(lineage_rows(callback.lineage))
    assert rows["started from"].startswith("memory://weights/policy.zip, Stable-Baselines3")
    assert "cannot be fetched (" in refusal("memory://weights/none.zip", network=MLPActorCritic)
    assert "cannot be fetched (" in refusal("nosuch://weights/none.zip", network=MLPActorCritic)


def test_a_policy_without_a_value_function_is_loaded_where_the_critic_is_left_out(tmp_path):
    path = tmp_path / "actor.pt"
    own = small_ppo().network.state_dict()
    torch.save({name: tensor for name, tensor in own.items() if name.startswith("actor.")}, path)
    message = refusal(path, network=MLPActorCritic)
    assert "critic.0.weight is absent in " in message and "leave it out with --pretrained.exclude" in message
    _, callback = start(path, network=MLPActorCritic, exclude=["critic.*"])
    assert all(name.startswith("actor.") for name in callback.lineage["loaded"])
    _, callback = start(path, network=MLPActorCritic, strict=False)
    assert all(name.startswith("critic.") for name in callback.lineage["missing"])


def test_a_mean_that_went_through_tanh_does_so_here():
    path = DATA / "di_engine" / "pendulum_tanh__iteration_3140.pth.tar"
    model, _ = start(path, "Pendulum-v1", fitting(path, activation="tanh", tanh_mean=True))
    reference = reference_of(path)
    with torch.no_grad():
        outputs, values = model.network(reference["obs"])
        policy = model.network.policy(reference["obs"])
    torch.testing.assert_close(outputs, reference["mu"], rtol=0, atol=1e-5)
    torch.testing.assert_close(values, reference["value"], rtol=0, atol=1e-5)
    assert policy.equal(outputs)
    with pytest.raises(UsageError, match="tanh_mean=true needs continuous actions"):
        small_ppo(network=partial(MLPActorCritic, tanh_mean=True))
