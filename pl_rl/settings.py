"""PPO's settings: which values can work, and which may change while a run trains."""

import math
from typing import Any

from pl_rl.errors import UsageError

# What a model is made of.
FIXED = {
    "env": "the environment is chosen when a model is made; make another one",
    "norm_obs": "it is decided when a model is made; make another one",
    "norm_reward": "it is decided when a model is made; make another one",
}
_ELSEWHERE = "set it before fit, or continue the run from a checkpoint with another value"
# What a run is made of, once it trains.
FIXED_IN_FIT = {
    "env_config": "its environments have been made; set it before fit",
    "network": "the optimizer trains the parameters of the one that it began with; set it before fit",
    "num_envs": f"its environments have been made; {_ELSEWHERE}",
    "num_steps": f"memory for its rollouts has been laid out; {_ELSEWHERE}",
    "minibatch_size": f"updates may be compiled for one size; {_ELSEWHERE}",
    "compile_update": f"it is decided when a run begins; {_ELSEWHERE}",
}
AT_LEAST_ONE = (
    *("total_env_steps", "num_envs", "num_steps", "update_epochs", "minibatch_size"),
    *("eval_episodes", "eval_num_envs"),
)
POSITIVE = ("learning_rate", "clip_coef", "max_grad_norm", "target_kl")
# A schedule may end at zero.
ZERO_IN_FIT = ("learning_rate", "clip_coef")


def refusal(name: str, fitting: bool) -> str | None:
    """Why a setting of a model that is made cannot be assigned, and the way out; ``None`` if it can."""
    return FIXED.get(name) or (FIXED_IN_FIT.get(name) if fitting else None)


def check_settings(ppo: Any, fitting: bool = False) -> None:
    """Refuse values that cannot work, each in a sentence.

    Args:
        ppo: The model.
        fitting: Whether it is being trained.

    Raises:
        UsageError: For the first of them.
    """
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
    if not ppo.env_config.timeout > 0:
        raise UsageError(f"env.timeout={ppo.env_config.timeout} must be positive, in seconds")
    for name in ("gamma", "gae_lambda"):
        if not 0 <= getattr(ppo, name) <= 1:
            raise UsageError(f"{name}={getattr(ppo, name)} must lie between 0 and 1")
    if ppo.eval_freq < 0:
        raise UsageError(f"eval_freq={ppo.eval_freq} must not be negative; 0 turns evaluation off")
    if ppo.norm_adv and ppo.minibatch_size == 1:
        raise UsageError("minibatch_size=1 leaves nothing to normalise advantages over; use norm_adv=false")
    samples = ppo.num_envs * ppo.num_steps
    if samples % ppo.minibatch_size:
        divisors = [size for size in range(2, samples + 1) if samples % size == 0]
        below = max((size for size in divisors if size < ppo.minibatch_size), default=None)
        above = min((size for size in divisors if size > ppo.minibatch_size), default=None)
        choices = " or ".join(str(size) for size in (below, above) if size is not None)
        raise UsageError(
            f"num_envs*num_steps={samples} is not divisible by minibatch_size={ppo.minibatch_size}; use {choices}"
        )
