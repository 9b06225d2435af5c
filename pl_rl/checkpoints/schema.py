"""What a checkpoint holds, entry by entry: all that this package or Lightning reads of it.

Entries of users' own callbacks and subclasses may stand beside these.
"""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from packaging.version import Version
from torch import Tensor

from pl_rl.files.schema import (
    BOOL,
    PLAIN,
    SETTING,
    TEXT,
    Misfit,
    Schema,
    array,
    fields,
    mapping,
    maybe,
    number,
    real,
    record,
    rows,
    sequence,
    that,
    whole,
)  # fmt: skip
from pl_rl.networks.normalization import is_switch_or_names

_SECONDS = number(0, 1e12)
_SEED = whole(-(2**63), 2**64 - 1)  # torch.initial_seed() has 64 bits, with or without a sign


def _takes(make: Any, attribute: str) -> Any:
    """Whether a fresh generator takes a state, which it then is one of."""

    def fits(state: Any) -> bool:
        setter = getattr(make(), attribute)
        setter(state)
        return True

    return fits


def _numpy_state(state: Any) -> bool:
    key = state["state"]["key"].numpy().astype(np.uint32)
    np.random.RandomState().set_state({**state, "state": {**state["state"], "key": key}})
    return bool(key.shape == (624,) and 0 <= state["state"]["pos"] <= 624 and isinstance(state["gauss"], float))


def _bit_generator_state(state: Any) -> bool:
    np.random.PCG64().state = state
    return True


_TORCH_GENERATOR = that(_takes(torch.Generator, "set_state"), "a state of torch's random generator")

RANDOM = record(
    {
        "python": that(_takes(random.Random, "setstate"), "a state of Python's random generator"),
        "numpy": that(_numpy_state, "a state of NumPy's random generator"),
        "torch": _TORCH_GENERATOR,
        "cuda": sequence(array(torch.uint8, ndim=1)),
    }
)

_LAYERS = that(lambda value: all(": " in line for line in value.splitlines()), "a line for each layer, after its name")

_WINDOW = {
    "anchors": whole(),
    "actions": rows(),
    "resets": sequence(whole()),
}
_LASTING = sequence(mapping(array()))
_SUMS = sequence(fields(whole(0, 2**32 - 1), whole(0, 2**32 - 1)))  # of each episode
_DIGEST = record({"sums": _SUMS, "before": maybe(record({**_WINDOW, "lasting": _LASTING, "sums": _SUMS}))})
_REPLAY = record({"first_seed": whole(0, 2**64 - 1), **_WINDOW, "digest": maybe(_DIGEST)}, {"lasting": _LASTING})
_CARTPOLE = record(
    {
        "state": array(torch.float32, torch.float64, ndim=2),
        "steps": array(torch.int32, torch.int64, ndim=1),
        "prev_done": array(torch.bool, ndim=1),
        "generator": that(_bit_generator_state, "a state of NumPy's PCG64"),
    }
)
_MUJOCO = record(
    {
        "simulation": array(torch.float64, ndim=2),
        "position": array(torch.float64, ndim=1),
        **dict.fromkeys(("elapsed", "since_anchor", "anchors"), array(torch.int64, ndim=1)),
        "first_seeds": sequence(whole(0, 2**64 - 1)),
        "generators": sequence(that(_bit_generator_state, "a state of NumPy's PCG64")),
    }
)
# By the class of the environments; what others save is known to them alone.
_ENVIRONMENTS: Mapping[str, Schema] = {
    "SameStepCartPoleVectorEnv": _CARTPOLE,
    "SyncEnvs": sequence(_REPLAY),
    "AsyncEnvs": sequence(_REPLAY),
    "NativeAtariEnvs": sequence(_REPLAY),
    "NativeMujocoEnvs": _MUJOCO,
}


def _environments(value: Any, place: str) -> None:
    record({"class": TEXT, "state": PLAIN})(value, place)
    _ENVIRONMENTS.get(value["class"], PLAIN)(value["state"], f"{place}.state")


def _observations(value: Any, place: str) -> None:
    if isinstance(value, dict):
        that(bool, "a dictionary with entries")(value, place)
        mapping(rows())(value, place)
    else:
        rows()(value, place)


def _parts_of(obs: Any) -> dict[str, Any]:
    return {f"obs.{name}": entry for name, entry in obs.items()} if isinstance(obs, dict) else {"obs": obs}


COLLECTOR = record(
    {
        "environments": maybe(_environments),
        "obs": _observations,
        "episodes": record(
            {
                "open_returns": array(torch.float64, ndim=1),
                "open_lengths": array(torch.int64, ndim=1),
                "recent": sequence(fields(number(), whole())),
                "total": whole(),
            },
            {"info": sequence(mapping(number()))},
        ),
        "generator": _TORCH_GENERATOR,
    },
    {
        "discounted_sums": array(torch.float64, ndim=1),
        "memory": record({"state": array(torch.float32, torch.float64, ndim=2), "begins": array(torch.bool, ndim=1)}),
    },
)

