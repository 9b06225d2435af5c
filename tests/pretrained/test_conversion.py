import pytest
import torch

from pl_rl.pretrained.conversion import adam_states, listed, tensor_dict

TENSORS = {"actor.0.weight": torch.zeros(2, 3), "actor.0.bias": torch.zeros(2)}


def adam(**changed):
    """The state of an Adam that has made one step."""
    parameters = [tensor.clone().requires_grad_() for tensor in TENSORS.values()]
    optimizer = torch.optim.Adam(parameters)
    sum(parameter.sum() for parameter in parameters).backward()
    optimizer.step()
    return optimizer.state_dict() | changed


def test_each_parameter_has_its_state():
    states = adam_states(adam(), TENSORS)
    assert states.keys() == TENSORS.keys()
    for name, state in states.items():
        assert state["step"] == 1.0
        assert state["exp_avg"].shape == state["exp_avg_sq"].shape == TENSORS[name].shape


def test_moments_take_the_shape_of_the_parameter():
    reshaped = {"log_std": torch.zeros(6), "actor.0.bias": torch.zeros(2)}
    assert adam_states(adam(), reshaped)["log_std"]["exp_avg"].shape == (6,)


@pytest.mark.parametrize(
    "saved",
    [
        None,
        [],
        "text",
        {},
        torch.optim.Adam([torch.zeros(2, 3), torch.zeros(2)]).state_dict(),
        adam(param_groups=[{"params": [0]}]),
        adam(param_groups=[{"params": [0, 1, 2]}]),
        adam(param_groups=[{"params": [1, 0]}]),
        adam(param_groups=3),
        adam(state={0: {"square_avg": torch.zeros(2, 3)}, 1: {"square_avg": torch.zeros(2)}}),
        adam(state={0: {"step": "one", "exp_avg": 1, "exp_avg_sq": 2}, 1: {}}),
    ],
)
def test_any_other_state_is_none(saved):
    assert adam_states(saved, TENSORS) is None


def test_only_named_tensors_are_a_state_dict():
    assert tensor_dict(TENSORS) is TENSORS
    for other in (None, [], {}, {1: torch.zeros(1)}, {"a": 1}, torch.zeros(1)):
        assert tensor_dict(other) is None


def test_many_names_are_cut_short():
    assert listed("ab") == "'a', 'b'"
    assert listed("abcdefgh") == "'a', 'b', 'c', 'd', 'e', 'f' and 2 more"
