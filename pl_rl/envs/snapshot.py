"""Saving and restoring the state of vector environments, as plain data."""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pl_rl.envs.faults import closing
from pl_rl.envs.native import SameStepCartPoleVectorEnv
from pl_rl.envs.native_atari import NativeAtariEnvs
from pl_rl.envs.native_mujoco import NativeMujocoEnvs
from pl_rl.envs.parallel import SyncEnvs
from pl_rl.envs.replay import ReplayEnv, Window
from pl_rl.envs.vector import AnyVectorEnv
from pl_rl.envs.workers import AsyncEnvs
from pl_rl.networks.records import entries, leaves, tree_map


class Snapshot(NamedTuple):
    """How the state of a class of vector environments is saved and restored."""

    save: Callable[[Any], Any]
    """Takes the environment and returns its state, made of tensors and builtins only."""
    restore: Callable[[Any, Any], "Restored | None"]
    """Takes an environment and a state, and returns what can be compared, or ``None`` if it failed."""
    split: Callable[[Any, int], list[Any]] | None = None
    """Takes a state and a number of shards, and returns the states of these; ``None`` where that cannot be done."""
    join: Callable[[list[Any]], Any] | None = None
    """The inverse of ``split``."""
    keep: Callable[[Any, Any], Any] | None = None
    """Takes a state and one of other environments, and returns the latter with as many of the former as it has room
    for; ``None`` where that cannot be done."""


class Restored(NamedTuple):
    """What can be compared with the saved state."""

    obs: Any = None
    """Current observations ``[N, ...]``, an array or a dictionary of them; ``None`` if they are not in the state."""
    open_returns: npt.NDArray[np.float64] | None = None
    """Rewards so far in each open episode ``[N]``, if replayed."""
    faults: Sequence[str | None] | None = None
    """The fault of each environment's replay, as the rest of a sentence, if replayed."""


def _save_cartpole(env: SameStepCartPoleVectorEnv) -> dict[str, Any]:
    states = [generator.bit_generator.state for generator in env.generators]
    return {
        "state": torch.from_numpy(np.array(env.state)),
        "steps": torch.from_numpy(env.steps.copy()),
        "prev_done": torch.from_numpy(env.prev_done.copy()),
        "generator": states[0] if len(states) == 1 else states,
    }


def _split_cartpole(saved: dict[str, Any], shards: int) -> list[dict[str, Any]]:
    arrays = {name: saved[name].chunk(shards, -1) for name in ("state", "steps", "prev_done")}
    states = saved["generator"] if isinstance(saved["generator"], list) else [saved["generator"]]
    return [
        {**{name: parts[shard].clone() for name, parts in arrays.items()}, "generator": state}
        for shard, state in enumerate(states)
    ]


def _join_cartpole(parts: list[dict[str, Any]]) -> dict[str, Any]:
    joined: dict[str, Any] = {
        name: torch.cat([part[name] for part in parts], -1) for name in ("state", "steps", "prev_done")
    }
    return {**joined, "generator": [part["generator"] for part in parts]}