_SHARDS = record({"shards": sequence(COLLECTOR)})


def _collector(value: Any, place: str) -> None:
    """One for all environments, or one for each shard."""
    sharded = isinstance(value, dict) and "shards" in value
    (_SHARDS if sharded else COLLECTOR)(value, place)


def shards_of(collector: Mapping[str, Any]) -> list[Any]:
    """The states of all shards; without shards that of the whole is the only one."""
    return list(collector["shards"]) if "shards" in collector else [collector]


# Of settings that were changed while the run trained.
_LIVE_SETTING = that(lambda value: value is None or isinstance(value, bool | int | float), "a number")
_RATES = record(
    {"setting": number(), **dict.fromkeys(("made", "own", "written"), sequence(number())), "factor": number(0, 1)}
)

STATE = record(
    {
        "format_version": whole(1),
        "ended_by_callback": BOOL,
        "counters": record(
            {
                "env_steps": whole(),
                "train_iter": whole(),
                "iteration": whole(),
                "elapsed_seconds": _SECONDS,
                "run_seed": whole(0, 2**64 - 1),
            },
            {"settings": mapping(_LIVE_SETTING), "learning_rate": number(0), "rates": _RATES},
        ),
        "collector": _collector,
        "random": RANDOM,
        "platform": mapping(TEXT),
        "seed_everything": _SEED,
        "between_iterations": BOOL,
        "parent": maybe(record({"checkpoint": TEXT, "train_iter": whole(), "env_steps": whole()})),
        # Files of older formats get None for these.
        "run_id": maybe(TEXT),
        "spaces": maybe(mapping(PLAIN)),
        "callback_settings": maybe(mapping(SETTING)),
    },
    {
        "processes": whole(1),
        "network": maybe(sequence(_LAYERS)),
    },  # as it may be found when the run is continued, its layers in words
)

_EPISODES = record(
    {f"{what}_{statistic}": number() for what in ("return", "length") for statistic in ("mean", "min", "max", "std")},
    others=number(),
)


def _evaluation(value: Any, place: str) -> None:
    record({"latest": mapping(number()), "best_return": number(), "train_iter": maybe(whole())})(value, place)
    if value["latest"] or value["train_iter"] is not None:  # else before the first
        _EPISODES(value["latest"], f"{place}.latest")
        whole()(value["train_iter"], f"{place}.train_iter")


_WEIGHTS = mapping(TEXT)
_LINEAGE = record(
    {"path": TEXT, "source": TEXT, "sha256": TEXT, "notes": sequence(TEXT)},
    {
        **dict.fromkeys(("loaded", "reshaped", "skipped", "missing", "unexpected"), _WEIGHTS),
        "observations": maybe(number()),
        "optimizer": BOOL,
        "held": record({}, {"freeze": sequence(TEXT), "freeze_iterations": maybe(whole()), "critic_warmup": whole()}),
    },
)


def _lineage(value: Any, place: str) -> None:
    if value != {}:  # of a run that started from its own initial weights
        _LINEAGE(value, place)


CALLBACKS = record(
    {},
    {
        "PeriodicEvaluation": _evaluation,
        "RunCheckpoint": record({"best_model_score": number(), "kept": sequence(whole())}),
        "PretrainedCheckpoint": _lineage,
    },
)

HYPER_PARAMETERS = record(
    {
        "env": record({"id": TEXT}, {"kwargs": mapping(SETTING)}, others=SETTING),
        "network": record({"class_path": TEXT, "init_args": maybe(mapping(SETTING))}, others=SETTING),
    },
    {
        "total_env_steps": number(0, 1e300),
        **dict.fromkeys(("num_envs", "num_steps", "eval_episodes", "eval_num_envs"), whole()),
        **dict.fromkeys(("eval_deterministic", "norm_reward", "norm_value"), BOOL),
        "norm_obs": that(is_switch_or_names, "true, false or a list of names"),
    },
    others=SETTING,
)

_TENSOR = that(lambda value: isinstance(value, Tensor), "a tensor")
_COUNT = that(lambda value: value.shape == () and 0 <= float(value) < float("inf"), "a tensor of one finite number")
# What the statistics of observations, rewards and values are told by.
_OF_NUMBER = ("mean", "var", "count")
_STATISTICS_OF = {
    "normalizer": (*_OF_NUMBER, "clip"),
    **dict.fromkeys(("reward_scaler", "value_normalizer"), _OF_NUMBER),
}
_STATISTICS = {
    **dict.fromkeys(("normalizer.count", "reward_scaler.count", "reward_scaler.var"), _COUNT),
    **dict.fromkeys(("value_normalizer.count", "value_normalizer.var"), _COUNT),
}


