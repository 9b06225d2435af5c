"""Action distributions, against torch.distributions."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

from pl_rl import UsageError
from pl_rl.networks.distributions import make_distribution

EXACT = {"atol": 1e-6, "rtol": 1e-5}


def outputs_of(distribution, batch=7):
    return torch.randn(batch, distribution.num_outputs, generator=torch.Generator().manual_seed(0))


def samples_of(distribution, outputs, count=20_000):
    """Actions ``[count, ...]`` for one and the same policy output ``[P]``."""
    noise = distribution.noise((count,), torch.Generator().manual_seed(0))
    return distribution.sample(outputs.expand(count, -1), noise)


def test_one_choice_is_a_categorical_distribution():
    distribution = make_distribution(Discrete(5))
    outputs, actions = outputs_of(distribution), torch.tensor([0, 1, 2, 3, 4, 0, 2])
    expected = torch.distributions.Categorical(logits=outputs)
    torch.testing.assert_close(distribution.log_prob(outputs, actions), expected.log_prob(actions), **EXACT)
    torch.testing.assert_close(distribution.entropy(outputs), expected.entropy(), **EXACT)


def test_several_choices_are_independent_categorical_distributions():
    distribution = make_distribution(MultiDiscrete([2, 3]))
    outputs, actions = outputs_of(distribution), torch.tensor([[0, 2], [1, 0], [1, 1], [0, 0], [1, 2], [0, 1], [1, 0]])
    first = torch.distributions.Categorical(logits=outputs[:, :2])
    second = torch.distributions.Categorical(logits=outputs[:, 2:])
    log_prob = first.log_prob(actions[:, 0]) + second.log_prob(actions[:, 1])
    torch.testing.assert_close(distribution.log_prob(outputs, actions), log_prob, **EXACT)
    torch.testing.assert_close(distribution.entropy(outputs), first.entropy() + second.entropy(), **EXACT)


def test_continuous_actions_have_a_gaussian_distribution_with_its_own_deviations():
    distribution = make_distribution(Box(-1.0, 1.0, (3,)))
    with torch.no_grad():
        distribution.log_std.copy_(torch.tensor([-1.0, 0.0, 0.5]))
    outputs, actions = outputs_of(distribution), torch.linspace(-3, 3, 21).view(7, 3)
    normal = torch.distributions.Normal(outputs, torch.tensor([-1.0, 0.0, 0.5]).exp())
    expected = torch.distributions.Independent(normal, 1)
    torch.testing.assert_close(distribution.log_prob(outputs, actions), expected.log_prob(actions), **EXACT)
    torch.testing.assert_close(distribution.entropy(outputs), expected.entropy(), **EXACT)


EVERY = [
    *((space, "gaussian") for space in (Discrete(3), MultiDiscrete([2, 3]), MultiBinary(3), Box(-1.0, 1.0, (2,)))),
    *((Box(-1.0, 1.0, (2,)), name) for name in ("state_dependent_gaussian", "squashed_gaussian", "beta", "gsde")),
]


@pytest.mark.parametrize(("space", "continuous"), EVERY)
def test_time_and_environment_dimensions_are_kept(space, continuous):
    distribution = make_distribution(space, continuous=continuous)
    distribution.output_layer(3)
    outputs = torch.randn(4, 5, distribution.num_outputs)
    actions = distribution.sample(outputs, distribution.noise((4, 5), torch.Generator()))
    assert actions.shape[:2] == (4, 5)
    assert distribution.log_prob(outputs, actions).shape == (4, 5)
    assert distribution.entropy(outputs).shape == (4, 5)
    row = distribution.log_prob(outputs[2], actions[2])
    torch.testing.assert_close(distribution.log_prob(outputs, actions)[2], row, **EXACT)


def test_choices_are_sampled_as_often_as_their_probabilities_say():
    probabilities = torch.tensor([0.1, 0.2, 0.3, 0.4])
    actions = samples_of(make_distribution(Discrete(4)), probabilities.log())
    # One standard deviation of a share of 20,000 samples is at most sqrt(0.25 / 20000) = 0.0035.
    torch.testing.assert_close(actions.bincount() / 20_000, probabilities, atol=0.015, rtol=0)


def test_several_choices_are_sampled_independently_of_one_another():
    first, second = torch.tensor([0.3, 0.7]), torch.tensor([0.5, 0.1, 0.4])
    actions = samples_of(make_distribution(MultiDiscrete([2, 3])), torch.cat([first, second]).log())
    shares = (3 * actions[:, 0] + actions[:, 1]).bincount(minlength=6).view(2, 3) / 20_000
    torch.testing.assert_close(shares, first[:, None] * second, atol=0.015, rtol=0)


def test_continuous_actions_have_the_mean_and_deviation_asked_for():
    distribution = make_distribution(Box(-1.0, 1.0, (2,)), log_std_init=-0.5)
    actions = samples_of(distribution, torch.tensor([2.0, -3.0]))
    # Standard errors: 0.61 / sqrt(20000) = 0.0043 of the mean, less of the deviation.
    torch.testing.assert_close(actions.mean(0), torch.tensor([2.0, -3.0]), atol=0.02, rtol=0)
    torch.testing.assert_close(actions.std(0), torch.tensor([-0.5, -0.5]).exp(), atol=0.02, rtol=0)


def test_mode_is_the_most_probable_action():
    assert torch.equal(make_distribution(Discrete(3)).mode(torch.tensor([[0.0, 2.0, 1.0]])), torch.tensor([1]))
    multi = make_distribution(MultiDiscrete([2, 3]))
    assert torch.equal(multi.mode(torch.tensor([[5.0, 1.0, 0.0, 1.0, 2.0]])), torch.tensor([[0, 2]]))
    box = make_distribution(Box(-1.0, 1.0, (2,)))
    assert torch.equal(box.mode(torch.tensor([[0.5, 4.0]])), torch.tensor([[0.5, 4.0]]))


def test_equal_generators_give_equal_actions():
    distribution = make_distribution(Discrete(5))
    assert torch.equal(samples_of(distribution, torch.zeros(5)), samples_of(distribution, torch.zeros(5)))


def test_half_precision_outputs_give_float32_log_probabilities():
    for space, continuous in EVERY:
        distribution = make_distribution(space, continuous=continuous)
        distribution.output_layer(3)
        outputs = outputs_of(distribution, batch=1).bfloat16()
        action = distribution.sample(outputs.float(), distribution.noise((1,), torch.Generator()))
        assert distribution.log_prob(outputs, action).dtype == torch.float32
        assert distribution.entropy(outputs).dtype == torch.float32


def test_continuous_actions_reach_the_environment_within_asymmetric_bounds():
    space = Box(np.array([-1.0, 0.0], np.float32), np.array([3.0, 0.5], np.float32))
    actions = np.array([[-2.0, -2.0], [9.0, 9.0], [0.25, 0.25]], np.float32)
    sent = make_distribution(space).to_env(actions)
    assert sent.tolist() == [[-1.0, 0.0], [3.0, 0.5], [0.25, 0.25]]
    assert all(space.contains(action) for action in sent)


def test_half_open_bounds_clip_on_their_side_only():
    space = Box(np.array([0.0], np.float32), np.array([np.inf], np.float32))
    assert make_distribution(space).to_env(np.array([[-1.0], [1e6]], np.float32)).tolist() == [[0.0], [1e6]]


def test_actions_take_shape_and_type_of_the_space():
    box = Box(-1.0, 1.0, (2, 2), np.float64)
    sent = make_distribution(box).to_env(np.zeros((5, 4), np.float32))
    assert (sent.shape, sent.dtype) == ((5, 2, 2), np.float64)
    grid = MultiDiscrete([[2, 3], [4, 5]])
    sent = make_distribution(grid).to_env(np.array([[1, 2, 3, 4]]))
    assert grid.contains(sent[0])
    assert sent[0].tolist() == [[1, 2], [3, 4]]


def test_choices_are_shifted_to_the_start_of_the_space():
    assert make_distribution(Discrete(3, start=5)).to_env(np.array([0, 2])).tolist() == [5, 7]
    multi = make_distribution(MultiDiscrete([2, 3], start=[10, 20]))
    assert multi.to_env(np.array([[1, 2]])).tolist() == [[11, 22]]


@pytest.mark.parametrize(
    "space", [Discrete(3, dtype=np.int32), MultiDiscrete([2, 3], dtype=np.int8), Box(-1.0, 1.0, (2,), np.float64)]
)
def test_actions_have_the_type_of_the_space(space):
    """Worker processes convert them, so without this it would depend on where an environment is stepped."""
    distribution = make_distribution(space)
    actions = distribution.mode(torch.zeros(4, distribution.num_outputs)).numpy()
    assert all(action in space for action in distribution.to_env(actions))


@pytest.mark.parametrize(
    "space",
    [Box(0, 5, (2,), np.int64), gym.spaces.Dict({"a": Discrete(2)})],
    ids=["integer_box", "dict"],
)
def test_an_unsupported_space_is_named_with_those_that_are_supported(space):
    with pytest.raises(UsageError, match=r"is not supported.*MultiDiscrete, MultiBinary.*Box.*wrapper") as error:
        make_distribution(space)
    assert str(space) in str(error.value)


@pytest.mark.parametrize(
    "space",
    [gym.spaces.Dict({"arm": gym.spaces.Discrete(2)}), gym.spaces.Tuple([gym.spaces.Discrete(2)])],
    ids=["Dict", "Tuple"],
)
def test_actions_of_several_parts_are_refused_in_a_sentence(space):
    with pytest.raises(
        UsageError, match=r"^the action space (Dict|Tuple)\(.*Discrete\(2\).* is not supported: .* action wrapper$"
    ):
        make_distribution(space)
