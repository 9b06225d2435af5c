"""Running statistics: what they are, when they learn, and that they are saved and used wherever a policy acts."""

import gymnasium as gym
import lightning as L
import numpy as np
import pytest
import torch

import pl_rl
import tests.uncertain_environments  # noqa: F401  (registers environments)
from pl_rl import RunFailure
from pl_rl.algorithm.rollout import RolloutCollector
from pl_rl.callbacks import PretrainedCheckpoint, RunCheckpoint
from pl_rl.envs import make_vector_env
from pl_rl.networks.normalization import ObservationNormalizer, RewardScaler, discounted_sums
from pl_rl.pretrained import read_weights
from pl_rl.tools.inspection import describe_checkpoint
from pl_rl.tools.verification import compare_runs
from tests.environments import Counter
from tests.example_networks import LinearValue
from tests.resume.test_resume import account, differences, last_of, run_of, train
from tests.support import fit, quiet_trainer, read_checkpoint, same_bits, small_ppo

BOTH = {"norm_obs": True, "norm_reward": True}


def normalizer_of(*steps):
    """Of two components, after it has learnt from observations ``[N, 2]`` of steps."""
    normalizer = ObservationNormalizer(gym.spaces.Box(-np.inf, np.inf, (2,)))
    for obs in steps:
        normalizer.update(np.asarray(obs))
    return normalizer


def random_steps(*numbers):
    """Two components of as many environments, far from zero and of different scales."""
    generator = np.random.default_rng(0)
    return [generator.normal(100, [3.0, 0.1], (number, 2)) for number in numbers]


# --- the statistics -------------------------------------------------------------------------------------------------


def test_the_statistics_are_those_of_all_steps_together():
    steps = random_steps(5, 1, 40)
    normalizer = normalizer_of(*steps)
    together = np.concatenate(steps)
    np.testing.assert_allclose(normalizer.mean, together.mean(0), rtol=1e-13)
    np.testing.assert_allclose(normalizer.var, together.var(0), rtol=1e-10)
    assert normalizer.count == 46


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_an_observation_that_is_not_finite_teaches_nothing(wrong):
    normalizer = normalizer_of(*random_steps(5))
    before = {name: tensor.clone() for name, tensor in normalizer.state_dict().items()}
    normalizer.update(np.array([[1.0, 2.0], [3.0, wrong]]))
    assert same_bits(normalizer.state_dict(), before)


@pytest.mark.parametrize("large", [1e200, 1e300, 1.7e308])
@pytest.mark.parametrize("rows", [1, 2])
def test_an_observation_whose_square_overflows_teaches_nothing(large, rows):
    normalizer = normalizer_of(*random_steps(5))
    before = {name: tensor.clone() for name, tensor in normalizer.state_dict().items()}
    assert not normalizer.update(np.array([[1.0, large], [3.0, large]])[:rows])
    assert same_bits(normalizer.state_dict(), before)


