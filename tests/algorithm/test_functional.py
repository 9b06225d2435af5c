"""The mathematics, against numbers worked out by hand.

All numbers in GAE, surrogate and value losses are small multiples of powers of two, so equality is exact.
"""

import math

import pytest
import torch
from torch import tensor

from pl_rl.algorithm import functional as F

# One environment, three steps. With gamma = 0.5:
#   delta_0 = 1 + 0.5 * 5 - 4 = -0.5,  delta_1 = 2 + 0.5 * 6 - 5 = 0,  delta_2 = 3 + 0.5 * 8 - 6 = 1.
REWARDS = tensor([[1.0], [2.0], [3.0]])
VALUES = tensor([[4.0], [5.0], [6.0]])
NEXT_VALUES = tensor([[5.0], [6.0], [8.0]])
NEVER = tensor([[False], [False], [False]])
AT_STEP_1 = tensor([[False], [True], [False]])


def advantages(next_values=NEXT_VALUES, terminated=NEVER, truncated=NEVER, gae_lambda=0.5):
    return F.gae(REWARDS, VALUES, next_values, terminated, truncated, gamma=0.5, gae_lambda=gae_lambda).flatten()


def test_advantages_of_a_running_episode():
    # A_2 = 1,  A_1 = 0 + 0.25 * 1 = 0.25,  A_0 = -0.5 + 0.25 * 0.25 = -0.4375
    assert torch.equal(advantages(), tensor([-0.4375, 0.25, 1.0]))


def test_a_terminated_step_has_no_future():
    # delta_1 = 2 - 5 = -3, and A_1 does not see A_2:  A_1 = -3,  A_0 = -0.5 + 0.25 * -3 = -1.25
    assert torch.equal(advantages(terminated=AT_STEP_1), tensor([-1.25, -3.0, 1.0]))


def test_a_truncated_step_is_bootstrapped_but_does_not_see_the_next_episode():
    # The final observation has value 10: delta_1 = 2 + 0.5 * 10 - 5 = 2 = A_1,  A_0 = -0.5 + 0.25 * 2 = 0
    next_values = tensor([[5.0], [10.0], [8.0]])
    assert torch.equal(advantages(next_values, truncated=AT_STEP_1), tensor([0.0, 2.0, 1.0]))


def test_a_step_both_terminated_and_truncated_counts_as_terminated():
    assert torch.equal(advantages(terminated=AT_STEP_1, truncated=AT_STEP_1), advantages(terminated=AT_STEP_1))


def test_with_lambda_0_advantages_are_one_step_errors():
    assert torch.equal(advantages(gae_lambda=0.0), tensor([-0.5, 0.0, 1.0]))


def test_with_lambda_1_advantages_are_discounted_returns_less_the_value():
    # A_0 = 1 + 0.5 * 2 + 0.25 * 3 + 0.125 * 8 - 4 = -0.25,  A_1 = 2 + 0.5 * 3 + 0.25 * 8 - 5 = 0.5,
    # A_2 = 3 + 0.5 * 8 - 6 = 1
    assert torch.equal(advantages(gae_lambda=1.0), tensor([-0.25, 0.5, 1.0]))


def test_environments_do_not_mix():
    both = F.gae(
        REWARDS.expand(3, 2),
        VALUES.expand(3, 2),
        NEXT_VALUES.expand(3, 2),
        torch.cat([NEVER, AT_STEP_1], 1),
        NEVER.expand(3, 2),
        gamma=0.5,
        gae_lambda=0.5,
    )
    assert torch.equal(both, tensor([[-0.4375, -1.25], [0.25, -3.0], [1.0, 1.0]]))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.5, 2.0, -2.5, 0.0),  # good action, already likelier: min(3, 1.25 * 2), nothing more to gain
        (1.5, -2.0, 3.0, 2.0),  # bad action, likelier: min(-3, -2.5), to be undone
        (0.5, 2.0, -1.0, -2.0),  # good action, less likely: min(1, 1.5), to be undone
        (0.5, -2.0, 1.5, 0.0),  # bad action, already less likely: min(-1, -1.5), nothing more to gain
        (1.125, 2.0, -2.25, -2.0),  # inside the interval: not clipped
    ],
)
def test_surrogate_is_clipped_only_where_the_policy_has_moved_the_way_it_should(ratio, advantage, loss, gradient):
    ratios = tensor([ratio], requires_grad=True)
    result = F.clipped_surrogate_loss(ratios, tensor([advantage]), clip_coef=0.25)
    result.backward()
    assert result.item() == loss
    assert ratios.grad.item() == gradient