def _keep_cartpole(saved: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
    kept = saved["steps"].shape[0]
    joined: dict[str, Any] = {
        name: torch.cat([saved[name], fresh[name][..., kept:]], -1)[..., : fresh[name].shape[-1]]
        for name in ("state", "steps", "prev_done")
    }
    same_shards = len(saved["generator"]) == len(fresh["generator"])
    return {**joined, "generator": (saved if same_shards else fresh)["generator"]}


def _restore_cartpole(env: SameStepCartPoleVectorEnv, saved: dict[str, Any]) -> Restored | None:
    state = saved["state"].numpy().copy()
    if state.shape[1] != env.num_envs:
        return None
    env.state = state
    env.steps = saved["steps"].numpy().copy()
    env.prev_done = saved["prev_done"].numpy().copy()
    states = saved["generator"] if isinstance(saved["generator"], list) else [saved["generator"]]
    for generator, generator_state in zip(env.generators, states, strict=True):
        generator.bit_generator.state = generator_state
    return Restored(state.T.astype(np.float32))


def _save_replays(env: SyncEnvs | AsyncEnvs) -> list[dict[str, Any]]:
    saved = []
    for i, replay in enumerate(env.get_attr("replay")):
        window, before = replay["window"], replay["before"]
        # That of one environment suffices to test its class, as replays take time.
        shown_before = None if i > 0 or before is None else {**_saved_window(before), "sums": before["sums"]}
        digest = {"sums": window["sums"], "before": shown_before}
        saved.append({"first_seed": replay["first_seed"], **_saved_window(window), "digest": digest})
    return saved


def _saved_window(window: Window) -> dict[str, Any]:
    return {
        "anchors": window["anchors"],
        "lasting": [{name: torch.from_numpy(array) for name, array in state.items()} for state in window["lasting"]],
        "actions": torch.from_numpy(window["actions"]),
        "resets": window["resets"],
    }


def _restore_replays(env: SyncEnvs | AsyncEnvs, saved: list[dict[str, Any]]) -> Restored | None:
    if len(saved) != env.num_envs:
        return None
    replays = []
    for replay in saved:
        digest = replay["digest"] or {"sums": None, "before": None}  # old checkpoints have no checksums
        before = digest["before"] and _window(digest["before"], digest["before"]["sums"])
        replays.append(
            {"first_seed": replay["first_seed"], "window": _window(replay, digest["sums"]), "before": before}
        )
    env.set_attr("replay", replays)
    obs = tree_map(lambda *rows: np.stack(rows), *env.get_attr("replayed_obs"))
    return Restored(obs, np.array(env.get_attr("replayed_return")), env.get_attr("replay_fault"))


def _split_replays(saved: list[dict[str, Any]], shards: int) -> list[list[dict[str, Any]]]:
    size = len(saved) // shards
    return [saved[first : first + size] for first in range(0, len(saved), size)]


def _join_replays(parts: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [replay for part in parts for replay in part]


def _keep_replays(saved: list[dict[str, Any]], fresh: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [*saved[: len(fresh)], *fresh[len(saved) :]]


def _window(saved: Mapping[str, Any], sums: list[list[int]] | None) -> Window:
    """The inverse of :func:`_saved_window`."""
    return {
        "anchors": saved["anchors"],
        # Absent from old checkpoints, without such state.
        "lasting": [{name: t.numpy() for name, t in state.items()} for state in saved.get("lasting", [])],
        "actions": saved["actions"].numpy(),
        "resets": saved["resets"],
        "sums": sums,
    }


def _split_mujoco(saved: dict[str, Any], shards: int) -> list[dict[str, Any]]:
    size = len(saved["position"]) // shards
    blocks = [slice(first, first + size) for first in range(0, len(saved["position"]), size)]
    return [
        {name: part[block].clone() if isinstance(part, Tensor) else part[block] for name, part in saved.items()}
        for block in blocks
    ]


def _join_mujoco(parts: list[Any]) -> Any:
    if isinstance(parts[0], list):
        return _join_replays(parts)
    each = {name: [part[name] for part in parts] for name in parts[0]}
    return {
        name: torch.cat(blocks) if isinstance(blocks[0], Tensor) else list(chain(*blocks))
        for name, blocks in each.items()
    }


def _restore_mujoco(env: NativeMujocoEnvs, saved: dict[str, Any] | list[dict[str, Any]]) -> Restored | None:
    if isinstance(saved, dict):
        return Restored() if env.load_state_dict(saved) else None
    # They were stepped by another class, one by one.
    single = SyncEnvs([lambda: ReplayEnv(env.make)] * len(saved))
    with closing(single):
        restored = _restore_replays(single, saved)
        if len(saved) != env.num_envs:
            return None
        env.take_over(single.envs)
        return restored


def _keep_mujoco(saved: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
    num_saved, num_envs = len(saved["position"]), len(fresh["position"])
    kept = {name: part[:num_envs] for name, part in saved.items()}
    joined: dict[str, Any] = _join_mujoco([kept, {name: part[num_saved:] for name, part in fresh.items()}])
    return joined


_CARTPOLE = Snapshot(_save_cartpole, _restore_cartpole, _split_cartpole, _join_cartpole, _keep_cartpole)
_REPLAYS = Snapshot(_save_replays, _restore_replays, _split_replays, _join_replays, _keep_replays)
SNAPSHOTS: dict[type[AnyVectorEnv], Snapshot] = {
    SameStepCartPoleVectorEnv: _CARTPOLE,
    SyncEnvs: _REPLAYS,
    AsyncEnvs: _REPLAYS,
    NativeAtariEnvs: _REPLAYS,
    NativeMujocoEnvs: Snapshot(NativeMujocoEnvs.state_dict, _restore_mujoco, _split_mujoco, _join_mujoco, _keep_mujoco),
}
"""By class; add your own vector environment's here."""


def save_envs(env: AnyVectorEnv) -> dict[str, Any] | None:
    """The state of all environments, or ``None`` if their class is not in ``SNAPSHOTS``."""
    snapshot = SNAPSHOTS.get(type(env))
    return None if snapshot is None else {"class": _kind(type(env).__name__), "state": snapshot.save(env)}


def save_shards(env: AnyVectorEnv, shards: int) -> list[dict[str, Any] | None]:
    """As :func:`save_envs`, of each shard by itself."""
    saved, snapshot = save_envs(env), SNAPSHOTS.get(type(env))
    if saved is None or snapshot is None or snapshot.split is None:
        return [None] * shards
    return [{**saved, "state": part} for part in snapshot.split(saved["state"], shards)]


def join_shards(env: AnyVectorEnv, parts: list[dict[str, Any] | None]) -> dict[str, Any] | None:
    """The inverse of :func:`save_shards`, for environments that are as yet in no state."""
    snapshot, there = SNAPSHOTS.get(type(env)), [part for part in parts if part is not None]
    if len(there) < len(parts) or snapshot is None or snapshot.join is None:
        return None
    if len({_kind(part["class"]) for part in there}) > 1 or not _takes(env, there[0]["class"]):
        return there[0]  # of another class, which is said
    return {**there[0], "state": snapshot.join([part["state"] for part in there])}


def keep_envs(
    env: AnyVectorEnv, saved: list[dict[str, Any] | None], fresh: list[dict[str, Any] | None]
) -> list[dict[str, Any] | None] | str:
    """The states of new shards with as many environments of the saved ones as there is room for, or why not, in words.

    Args:
        env: Of the class that the new shards are of.
        saved: From :func:`save_shards`, by shard.
        fresh: Likewise, of other shards or other numbers of environments.
    """
    there, here, snapshot = join_shards(env, saved), join_shards(env, fresh), SNAPSHOTS.get(type(env))
    if there is None or here is None or snapshot is None or snapshot.split is None or snapshot.keep is None:
        return f"the state of a {type(env).__name__} cannot be dealt to others"
    if _kind(there["class"]) != _kind(here["class"]):
        return _of_another_class(there, env)
    state = snapshot.keep(there["state"], here["state"])
    return [{**here, "state": part} for part in snapshot.split(state, len(fresh))]


def _of_another_class(saved: dict[str, Any], env: AnyVectorEnv) -> str:
    return f"they were stepped by a {saved['class']}, and are by a {type(env).__name__}"


def replayed_steps(saved: dict[str, Any] | None) -> int:
    """How many steps, over all environments, restoring replays."""
    if saved is None or saved["class"] not in (SyncEnvs.__name__, NativeAtariEnvs.__name__):
        return 0
    windows = [*saved["state"], *(replay["digest"]["before"] for replay in saved["state"] if replay["digest"])]
    return sum(len(window["actions"]) for window in windows if window is not None)


def restore_envs(
    env: AnyVectorEnv, saved: dict[str, Any] | None, obs: Any, open_returns: npt.NDArray[np.float64]
) -> str | None:
    """Bring the environments into a saved state.

    Args:
        env: As many environments of the same kind as were saved.
        saved: From :func:`save_envs`.
        obs: The observations ``[N, ...]`` that the environments were in when they were saved, an array or a dictionary.
        open_returns: The returns ``[N]`` of their open episodes so far.

    Returns:
        ``None`` if the environments are in the saved state, else why not, in words; then they need a reset.
    """
    snapshot = SNAPSHOTS.get(type(env))
    if saved is None or snapshot is None:
        return f"the state of a {type(env).__name__} cannot be saved"
    if not _takes(env, saved["class"]):
        return _of_another_class(saved, env)
    restored = snapshot.restore(env, saved["state"])
    if restored is None:
        return "they could not be brought into the state that was saved"
    for i in range(env.num_envs):
        fault = None if restored.faults is None else restored.faults[i]
        if fault is None and restored.obs is not None and not _same(restored.obs, obs, i):
            fault = "led elsewhere, by the observation in the end"
        elif fault is None and restored.open_returns is not None and restored.open_returns[i] != open_returns[i]:
            fault = "led elsewhere, by the rewards of the open episode"
        if fault is not None:
            return (
                f"a replay of environment {i}'s seed and actions {fault}, so it depends on more than these, or is "
                "another one than before"
            )
    return None


def _same(one: Any, other: Any, i: int) -> bool:
    """Whether the observations of environment ``i`` are the same."""
    if isinstance(one, dict) != isinstance(other, dict) or entries(one).keys() != entries(other).keys():
        return False
    return all(leaves(tree_map(lambda a, b: np.array_equal(a[i], b[i], equal_nan=True), one, other)))


def _takes(env: AnyVectorEnv, class_name: str) -> bool:
    """Whether environments can be brought into a state that was saved of this class."""
    kinds = {_kind(type(env).__name__)} | ({SyncEnvs.__name__} if isinstance(env, NativeMujocoEnvs) else set())
    return _kind(class_name) in kinds


def _kind(class_name: str) -> str:
    """The class name that a state is saved under; a replay is the same with worker processes and without."""
    return SyncEnvs.__name__ if class_name == AsyncEnvs.__name__ else class_name
