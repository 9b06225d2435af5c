import pickle
import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from pl_rl.errors import UsageError
from pl_rl.pretrained import read_weights
from tests.pretrained.support import DATA, Bomb, normalized, read_renamed, reference_of

REAL = DATA / "stable_baselines3" / "vec_normalize_pendulum.pkl"
MODULES = {
    "VecNormalize": "stable_baselines3.common.vec_env.vec_normalize",
    "RunningMeanStd": "stable_baselines3.common.running_mean_std",
}


@pytest.fixture
def pickled(monkeypatch, tmp_path):
    """Writes a pickle of classes that have Stable-Baselines3's names."""
    classes = {}
    for name, module in MODULES.items():
        classes[name] = type(name, (), {"__module__": module})
        for end in [i for i, character in enumerate(module) if character == "."] + [len(module)]:
            monkeypatch.setitem(sys.modules, module[:end], ModuleType(module[:end]))
        setattr(sys.modules[module], name, classes[name])

    def write(protocol=4, statistics=None, **state):
        rms, whole = classes["RunningMeanStd"](), classes["VecNormalize"]()
        rms.__dict__ |= {"mean": np.array([1.0, 2.0]), "var": np.array([4.0, 0.25]), "count": 10.0}
        rms.__dict__ |= statistics or {}
        whole.__dict__ |= {"norm_obs": True, "obs_rms": rms, "epsilon": 0.0, "clip_obs": 5.0} | state
        path = tmp_path / "statistics.pkl"
        path.write_bytes(pickle.dumps(whole, protocol))
        return path

    return write


def test_observations_are_normalized_as_stable_baselines3_does(tmp_path):
    weights, reference = read_renamed(REAL, tmp_path), reference_of(REAL)
    obs = normalized(weights, reference["obs"])
    torch.testing.assert_close(obs, reference["normalized_obs"], rtol=0, atol=1e-5)
    assert (weights.source, weights.sha256) == ("Stable-Baselines3 VecNormalize", reference["sha256"])
    assert weights.tensors == {} and weights.network is None
    assert weights.normalizer["count"] == reference["count"]
    assert (weights.normalizer["epsilon"], weights.normalizer["clip"]) == (1e-8, 2.0)


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("dtype", ["<f4", "<f8", ">f8"])
def test_arrays_of_each_pickle_protocol_in_use_are_read(pickled, protocol, dtype):
    statistics = {"mean": np.array([1.0, 2.0], dtype), "var": np.array([4.0, 0.25], dtype)}
    normalizer = read_weights(pickled(protocol, statistics)).normalizer
    assert normalizer["mean"].tolist() == [1.0, 2.0]
    assert normalizer["scale"].tolist() == [2.0, 0.5]


def test_the_order_of_a_matrix_is_kept(pickled):
    matrix = np.arange(6.0).reshape(2, 3)
    for array in (matrix, np.asfortranarray(matrix)):
        normalizer = read_weights(pickled(4, {"mean": array, "var": array})).normalizer
        assert normalizer["mean"].tolist() == [0, 1, 2, 3, 4, 5]


def test_code_beside_the_statistics_is_not_run(pickled, tmp_path):
    path = pickled(venv=Bomb(tmp_path / "executed"))
    assert read_weights(path).normalizer["count"] == 10.0
    assert not (tmp_path / "executed").exists()


def test_code_in_place_of_the_statistics_is_not_run(pickled, tmp_path):
    bomb = Bomb(tmp_path / "executed")
    with pytest.raises(UsageError, match="layout other than"):
        read_weights(pickled(statistics={"mean": bomb}))
    (tmp_path / "bomb.pkl").write_bytes(pickle.dumps([bomb, MODULES["VecNormalize"]]))
    with pytest.raises(UsageError, match="is another pickle; it was left unopened"):
        read_weights(tmp_path / "bomb.pkl")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"norm_obs": False}, "normalizes no vector observations"),
        ({"obs_rms": {"position": 1}}, "normalizes no vector observations"),
        ({"clip_obs": "ten"}, "layout other than"),
        ({"statistics": {"mean": np.array(["a", "b"])}}, "layout other than"),
        ({"statistics": {"mean": np.zeros(3)}}, "do not fit together"),
        ({"statistics": {"var": np.array([-1.0, 1.0])}}, "not finite"),
    ],
)
def test_statistics_that_cannot_be_used_are_refused(pickled, state, message):
    with pytest.raises(UsageError, match=message):
        read_weights(pickled(**state))


def test_a_truncated_pickle_is_refused(tmp_path):
    (tmp_path / "cut.pkl").write_bytes(REAL.read_bytes()[:-100])
    with pytest.raises(UsageError, match="damaged pickle"):
        read_weights(tmp_path / "cut.pkl")
