"""Validation of PPO's settings, and which of them may change while a run trains."""

import dataclasses
import math
from bisect import bisect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast, get_args

import numpy as np
from torch import Tensor, nn

from pl_rl.algorithm.schedule import is_schedule
from pl_rl.envs import EnvConfig
from pl_rl.envs.config import Vectorization
from pl_rl.errors import UsageError
from pl_rl.files.plain_data import plain_data
from pl_rl.networks.actor_critic import ActorCritic
from pl_rl.networks.description import describe_network
from pl_rl.networks.normalization import is_switch_or_names

# Fixed when a model is made, with the reason.
FIXED = {
    "env": "the environment is chosen when a model is made; make another one",
    "norm_obs": "it is decided when a model is made; make another one",
    "norm_reward": "it is decided when a model is made; make another one",
    "norm_value": "it is decided when a model is made; make another one",
}
_ELSEWHERE = "set it before fit, or continue the run from a checkpoint with another value"
# Fixed during fit.
FIXED_IN_FIT = {
    "env_config": "its environments have been made; set it before fit",
    "network": "the optimizer trains the parameters of the one that it began with; set it before fit",
    "num_envs": f"its environments have been made; {_ELSEWHERE}",
    "shards": f"its environments and random numbers have been dealt to them; {_ELSEWHERE}",
    "num_steps": f"memory for its rollouts has been laid out; {_ELSEWHERE}",
    "minibatch_size": f"updates may be compiled for one size; {_ELSEWHERE}",
    "compile_update": f"it is decided when a run begins; {_ELSEWHERE}",
    "adam_eps": f"the optimizer has been made; {_ELSEWHERE}",
}
AT_LEAST_ONE = (
    *("total_env_steps", "num_envs", "shards", "num_steps", "update_epochs", "minibatch_size"),
    *("eval_episodes", "eval_num_envs"),
)
WHOLE = (*(name for name in AT_LEAST_ONE if name != "total_env_steps"), "eval_freq")
SWITCHES = (
    *("clip_vloss", "norm_adv", "recompute_adv", "norm_reward", "norm_value", "compile_update", "eval_deterministic"),
)
SCHEDULES = ("anneal_lr", "anneal_clip", "anneal_ent")
NUMBERS = (
    *("total_env_steps", "learning_rate", "gamma", "gae_lambda", "clip_coef", "ent_coef", "vf_coef"),
    *("max_grad_norm", "target_kl", "stop_value", "adam_eps", "vf_clip_coef", "anneal_env_steps"),
    "final_learning_rate",
)
OPTIONAL = ("max_grad_norm", "target_kl", "stop_value", "compile_update", "vf_clip_coef", "anneal_env_steps")
POSITIVE = (
    *("learning_rate", "clip_coef", "max_grad_norm", "target_kl", "adam_eps", "vf_clip_coef", "anneal_env_steps"),
)
# Zero is allowed during fit, as the end of a schedule.
ZERO_IN_FIT = ("learning_rate", "clip_coef")

SETTINGS = frozenset({*WHOLE, *SWITCHES, *SCHEDULES, *NUMBERS, "env", "env_config", "network", "norm_obs"})
LIVE_SETTINGS = sorted(SETTINGS - FIXED.keys() - FIXED_IN_FIT.keys() - {"learning_rate"})
"""Those that may change while a run trains; the learning rate has a state of its own."""


def check_parts(env: Any, network: Any) -> None:
    """Refuse what no model can be made of.

    Raises:
        UsageError: If the environment is no name and no :class:`pl_rl.EnvConfig`, or the network is none that can be
            made for an environment's spaces.
    """
    if not isinstance(env, EnvConfig):
        raise UsageError(
            f"env={str(env)[:80]} is a {type(env).__name__} and must be the name of an environment or an EnvConfig, as "
            "a run makes several of it; register your own with gymnasium.register and give its name"
        )
    _check_env(env)
    if isinstance(network, nn.Module) or not callable(network):
        raise UsageError(
            f"network is a {type(network).__name__} and must be a class, or a function that makes a network of the "
            "observation and the action space; give pl_rl.MLPActorCritic, or a functools.partial of it"
        )