def test_surrogate_is_a_mean_over_samples():
    ratio, sign = tensor([1.5, 1.5, 0.5, 0.5]), tensor([2.0, -2.0, 2.0, -2.0])
    assert F.clipped_surrogate_loss(ratio, sign, 0.25).item() == (-2.5 + 3 - 1 + 1.5) / 4


def test_value_loss_is_half_the_mean_squared_error():
    assert F.value_loss(tensor([1.0, 3.0]), tensor([2.0, 0.0])).item() == 0.5 * (1 + 9) / 2


@pytest.mark.parametrize(
    ("value", "target", "loss"),
    [
        (3.0, 4.0, 0.5 * 6.25),  # moved from 1 towards 4: only 0.5 of it counts, (1.5 - 4)**2
        (3.0, 0.0, 0.5 * 9.0),  # moved from 1 away from 0: counts in full, (3 - 0)**2
        (1.25, 4.0, 0.5 * 7.5625),  # moved by less than the clip: (1.25 - 4)**2
    ],
)
def test_clipped_value_loss_is_the_worse_of_the_two(value, target, loss):
    assert F.clipped_value_loss(tensor([value]), tensor([1.0]), tensor([target]), clip_coef=0.5).item() == loss


def test_approx_kl_by_hand():
    # ((2 - 1 - ln 2) + (0.5 - 1 + ln 2)) / 2 = 0.25
    assert F.approx_kl(tensor([math.log(2), -math.log(2)])).item() == pytest.approx(0.25, abs=1e-7)
    assert F.approx_kl(torch.zeros(3)).item() == 0.0


def test_approx_kl_estimates_the_divergence_of_the_old_policy_from_the_new():
    old, new = tensor([0.5, 0.3, 0.2]), tensor([0.4, 0.4, 0.2])
    exact = (old * (old / new).log()).sum()
    # Expectation over samples of the old policy, each outcome weighted by its probability.
    log_ratio = (new / old).log()
    estimate = sum(p * F.approx_kl(lr[None]) for p, lr in zip(old, log_ratio, strict=True))
    assert estimate.item() == pytest.approx(exact.item(), abs=1e-6)


def test_clip_fraction_counts_both_sides():
    assert F.clip_fraction(tensor([0.5, 0.9, 1.0, 1.3]), clip_coef=0.2).item() == 0.5


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 2.0, 3.0], 1.0),
        ([7.0, 7.0, 7.0], 0.0),  # a constant explains nothing
        ([3.0, 2.0, 1.0], -3.0),  # residuals -2, 0, 2 have variance 4, the returns 1
    ],
)
def test_explained_variance(values, expected):
    assert F.explained_variance(tensor(values), tensor([1.0, 2.0, 3.0])).item() == expected


def test_constant_returns_leave_nothing_to_explain():
    assert F.explained_variance(tensor([1.0, 2.0]), tensor([5.0, 5.0])).isnan()


def test_normalized_advantages_have_zero_mean_and_unit_deviation():
    # Mean 2, sample standard deviation sqrt(2).
    expected = tensor([-1.0, 1.0]) / math.sqrt(2)
    torch.testing.assert_close(F.normalize(tensor([1.0, 3.0])), expected, atol=1e-6, rtol=0)


def test_equal_advantages_normalize_to_zero():
    assert torch.equal(F.normalize(tensor([4.0, 4.0])), torch.zeros(2))
