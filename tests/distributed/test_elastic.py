"""A resume with other environments or shards: what can go on goes on, what is new is said, and then all is exact."""

import shutil
from functools import partial

import lightning as L
import pytest
import torch

import pl_rl
import tests.environments
import tests.uncertain_environments  # noqa: F401  (registers environments)
from pl_rl.callbacks import RunCheckpoint
from pl_rl.checkpoints.format import read_checkpoint
from pl_rl.checkpoints.schema import shards_of
from pl_rl.envs import SNAPSHOTS, Snapshot
from pl_rl.envs.snapshot import SyncEnvs
from pl_rl.tools.verification import first_difference
from tests.distributed.test_processes import BOTH_NORMS, differences, train_in
from tests.resume.test_resume import account, last_of, run_of, train

EAGER = {"compile_update": False}
KINDS = {
    "native": {"env": pl_rl.EnvConfig("CartPole-v1", "native")},
    "sync": {"env": "PlRlTest/NoisyWalk-v0", "norm_obs": True, "norm_reward": True},
    "async": {"env": pl_rl.EnvConfig("Pendulum-v1", "async"), "norm_reward": True},
    "mujoco": {"env": pl_rl.EnvConfig("HalfCheetah-v5", "native")},
    "memory": {
        "env": "PlRlTest/Nested-v0",
        "network": partial(pl_rl.RecurrentActorCritic, memory_size=4, sequence_length=4, encoder_sizes={"camera": [4]}),
    },
}
CHANGES = [
    *(("native", *change) for change in [((4, 1), (8, 2)), ((8, 2), (4, 1)), ((4, 2), (8, 2))]),
    *(("sync", *change) for change in [((4, 1), (8, 1)), ((8, 2), (4, 4)), ((4, 1), (4, 2))]),
    pytest.param("memory", (4, 2), (8, 4), marks=pytest.mark.slow),
    pytest.param("async", (4, 1), (8, 2), marks=pytest.mark.slow),
    pytest.param("mujoco", (4, 1), (8, 2), marks=pytest.mark.slow),
    pytest.param("mujoco", (8, 2), (4, 4), marks=pytest.mark.slow),
]


class Beginning(L.Callback):
    """Keeps what the collector goes on from."""

    def on_train_epoch_start(self, trainer, pl_module):
        if not hasattr(self, "state"):
            self.state = shards_of(pl_module.collector.state_dict())
            self.statistics = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}


def dealt(num_envs, shards, **settings):
    return {**EAGER, **settings, "num_envs": num_envs, "shards": shards}


def environment(shards, index):
    """All that one environment has."""
    size = len(shards[0]["obs"] if torch.is_tensor(shards[0]["obs"]) else next(iter(shards[0]["obs"].values())))
    state, i = shards[index // size], index % size
    envs, obs = state["environments"]["state"], state["obs"]
    has = {"obs": [entry[i] for entry in (obs.values() if isinstance(obs, dict) else [obs])]}
    if isinstance(envs, list):
        digest = envs[i]["digest"]
        has["replay"] = {**envs[i], "digest": digest["sums"]}
    elif "simulation" in envs:
        has["replay"] = {name: part[i] for name, part in envs.items()}
    else:
        has["replay"] = [envs["state"][:, i], envs["steps"][i], envs["prev_done"][i]]
    has["episode"] = [state["episodes"][name][i] for name in ("open_returns", "open_lengths")]
    has["memory"] = [part[i] for part in state.get("memory", {}).values()]
    return {**has, "sum": state["discounted_sums"][i] if "discounted_sums" in state else None}


def random_numbers(shards):
    """Of actions and orders, and of first states where shards have such."""
    environments = [state["environments"]["state"] for state in shards]
    return [
        *(state["generator"].tolist() for state in shards),
        *(state["generator"] for state in environments if "generator" in state),
    ]


def ended_episodes(shards):
    episodes = [state["episodes"] for state in shards]
    return sum(each["total"] for each in episodes), sorted(end for each in episodes for end in each["recent"])


@pytest.mark.parametrize(("kind", "before", "after"), CHANGES, ids=str)
def test_environments_that_there_is_room_for_go_on_to_the_bit(tmp_path, kind, before, after):
    settings = KINDS[kind]
    train(tmp_path, 2, **dealt(*before, **settings))
    checkpoint = read_checkpoint(last_of(tmp_path))
    saved = shards_of(checkpoint["pl_rl"]["collector"])
    beginning = Beginning()
    train(tmp_path, 3, last_of(tmp_path), callbacks=[beginning, RunCheckpoint()], **dealt(*after, **settings))
    kept = min(before[0], after[0])
    assert len(beginning.state) == after[1]
    for i in range(kept):
        assert first_difference(environment(saved, i), environment(beginning.state, i)) is None
    for i in range(kept, after[0]):
        _, begun = environment(beginning.state, i)["episode"]
        assert begun == 0
    assert first_difference(checkpoint["state_dict"], beginning.statistics) is None
    old, new = random_numbers(saved), random_numbers(beginning.state)
    going_on = [one for one in old if one in new]
    assert len(going_on) == (len(old) if before[1] == after[1] else 0)
    assert ended_episodes(saved) == ended_episodes(beginning.state)


@pytest.mark.slow
def test_what_goes_on_and_what_is_new_is_said(tmp_path, capsys):
    train(tmp_path, 1, **dealt(4, 1))
    for until, num_envs, shards, said in [
        (2, 8, 1, ["environments: the episodes of environments 0 to 3 go on, environments 4 to 7 begin"]),
        (3, 7, 1, ["environments: the episodes of environments 0 to 6 go on, those of environment 7 end"]),
        (4, 7, 1, []),
        (5, 8, 2, ["environments: the episodes of environments 0 to 6 go on, environment 7 begins", "shards: 2 in"]),
        (6, 8, 4, ["shards: 4 in the place of 2 have new random numbers, for actions, orders of samples and"]),
    ]:
        capsys.readouterr()
        sizes = {} if num_envs == 8 else {"minibatch_size": 28}
        train(tmp_path, until, last_of(tmp_path), **dealt(num_envs, shards, **sizes))
        lines = [line for line in account(capsys) if line.partition(":")[0] in ("not exact", "fidelity")]
        assert len(lines) == max(1, len(said))
        for line, words in zip(lines, said or ["fidelity: exact"], strict=True):
            assert line.startswith(f"not exact: {words}" if said else words)


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "settings", [KINDS["native"], pytest.param(BOTH_NORMS, marks=pytest.mark.slow)], ids=["native", "both norms"]
)
def test_a_run_that_was_dealt_again_is_resumed_exactly_with_any_number_of_processes(tmp_path, settings, world, capfd):
    train(tmp_path / "whole", 2, **dealt(4, 1, **settings))
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    again = dealt(8, 2, **settings)
    train_in(1, tmp_path / "whole", 5, last_of(tmp_path / "whole"), **again)
    assert train_in(world, tmp_path / "parts", 3, last_of(tmp_path / "parts"), **again) == [None] * world
    capfd.readouterr()
    assert train_in(world, tmp_path / "parts", 5, last_of(tmp_path / "parts"), **again) == [None] * world
    assert "fidelity: exact" in capfd.readouterr().out
    assert differences(tmp_path / "whole", tmp_path / "parts") == {}