def _tensors(value: Any, place: str) -> None:
    mapping(PLAIN)(value, place)
    for name, item in value.items():
        if not name.endswith("_extra_state"):  # of a module, which may be anything
            _TENSOR(item, f"{place}.{name}")
            _STATISTICS.get(name, PLAIN)(item, f"{place}.{name}")
            beginning = name.partition(".")[0]
            for part in _STATISTICS_OF.get(beginning, ()):
                if f"{beginning}.{part}" not in value:
                    raise Misfit(f"{place}.{beginning}.{part}", None, f"there, as {name} is")


_OPTIMIZER = record(
    {
        "state": mapping(PLAIN, names=PLAIN),
        "param_groups": sequence(record({"params": sequence(whole())}, {"lr": real(0, 1e9, "a rate")})),
    }
)


def _is_version(value: Any) -> bool:
    """Whether Lightning takes it for a version that it need not bring up to date."""
    return Version(value) >= Version("2.6")


LOGS = sequence(
    record(
        {"class": TEXT, "folder": TEXT, "reached": mapping(whole())},
        {"digests": mapping(TEXT), "lost": sequence(TEXT)},
    )
)

CHECKPOINT = record(
    {
        "state_dict": _tensors,
        "hyper_parameters": HYPER_PARAMETERS,
        "pl_rl": STATE,
        "pl_rl_logs": LOGS,
        "callbacks": CALLBACKS,
        "optimizer_states": sequence(_OPTIMIZER),
        "lr_schedulers": sequence(mapping(PLAIN)),
        "loops": mapping(mapping(PLAIN)),
        "epoch": whole(),
        "global_step": whole(),
        "pytorch-lightning_version": that(_is_version, "a version of Lightning from 2.6 on"),
    },
    {"pl_rl_trackers": sequence(record({"class": TEXT, "run_id": TEXT, "journal": whole()}))},
)


def check_checkpoint(checkpoint: Any) -> None:
    """Compare a checkpoint of the present format with what one holds.

    Raises:
        Misfit: With the first entry that is something else.
    """
    CHECKPOINT(checkpoint, "")
    counters = checkpoint["pl_rl"]["counters"]
    if "rates" in counters and "learning_rate" not in counters:
        raise Misfit("pl_rl.counters.learning_rate", None, "there, as the groups' rates are")
    states = shards_of(checkpoint["pl_rl"]["collector"])
    scaled = "reward_scaler.var" in checkpoint["state_dict"]
    num_envs = sum(_check_collector(state, scaled) for state in states)
    said = checkpoint["hyper_parameters"]
    for name, there in (("num_envs", num_envs), ("shards", len(states))):
        if said.get(name, there) != there:  # else so many would be made before the states are found to be fewer
            raise Misfit(f"hyper_parameters.{name}", said[name], f"{there}, as the environments' states are")


def _check_collector(collector: Mapping[str, Any], scaled: bool) -> int:
    """Compare the parts of a collector's state; returns how many environments it is of."""
    num_envs = len(collector["episodes"]["open_returns"])
    parts = {
        **_parts_of(collector["obs"]),
        "episodes.open_lengths": collector["episodes"]["open_lengths"],
        "discounted_sums": collector.get("discounted_sums"),
        **{f"memory.{name}": part for name, part in collector.get("memory", {}).items()},
    }
    if scaled and parts["discounted_sums"] is None:
        raise Misfit("pl_rl.collector.discounted_sums", None, "there, as rewards are scaled")
    environments = collector["environments"]
    if environments is not None and isinstance(environments["state"], list):
        parts["environments.state"] = environments["state"]
    elif environments is not None and environments["class"] == "SameStepCartPoleVectorEnv":
        state = environments["state"]
        parts |= {f"environments.state.{name}": state[name] for name in ("steps", "prev_done")}
        parts["environments.state.state"] = state["state"].T
    elif environments is not None and environments["class"] == "NativeMujocoEnvs":
        parts |= {f"environments.state.{name}": part for name, part in environments["state"].items()}
    episodes = collector["episodes"]
    if len(episodes.get("info", episodes["recent"])) != len(episodes["recent"]):
        raise Misfit("pl_rl.collector.episodes.info", episodes["info"], "of as many episodes as recent is")
    for name, part in parts.items():
        if part is not None and len(part) != num_envs:
            raise Misfit(f"pl_rl.collector.{name}", part, f"of {num_envs} environments, as open_returns is")
    return num_envs