def _check_env(env: EnvConfig) -> None:
    """Refuse settings of another kind than theirs, which Python does not look at.

    Raises:
        UsageError: For the first of them.
    """
    texts = ("imports", "info_keys")
    wanted = {
        "id": (isinstance(env.id, str), "a text, such as CartPole-v1"),
        "vectorization": (env.vectorization in get_args(Vectorization), f"one of {', '.join(get_args(Vectorization))}"),
        "kwargs": (isinstance(env.kwargs, Mapping), "a dictionary of arguments by name"),
        "timeout": (isinstance(env.timeout, int | float) and not isinstance(env.timeout, bool), "a number of seconds"),
        "action_mask": (
            env.action_mask is None or isinstance(env.action_mask, str),
            "a text, such as info.action_mask",
        ),
        **{name: (_is_list(getattr(env, name), str), "a list of texts") for name in texts},
        **{name: (_is_list(getattr(env, name), object), "a list") for name in ("wrappers", "train_wrappers")},
    }
    for name, (fits, words) in wanted.items():
        if not fits:
            raise UsageError(f"env.{name}={str(getattr(env, name))[:80]!r} must be {words}")


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, kind) for item in value)


def plain_number(name: str, value: Any) -> Any:
    """Convert a scalar of NumPy or torch, as sweeps pass, to a Python number: checkpoints hold plain data only.

    Raises:
        UsageError: For a parameter, which would no longer be trained.
    """
    if isinstance(value, Tensor) and value.requires_grad:
        raise UsageError(f"{name} cannot be learnt: it is a setting; give it a number, and a parameter another name")
    return value.item() if isinstance(value, np.generic) or (isinstance(value, Tensor) and not value.ndim) else value


def change_setting(
    ppo: Any, name: str, value: Any, assign: Callable[[Any], None], before_run: dict[str, Any], fitting: bool
) -> None:
    """Assign another value to a setting of a model.

    Args:
        ppo: The model.
        name: Of the setting.
        value: The new one.
        assign: Sets the attribute.
        before_run: Values from before the run, of settings that it has changed; kept up to date.
        fitting: Whether the model is being trained.

    Raises:
        UsageError: If the setting cannot change any more, or the value is invalid; the setting keeps its value.
    """
    before = getattr(ppo, name, None)
    same = value is before or (type(value) is type(before) and isinstance(value, str | int | float) and value == before)
    if same and (fitting or name not in before_run):
        return
    reason = FIXED.get(name) or (FIXED_IN_FIT.get(name) if fitting else None)
    if reason is not None:
        raise UsageError(f"{name} cannot be changed: {reason}")
    assign(value)
    if not fitting:
        before_run.pop(name, None)
        ppo.save_hyperparameters(plain_data(_described(name, value)))
        return
    try:
        check_settings(ppo, fitting)
    except UsageError:
        assign(before)
        raise
    before_run.setdefault(name, before)


def _described(name: str, value: Any) -> dict[str, Any]:
    """A setting as a checkpoint stores it."""
    if name == "network":
        return {name: describe_network(lambda observations, actions: cast(ActorCritic, value), value)}
    return {"env": dataclasses.asdict(value)} if name == "env_config" else {name: stored(name, value)}


