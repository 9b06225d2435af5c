import gymnasium as gym
import pytest
import torch

from pl_rl.errors import UsageError
from pl_rl.networks.actor_critic import MLPActorCritic
from pl_rl.pretrained import read_weights
from tests.pretrained.support import DATA, assert_answers_as, files, read_renamed, reference_of

FOLDER = DATA / "cleanrl"


@pytest.mark.parametrize("path", files("cleanrl"), ids=lambda path: path.name)
def test_the_network_answers_as_cleanrl_does(path, tmp_path):
    weights = read_renamed(path, tmp_path)
    assert_answers_as(path, weights)
    assert weights.source == f"CleanRL {path.stem}.py"
    assert weights.sha256 == reference_of(path)["sha256"]
    assert weights.network["activation"] == "tanh" and weights.optimizer is None


def test_the_statistics_that_cleanrl_does_not_save_are_noted():
    discrete, continuous = (read_weights(path).notes for path in files("cleanrl"))
    assert len(discrete) == 1 and "tanh" in discrete[0]
    assert any("running statistics that are not in the file" in note for note in continuous)


def test_our_own_weights_in_another_order_are_not_taken_for_cleanrls(tmp_path):
    network = MLPActorCritic(gym.spaces.Box(-1, 1, (3,)), gym.spaces.Box(-1, 1, (2,)), encoder_sizes=[5])
    torch.save(dict(sorted(network.state_dict().items(), reverse=True)), tmp_path / "weights")
    assert read_weights(tmp_path / "weights").source == "state_dict of MLPActorCritic"


def test_an_agent_with_other_layers_is_refused(tmp_path):
    tensors = torch.load(FOLDER / "ppo.cleanrl_model", weights_only=True)
    torch.save(tensors | {"lstm.weight_ih_l0": torch.zeros(4, 4)}, tmp_path / "agent")
    with pytest.raises(UsageError, match=r"no place for: 'lstm\.weight_ih_l0'"):
        read_weights(tmp_path / "agent")
