"""Learning rates that are annealed, set from outside, and saved."""

import pytest
import torch

from pl_rl.algorithm.schedule import LearningRates, annealing_factor


def make(*rates):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups)


def rates_of(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        (False, [1, 1, 1, 1]),
        ("constant", [1, 1, 1, 1]),
        (True, [1, 0.75, 0.5, 0]),
        ("linear", [1, 0.75, 0.5, 0]),
        ("cosine", [1, 0.5 + 0.5**1.5, 0.5, 0]),
        (lambda progress: progress**2, [0, 0.0625, 0.25, 1]),
    ],
)
def test_a_schedule_gives_the_factor_of_a_share_of_the_run(schedule, factors):
    assert [annealing_factor(schedule, share) for share in (0, 0.25, 0.5, 1)] == pytest.approx(factors)


def test_a_schedule_may_end_elsewhere():
    for schedule in (True, "cosine"):
        assert [annealing_factor(schedule, share, 0.2) for share in (0, 0.5, 1)] == pytest.approx([1, 0.6, 0.2])
    assert annealing_factor(False, 0.5, 0.2) == 1
    assert annealing_factor(lambda progress: 0.5, 0.5, 0.2) == 0.5


def test_annealing_multiplies_each_groups_rate():
    optimizer = make(0.1, 0.4)
    rates = LearningRates(optimizer, setting=0.1)
    for factor in (1.0, 0.5, 0.25):
        rates.apply(optimizer, 0.1, factor)
        assert rates_of(optimizer) == [0.1 * factor, 0.4 * factor]


def test_a_rate_set_in_a_group_is_annealed_from_there():
    optimizer = make(0.1, 0.4)
    rates = LearningRates(optimizer, setting=0.1)
    rates.apply(optimizer, 0.1, 0.5)
    optimizer.param_groups[0]["lr"] *= 0.5
    rates.apply(optimizer, 0.1, 0.25)
    assert rates_of(optimizer) == pytest.approx([0.1 * 0.5 * 0.25, 0.4 * 0.25])
    optimizer.param_groups[0]["lr"] = 0.0
    rates.apply(optimizer, 0.1, 0.125)
    assert rates_of(optimizer) == pytest.approx([0.0, 0.4 * 0.125])


def test_the_models_rate_moves_all_groups_in_proportion():
    optimizer = make(0.1, 0.4)
    rates = LearningRates(optimizer, setting=0.1)
    rates.apply(optimizer, 0.3, 0.5)
    assert rates_of(optimizer) == pytest.approx([0.3 * 0.5, 1.2 * 0.5])


def test_a_group_that_was_set_does_not_move_once_more():
    optimizer = make(0.1)
    rates = LearningRates(optimizer, setting=0.1)
    rates.apply(optimizer, 0.1, 1.0)
    optimizer.param_groups[0]["lr"] = 0.2
    rates.apply(optimizer, 0.2, 1.0)
    assert rates_of(optimizer) == [0.2]


def test_a_rate_can_come_back_from_zero():
    optimizer = make(0.1)
    rates = LearningRates(optimizer, setting=0.1)
    rates.apply(optimizer, 0.0, 1.0)
    assert rates_of(optimizer) == [0.0]
    rates.apply(optimizer, 0.2, 0.0)
    assert rates_of(optimizer) == [0.0]
    rates.apply(optimizer, 0.2, 0.5)
    assert rates_of(optimizer) == [0.1]


def test_a_group_that_is_added_has_its_own_rate():
    optimizer = make(0.1)
    rates = LearningRates(optimizer, setting=0.1)
    rates.apply(optimizer, 0.1, 0.5)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.3})
    rates.apply(optimizer, 0.1, 0.25)
    assert rates_of(optimizer) == pytest.approx([0.1 * 0.25, 0.3 * 0.5])


def test_rates_go_on_where_they_were_saved_unless_others_are_made():
    def saved():
        optimizer = make(0.1)
        rates = LearningRates(optimizer, setting=0.1)
        rates.apply(optimizer, 0.1, 0.5)
        optimizer.param_groups[0]["lr"] = 0.02
        return optimizer, rates

    optimizer, rates = saved()
    state, in_groups = rates.state_dict(), rates_of(optimizer)
    rates.apply(optimizer, 0.1, 0.25)
    for made, expected in [(0.1, rates_of(optimizer)), (0.8, [0.8 * 0.25])]:
        resumed = make(made)
        again = LearningRates(resumed, setting=made)
        resumed.param_groups[0]["lr"] = in_groups[0]  # as the optimizer's state comes back
        assert again.load_state_dict(state, in_groups) == (made == 0.1)
        again.apply(resumed, made, 0.25)
        assert rates_of(resumed) == expected


@pytest.mark.parametrize("resumed", ["", "as saved", "as earlier files are"])
def test_groups_keep_their_proportions_when_warmed_up_from_zero(resumed):
    optimizer = make(0.1, 0.4)
    rates = LearningRates(optimizer, setting=0.1)
    rates.apply(optimizer, 0.0, 1.0)
    assert rates_of(optimizer) == [0.0, 0.0]
    if resumed:
        state, in_groups = rates.state_dict(), rates_of(optimizer)
        if resumed == "as earlier files are":
            del state["ratios"]
        optimizer = make(0.1, 0.4)
        rates = LearningRates(optimizer, setting=0.1)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        assert rates.load_state_dict(state, in_groups)
    for setting in (0.05, 0.2):
        rates.apply(optimizer, setting, 1.0)
        assert rates_of(optimizer) == pytest.approx([setting, 4 * setting])


def test_a_tensor_that_groups_share_is_written_in_place():
    shared = torch.tensor(0.1)
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.Adam([{"params": [parameter]} for parameter in parameters], lr=shared)
    rates = LearningRates(optimizer, setting=0.1)
    for factor in (1.0, 0.5, 0.25):
        rates.apply(optimizer, 0.1, factor)
        assert [rate.item() for rate in rates_of(optimizer)] == pytest.approx([0.1 * factor] * 2)
    assert all(isinstance(rate, torch.Tensor) for rate in rates_of(optimizer))