@pytest.mark.slow
def test_shards_that_are_dealt_twice_repeat_no_random_numbers(tmp_path):
    seen = []
    for until, shards in enumerate([2, 1, 2, 1, 2, 4], start=1):
        beginning = Beginning()
        previous = last_of(tmp_path) if seen else None
        train(tmp_path, until, previous, callbacks=[beginning, RunCheckpoint()], **dealt(4, shards))
        seen += [state["generator"].tolist() for state in beginning.state]
        seen += [state["environments"]["state"]["generator"] for state in beginning.state]
    assert all(one != other for i, one in enumerate(seen) for other in seen[:i])


@pytest.mark.slow
def test_environments_of_another_class_or_one_that_cannot_be_dealt_begin_afresh(tmp_path, capsys, monkeypatch):
    train(tmp_path, 1, **dealt(4, 1, env=pl_rl.EnvConfig("CartPole-v1", "native")))
    capsys.readouterr()
    sync = pl_rl.EnvConfig("CartPole-v1", "sync")
    train(tmp_path, 2, last_of(tmp_path), **dealt(8, 1, env=sync))
    assert account(capsys)[-1] == (
        "not exact: environments: restarted, as they were stepped by a SameStepCartPoleVectorEnv, and are by a SyncEnvs"
    )
    known = SNAPSHOTS[SyncEnvs]
    monkeypatch.setitem(SNAPSHOTS, SyncEnvs, Snapshot(known.save, known.restore))
    train(tmp_path, 3, last_of(tmp_path), **dealt(4, 1, env=sync))
    assert (
        account(capsys)[-1]
        == "not exact: environments: restarted, as the state of a SyncEnvs cannot be dealt to others"
    )
    train(tmp_path, 4, last_of(tmp_path), **dealt(4, 1, env=sync))
    assert account(capsys)[-1] == "fidelity: exact"


def test_environments_of_another_shape_are_refused(tmp_path):
    train(tmp_path, 1, **dealt(4, 1))
    checkpoint = torch.load(last_of(tmp_path), weights_only=True)
    checkpoint["pl_rl"]["collector"]["obs"] = torch.zeros(4, 3)
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises(
        pl_rl.UsageError, match=r"are of the shapes \[\(3,\), .* and those here of \[\(4,\), .*; use another"
    ):
        train(tmp_path, 2, tmp_path / "other.ckpt", **dealt(8, 1))


def test_samples_that_no_longer_go_into_minibatches_are_refused_before_anything_is_touched(tmp_path):
    train(tmp_path, 1, **dealt(4, 1))
    files = {path: path.read_bytes() for path in run_of(tmp_path).rglob("*") if path.is_file()}
    with pytest.raises(
        pl_rl.UsageError, match=r"num_steps=96 .* minibatch_size=64; use --model.minibatch_size 48 or 96"
    ):
        train(tmp_path, 2, last_of(tmp_path), **dealt(6, 2, minibatch_size=64))
    assert files == {path: path.read_bytes() for path in run_of(tmp_path).rglob("*") if path.is_file()}
    train(tmp_path, 2, last_of(tmp_path), **dealt(6, 2, minibatch_size=48))