class Huge(Counter):
    """Observes 1e300 after its second step, and finite numbers always."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)

    def _obs(self):
        return np.array([1.0, 1e300 if self.steps == 2 else self.steps])


@pytest.mark.parametrize(
    ("norm_obs", "sentence"),
    [
        (True, r"number 1 of 2 is 1e\+300, whose square overflows, so that norm_obs=true cannot normalize it; "),
        (False, "number 1 of 2 is inf in float32"),
    ],
)
def test_observations_that_are_too_large_are_said_to_be(norm_obs, sentence):
    if "PlRlTest/Huge-v0" not in gym.registry:
        gym.register("PlRlTest/Huge-v0", Huge)
    with pytest.raises(RunFailure, match=rf"environment 0 gave an observation whose {sentence}.*at its step 2 "):
        fit(small_ppo(env="PlRlTest/Huge-v0", norm_obs=norm_obs))


def test_observations_are_normalized_by_hand():
    # Components 1, 3 and 10, 30 have means 2 and 20, and deviations 1 and 10.
    normalizer = normalizer_of([[1.0, 10.0]], [[3.0, 30.0]])
    normalized = normalizer(torch.tensor([[2.0, 20.0], [3.0, 25.0], [-1e3, 1e3]]))
    torch.testing.assert_close(normalized, torch.tensor([[0.0, 0.0], [1.0, 0.5], [-10.0, 10.0]]))
    assert normalized.dtype == torch.float32


def test_before_the_first_update_observations_pass_clipped():
    obs = torch.tensor([0.5, -30.0])
    torch.testing.assert_close(normalizer_of()(obs), torch.tensor([0.5, -10.0]))


def test_a_component_that_never_changes_is_zero():
    normalizer = normalizer_of([[7.0, 1.0]], [[7.0, 2.0]])
    assert normalizer(torch.tensor([7.0, 1.5])).tolist() == [0.0, 0.0]


def test_the_statistics_keep_their_precision_wherever_the_model_goes():
    normalizer = normalizer_of(*random_steps(4))
    mean = normalizer.mean.clone()
    assert torch.equal(normalizer.to(torch.bfloat16).mean, mean)
    assert normalizer.to("meta").mean.device.type == "cpu"


@pytest.mark.parametrize("clip", [None, 2.0])
def test_statistics_of_another_library_give_its_outputs_and_go_on_learning(clip):
    """As rsl_rl has them: divided by the deviation plus 0.01."""
    mean, var, obs = torch.tensor([5.0, -2.0]), torch.tensor([4.0, 0.0]), torch.randn(20, 2) * 3
    normalizer, scale = normalizer_of(), var.sqrt() + 0.01
    normalizer.load_statistics(mean, var, scale, 90.0, clip)
    limit = np.inf if clip is None else clip
    torch.testing.assert_close(normalizer(obs), ((obs - mean) / scale).clip(-limit, limit), rtol=1e-5, atol=1e-5)
    restored = normalizer_of()
    restored.load_state_dict(normalizer.state_dict())
    assert torch.equal(restored(obs), normalizer(obs))
    normalizer.update(np.full((10, 2), 15.0))
    # 90 samples of 5 and 10 of 15.
    assert (normalizer.count, normalizer.mean[0]) == (100, pytest.approx(6.0))


# --- scaling of rewards ---------------------------------------------------------------------------------------------


def test_discounted_sums_begin_afresh_with_each_episode_and_carry_over_rollouts():
    rewards = torch.tensor([[1.0, 1.0], [1.0, 2.0], [1.0, 4.0]])
    ended = torch.tensor([[False, False], [True, False], [False, False]])
    sums, open_sums = discounted_sums(rewards, ended, 0.5, torch.tensor([8.0, 0.0]))
    # 1 + 0.5 * 8, 1 + 0.5 * 5, which ends the episode; 1, 2 + 0.5 * 1, 4 + 0.5 * 2.5.
    assert sums.tolist() == [[5.0, 1.0], [3.5, 2.5], [1.0, 5.25]]
    assert open_sums.tolist() == [1.0, 5.25]
    sums, open_sums = discounted_sums(rewards[:1], torch.tensor([[True, False]]), 0.5, open_sums)
    assert (sums.tolist(), open_sums.tolist()) == ([[1.5, 3.625]], [0.0, 3.625])


def test_within_an_episode_rewards_are_scaled_as_gymnasium_does():
    """Which begins with 0.0001 samples of variance 1."""
    raw = gym.make("Pendulum-v1")
    theirs = gym.wrappers.NormalizeReward(gym.make("Pendulum-v1"), gamma=0.9)
    action, rewards = np.array([1.0], np.float32), []
    for env in (raw, theirs):
        env.reset(seed=0)
        rewards.append(torch.tensor([[float(env.step(action)[1])] for _ in range(150)]))
    ours, sums = RewardScaler(0.9), torch.zeros(1, dtype=torch.float64)
    never, scaled = torch.zeros(150, 1, dtype=torch.bool), []
    for part in (slice(0, 60), slice(60, 61), slice(61, 150)):
        rollout, sums = ours(rewards[0][part], never[part], sums)
        scaled.append(rollout)
    torch.testing.assert_close(torch.cat(scaled)[1:].float(), rewards[1][1:].clamp(-10, 10), rtol=1e-3, atol=0)
    assert ours.var.item() == pytest.approx(theirs.return_rms.var, rel=1e-4)


def test_rewards_are_divided_by_hand_and_clipped():
    scaler, never = RewardScaler(0.5), torch.zeros(3, 2, dtype=torch.bool)
    rewards, sums = torch.tensor([[1.0, 5.0], [2.5, -2.5], [-600.0, 800.0]]), torch.zeros(2, dtype=torch.float64)
    # Sums 1 and 5, 3 and 0, of deviations 2 and 1.92; then one so large that hardly anything else counts.
    scaled, open_sums = scaler(rewards, never, sums)
    deviations = [np.std(x) for x in ([1, 5], [1, 5, 3, 0], [1, 5, 3, 0, -598.5, 800])]
    torch.testing.assert_close(scaled, rewards / torch.tensor(deviations).unsqueeze(1))
    assert open_sums.tolist() == [-598.5, 800.0]
    assert (scaler.count, scaler.mean.item()) == (6, pytest.approx(np.mean([1, 5, 3, 0, -598.5, 800])))
    scaler.var.fill_(1e-6)
    scaler.count.fill_(1e9)
    assert scaler(torch.tensor([[4.0, -4.0]]), never[:1], open_sums)[0].tolist() == [[10.0, -10.0]]


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_reward_that_is_not_finite_teaches_nothing(wrong):
    scaler, never = RewardScaler(0.5), torch.zeros(2, 1, dtype=torch.bool)
    _, sums = scaler(torch.tensor([[1.0], [2.0]]), never, torch.zeros(1, dtype=torch.float64))
    before = {name: tensor.clone() for name, tensor in scaler.state_dict().items()}
    _, sums_after = scaler(torch.tensor([[3.0], [wrong]]), never, sums)
    assert same_bits(scaler.state_dict(), before) and torch.equal(sums_after, sums)


# --- when they learn ------------------------------------------------------------------------------------------------


def counting_collector(num_steps=2, num_envs=1, **kwargs):
    """Observes 0, 1, 2, ... and is rewarded 1, 2, 3, ..."""
    env = make_vector_env(pl_rl.EnvConfig("PlRlTest/Counter-v0", kwargs=kwargs), num_envs)
    normalizer, scaler = ObservationNormalizer(env.single_observation_space), RewardScaler(0.5)
    network = LinearValue(env.single_observation_space, env.single_action_space)
    collector = RolloutCollector(env, network, num_steps, torch.Generator(), normalizer, scaler)
    collector.reset(0)
    return collector


def test_each_step_is_seen_through_the_statistics_up_to_it():
    collector = counting_collector(num_steps=3, truncate_at=4)
    every_obs = [0.0, 1.0, 2.0, 3.0, 0.0, 1.0]

    def through(number, obs):
        """An observation, normalized by the first so many."""
        return (obs - np.mean(every_obs[:number])) / np.sqrt(np.var(every_obs[:number]) + 1e-8)

    seen = torch.tensor([[through(t + 1, obs)] for t, obs in enumerate(every_obs)], dtype=torch.float32)
    first, second = collector.collect(), collector.collect()
    torch.testing.assert_close(torch.cat([first.obs, second.obs]).flatten(1), seen)
    torch.testing.assert_close(torch.cat([first.values, second.values]), 10 * seen + 1)
    # The time limit at 4 is of the fourth step; what the last step led to is seen through the same as what it saw.
    led_to = [seen[1].item(), seen[2].item(), through(3, 3.0), through(4, 4.0), seen[5].item(), through(6, 2.0)]
    next_values = torch.cat([first.next_values, second.next_values]).flatten()
    torch.testing.assert_close(next_values, 10 * torch.tensor(led_to, dtype=torch.float32) + 1)
    assert collector.normalizer.mean.item() == pytest.approx(np.mean(every_obs))
    assert collector.normalizer.count == 6


def test_each_reward_is_scaled_by_the_statistics_up_to_it_and_episodes_keep_their_own():
    collector = counting_collector(truncate_at=3)
    # Rewards 1, 2, 3 and, in the next episode, 1; sums 1, 2.5, 4.25 and 1.
    sums = [1.0, 2.5, 4.25, 1.0]
    expected = [reward / np.std(sums[: t + 1]) if t else 10.0 for t, reward in enumerate([1.0, 2.0, 3.0, 1.0])]
    rewards = torch.cat([collector.collect().rewards for _ in range(2)]).flatten()
    torch.testing.assert_close(rewards, torch.tensor(expected, dtype=torch.float32))
    assert collector.episodes.mean_return() == 6.0


@pytest.mark.slow
def test_evaluating_changes_no_statistics():
    evaluated, not_evaluated = (small_ppo(env="Pendulum-v1", **BOTH, eval_freq=n, eval_episodes=2) for n in (4, 0))
    fit(evaluated)
    fit(not_evaluated)
    assert evaluated.normalizer.count == evaluated.reward_scaler.count == 512
    assert same_bits(evaluated.state_dict(), not_evaluated.state_dict())
    before = {name: tensor.clone() for name, tensor in evaluated.state_dict().items()}
    for verb in ("validate", "test", "predict"):
        getattr(quiet_trainer(), verb)(evaluated)
    assert same_bits(evaluated.state_dict(), before)


# --- settings -------------------------------------------------------------------------------------------------------


def test_nothing_is_normalized_unless_asked_for():
    model = small_ppo()
    assert model.normalizer is None and model.reward_scaler is None
    assert all(name.startswith("network.") for name in model.state_dict())


def test_integer_observations_are_refused():
    with pytest.raises(pl_rl.UsageError, match=r"norm_obs=true needs observations of floats.*uint8.*norm_obs=false"):
        ObservationNormalizer(gym.spaces.Box(0, 255, (8, 8, 3), np.uint8))


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed", "bf16-true"])
def test_other_precisions_leave_the_statistics_in_float64(precision):
    model = small_ppo(env="Pendulum-v1", **BOTH, total_env_steps=128)
    fit(model, precision=precision)
    assert model.normalizer.mean.dtype == torch.float64
    assert model.normalizer.count == 128
    assert model.normalizer.mean.isfinite().all()


# --- saved and used -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"])
@pytest.mark.parametrize(
    "settings",
    [{"env": "Pendulum-v1", **BOTH}, {"env": "PlRlTest/NoisyWalk-v0", **BOTH}, {"env": "Acrobot-v1", "norm_obs": True}],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_a_run_with_statistics_is_continued_bit_for_bit(tmp_path, settings, compiled, capsys):
    settings = {**settings, "compile_update": compiled}
    train(tmp_path / "whole", 8, **settings)
    train(tmp_path / "parts", 3, **settings)
    for until in (4, 8):
        train(tmp_path / "parts", until, last_of(tmp_path / "parts"), **settings)
        assert account(capsys)[-1] == "fidelity: exact"
    assert "normalizer" in compare_runs(run_of(tmp_path / "whole"), run_of(tmp_path / "parts"))
    assert differences(tmp_path / "whole", tmp_path / "parts") == {}


@pytest.mark.slow
def test_sums_of_open_episodes_are_carried_over_a_resume(tmp_path):
    settings = {"env": "Pendulum-v1", **BOTH}
    train(tmp_path, 2, **settings)
    saved = read_checkpoint(last_of(tmp_path))["pl_rl"]["collector"]["discounted_sums"]
    assert saved.shape == (4,) and (saved < 0).all()

    def resumed_var(sums):
        checkpoint = read_checkpoint(last_of(tmp_path))
        checkpoint["pl_rl"]["collector"]["discounted_sums"] = sums
        torch.save(checkpoint, tmp_path / "edited.ckpt")
        model, _ = train(tmp_path / str(float(sums[0])), 3, tmp_path / "edited.ckpt", **settings)
        return model.reward_scaler.var

    assert not torch.equal(resumed_var(saved), resumed_var(torch.zeros_like(saved)))


@pytest.mark.slow
def test_another_number_of_environments_goes_on_with_the_statistics(tmp_path, capsys):
    train(tmp_path, 2, env="Pendulum-v1", **BOTH)
    model, _ = train(tmp_path, 3, last_of(tmp_path), env="Pendulum-v1", num_envs=2, num_steps=32, **BOTH)
    assert model.normalizer.count == model.reward_scaler.count == 3 * 64
    assert account(capsys)[-1] == (
        "not exact: environments: the episodes of environments 0 to 1 go on, those of environments 2 to 3 end"
    )


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["norm_obs", "norm_reward", "norm_value"])
@pytest.mark.parametrize("value", [False, True])
def test_the_settings_cannot_change_when_a_run_is_continued(tmp_path, setting, value):
    settings = {"env": "Pendulum-v1", **BOTH, "norm_value": True}
    train(tmp_path, 1, **{**settings, setting: value})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    words = f"{setting} is {value} in the checkpoint and {not value} in the model".lower()
    with pytest.raises(pl_rl.UsageError, match=f"{words}.*leave {setting} as it was"):
        train(tmp_path, 2, last_of(tmp_path), **{**settings, setting: not value})
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_checkpoint_from_before_these_settings_goes_on_as_it_did(tmp_path, capsys):
    for root in (tmp_path / "whole", tmp_path / "parts"):
        train(root, 2)
    checkpoint = read_checkpoint(last_of(tmp_path / "parts"))
    for setting in (*BOTH, "norm_value", "anneal_ent"):
        del checkpoint["hyper_parameters"][setting]
    torch.save(checkpoint, last_of(tmp_path / "parts"))
    for root in (tmp_path / "whole", tmp_path / "parts"):
        train(root, 4, last_of(root))
        said = account(capsys)
        assert said[-1] == "fidelity: exact"
        assert not [line for line in said if line.startswith("changed")]
    assert differences(tmp_path / "whole", tmp_path / "parts") == {}


@pytest.mark.slow
def test_a_loaded_model_acts_as_the_trained_one_did(tmp_path):
    model, _ = train(tmp_path, 4, env="Pendulum-v1", **BOTH)
    loaded = pl_rl.PPO.load_from_checkpoint(last_of(tmp_path))
    assert same_bits(loaded.state_dict(), model.state_dict())
    without = pl_rl.PPO.load_from_checkpoint(last_of(tmp_path))
    without.normalizer = None
    results = []
    for each in (model, loaded, without):
        L.seed_everything(0, verbose=False)
        each.run_seed = 0
        each.train_iter = 0
        [episodes] = quiet_trainer().predict(each)
        results.append(episodes.returns)
    assert results[0] == results[1] != results[2]


def test_evaluation_returns_are_of_raw_rewards(tmp_path):
    counting = pl_rl.EnvConfig("PlRlTest/Counter-v0", kwargs={"truncate_at": 3})
    model, _ = train(tmp_path, 1, env=counting, **BOTH)
    [episodes] = quiet_trainer().predict(model)
    assert set(episodes.returns) == {6.0}


@pytest.mark.slow
def test_a_checkpoint_tells_of_its_statistics(tmp_path):
    train(tmp_path, 2, env="Pendulum-v1", **BOTH)
    rows = dict(describe_checkpoint(last_of(tmp_path)))
    assert rows["observations"] == "normalized by statistics of 128"
    deviation = float(read_checkpoint(last_of(tmp_path))["state_dict"]["reward_scaler.var"].sqrt())
    assert rows["rewards"] == f"divided by {deviation:.4g} in training, learnt from 128"
    # (3*64 + 64 + 64*64 + 64) * 2 + 2 * (64 + 1) and the standard deviation.
    assert rows["network"].endswith("8,963 parameters")
    train(tmp_path, 1)
    assert not {"observations", "rewards"} & dict(describe_checkpoint(last_of(tmp_path, version=1))).keys()


def test_weights_are_not_taken_from_such_a_checkpoint_without_its_statistics(tmp_path):
    model, _ = train(tmp_path, 2, env="Pendulum-v1", **BOTH)
    weights = read_weights(last_of(tmp_path))
    mean, scale, clip = (weights.normalizer[name] for name in ("mean", "scale", "clip"))
    obs = torch.randn(50, 3) * 5
    torch.testing.assert_close(((obs - mean) / scale).clip(-clip, clip).float(), model.normalizer(obs))
    assert "predicts scaled returns" in weights.notes[0]
    with pytest.raises(pl_rl.UsageError, match="the model normalizes none"):
        train(tmp_path, 1, env="Pendulum-v1", callbacks=[PretrainedCheckpoint(str(last_of(tmp_path))), RunCheckpoint()])
