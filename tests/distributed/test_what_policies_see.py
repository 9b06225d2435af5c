"""Dictionaries, masks and memories have the same bits with any number of processes, whatever these exchange."""

from functools import partial

import pytest

import pl_rl
import tests.environments  # noqa: F401  (registers environments)
from tests.distributed.test_processes import differences, train_in
from tests.resume.test_resume import last_of

MEMORY = partial(pl_rl.RecurrentActorCritic, memory_size=4, sequence_length=4)
KINDS = {
    "memory, dict": {
        "env": "PlRlTest/Nested-v0",
        "network": partial(MEMORY, encoder_sizes={"camera": [4]}, critic_keys=["robot/*"]),
        "norm_obs": ["robot/*s"],
    },
    "mask": {
        "env": pl_rl.EnvConfig("PlRlTest/Masked-v0", action_mask="info.action_mask"),
        "network": pl_rl.MultiInputActorCritic,
    },
    "gsde": {"env": "Pendulum-v1", "network": partial(pl_rl.MLPActorCritic, distribution="gsde", sde_sample_freq=3)},
}


@pytest.mark.slow
@pytest.mark.parametrize("pools", [False, True], ids=["gradients", "rollouts"])
@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_a_run_goes_on_in_two_processes_with_the_same_bits(tmp_path, settings, pools, monkeypatch):
    monkeypatch.setattr("pl_rl.compiled.learner.pooling_pays", lambda *_: pools)
    train_in(1, tmp_path / "one", 3, **settings)
    assert train_in(2, tmp_path / "two", 1, **settings) == [None] * 2
    assert train_in(2, tmp_path / "two", 3, last_of(tmp_path / "two"), **settings) == [None] * 2
    assert differences(tmp_path / "one", tmp_path / "two") == {}