def stored(name: str, value: Any) -> Any:
    """The value of a setting as a checkpoint stores it: of a schedule that is a function, its name."""
    if name not in SCHEDULES or not callable(value):
        return value
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def check_settings(ppo: Any, fitting: bool = False) -> None:
    """Refuse invalid values, each in a sentence.

    Args:
        ppo: The model.
        fitting: Whether it is being trained.

    Raises:
        UsageError: For the first of them.
    """
    _check_kinds(ppo)
    for name in AT_LEAST_ONE:
        if getattr(ppo, name) < 1:
            raise UsageError(f"{name}={getattr(ppo, name)} must be at least 1")
    for name in POSITIVE:
        value = getattr(ppo, name)
        if value is not None and not (value > 0 or (fitting and name in ZERO_IN_FIT and value == 0)):
            raise UsageError(f"{name}={value} must be positive")
    if ppo.stop_value is not None and math.isnan(ppo.stop_value):
        raise UsageError("stop_value=nan is never reached; use null")
    for name in ("ent_coef", "vf_coef"):
        if not math.isfinite(getattr(ppo, name)):
            raise UsageError(f"{name}={getattr(ppo, name)} must be a finite number")
    if not 0 <= ppo.final_learning_rate < math.inf:
        raise UsageError(f"final_learning_rate={ppo.final_learning_rate} must be a finite number of 0 or more")
    if not ppo.env_config.timeout > 0:
        raise UsageError(f"env.timeout={ppo.env_config.timeout} must be positive, in seconds")
    for name in ("gamma", "gae_lambda"):
        if not 0 <= getattr(ppo, name) <= 1:
            raise UsageError(f"{name}={getattr(ppo, name)} must lie between 0 and 1")
    if ppo.eval_freq < 0:
        raise UsageError(f"eval_freq={ppo.eval_freq} must not be negative; 0 turns evaluation off")
    if ppo.norm_adv and ppo.minibatch_size == 1:
        raise UsageError("minibatch_size=1 leaves nothing to normalize advantages over; use norm_adv=false")
    _check_parts_of_samples(ppo)


def _check_parts_of_samples(ppo: Any) -> None:
    """Whether shards, sequences and minibatches go into what they are parts of."""
    if ppo.shards & (ppo.shards - 1):
        below = 1 << (ppo.shards.bit_length() - 1)
        raise UsageError(f"shards={ppo.shards} is no power of two; use {below} or {2 * below}")
    length, shards = ppo.network.sequence_length or 1, ppo.shards
    for name, *parts in (("num_envs", 1, shards), ("num_steps", length, 1), ("minibatch_size", length, shards)):
        value, factor = getattr(ppo, name), math.prod(parts)
        if value % factor:
            named = zip(("sequence_length", "shards"), parts, strict=True)
            by = " times ".join(f"{part}={count}" for part, count in named if count > 1)
            choices = _nearest(value, range(0, value + factor, factor))
            raise UsageError(f"{name}={value} is not divisible by {by}; use --model.{name} {choices}")
    samples = ppo.num_envs * ppo.num_steps
    if samples % ppo.minibatch_size:
        sizes = range(0, samples + 1, length * shards)
        choices = _nearest(ppo.minibatch_size, (size for size in sizes if size > 1 and samples % size == 0))
        raise UsageError(
            f"num_envs*num_steps={samples} is not divisible by minibatch_size={ppo.minibatch_size}; use "
            f"--model.minibatch_size {choices}"
        )


def _nearest(value: int, choices: Iterable[int]) -> str:
    """The positive ones below and above, in words."""
    positive = sorted(choice for choice in choices if choice > 0)
    place = bisect(positive, value)
    return " or ".join(map(str, positive[max(0, place - 1) : place + 1]))


def _check_kinds(ppo: Any) -> None:
    kinds: list[tuple[tuple[str, ...], Callable[[Any], bool], str]] = [
        (SWITCHES, lambda value: isinstance(value, bool), "must be true or false"),
        (("norm_obs",), is_switch_or_names, "must be true, false, or a list of names of entries"),
        (SCHEDULES, is_schedule, "must be constant, linear, cosine, true (linear), false, or in Python a function"),
        (WHOLE, lambda value: isinstance(value, int) and not isinstance(value, bool), "must be a whole number"),
        (NUMBERS, lambda value: isinstance(value, int | float) and not isinstance(value, bool), "is not a number"),
    ]
    for names, fits, wanted in kinds:
        for name in names:
            value = plain_number(name, getattr(ppo, name))
            if not fits(value) and not (value is None and name in OPTIONAL):
                raise UsageError(f"{name}={value!r} {wanted}")
    if not math.isfinite(ppo.total_env_steps):
        raise UsageError(f"total_env_steps={ppo.total_env_steps} must be a finite number")
