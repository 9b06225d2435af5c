"""When periodic events are due, schedules of coefficients, and the learning rates of an optimizer's groups."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pl_rl.algorithm.loss import Coefficients
from pl_rl.errors import UsageError

Shape = Literal["constant", "linear", "cosine"]
Schedule = bool | Shape | Callable[[float], float]
"""How a coefficient changes over a run; true is linear, false is constant."""


def is_due(before: int, after: int, every: int) -> bool:
    """Whether a counter that went from ``before`` to ``after`` passed or reached a multiple of ``every``.

    It depends on the counter alone, so a resumed run keeps the schedule of the one it continues. ``every=0`` is never
    due.
    """
    return every > 0 and after // every > before // every


def in_all_units(train_iters: int, per_iteration: int, env_steps: int) -> str:
    """Train iterations with the iterations and env steps that they take: the three units of settings and curves.

    Args:
        train_iters: How many.
        per_iteration: Train iterations of one iteration.
        env_steps: Of one iteration.
    """
    iterations = train_iters / per_iteration
    return f"{train_iters:,} train iterations = {iterations:,.6g} iterations = {iterations * env_steps:,.0f} env steps"


def is_schedule(value: Any) -> bool:
    """Whether it is a :data:`Schedule`."""
    return isinstance(value, bool) or callable(value) or value in get_args(Shape)


def is_constant(schedule: Schedule) -> bool:
    """Whether a coefficient keeps its value."""
    return schedule in (False, "constant")


def annealing_factor(schedule: Schedule, progress: float, end: float = 0.0) -> float:
    """What a schedule multiplies its coefficient by: 1 at the start, and ``end`` at the end if linear or cosine.

    Args:
        schedule: Of the coefficient; a function is asked for the factor.
        progress: Share of the schedule that is done, between 0 and 1.
        end: In place of 0; what a function gives is not changed.

    Raises:
        UsageError: If a function gives no finite number of 0 or more.
    """
    if is_constant(schedule):
        return 1.0
    if not callable(schedule):
        factor = (1 + math.cos(math.pi * progress)) / 2 if schedule == "cosine" else 1 - progress
        return factor + (1 - factor) * end
    factor = float(schedule(progress))
    if not 0 <= factor < math.inf:
        raise UsageError(
            f"a schedule gave {factor} at {progress:.1%} of the run and must give what its coefficient is multiplied "
            "by, 0 or more"
        )
    return factor


def annealed(ppo: Any, env_steps: int) -> tuple[Coefficients, float]:
    """The coefficients of a model's loss, as numbers, and the factor of its learning rates.

    Args:
        ppo: The model.
        env_steps: That it has learnt from.
    """
    progress = min(1.0, env_steps / (ppo.anneal_env_steps or ppo.total_env_steps))
    of_clipping = annealing_factor(ppo.anneal_clip, progress)
    clip_coef, vf_clip_coef = ppo.clip_coef * of_clipping, (ppo.vf_clip_coef or ppo.clip_coef) * of_clipping
    ent_coef = ppo.ent_coef * annealing_factor(ppo.anneal_ent, progress)
    last_factor = ppo.final_learning_rate / ppo.learning_rate if ppo.learning_rate else 0.0
    factor = annealing_factor(ppo.anneal_lr, progress, last_factor)
    return Coefficients(clip_coef, ppo.vf_coef, ent_coef, vf_clip_coef), factor


def adapted_rate(rate: float, kl: float, desired_kl: float) -> float:
    """A learning rate after updates that moved the policy by a KL divergence.

    Lower by a factor of 1.5 beyond twice the desired divergence, higher by it below half of that, between 1e-5 and
    1e-2: https://github.com/leggedrobotics/rsl_rl/blob/main/rsl_rl/algorithms/ppo.py
    """
    if kl > 2 * desired_kl:
        return max(1e-5, rate / 1.5)
    if 0 < kl < desired_kl / 2:
        return min(1e-2, rate * 1.5)
    return rate


class LearningRates:
    """Learning rates of an optimizer's groups: the rate of each group times the annealing factor.

    Assignments from outside take effect: to the ``lr`` of a group, which is taken as annealed already, or to the
    model's ``learning_rate``, which scales all other groups in proportion.

    Args:
        optimizer: As ``configure_optimizers`` made it, before a checkpoint's state comes in.
        setting: The model's ``learning_rate``.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, setting: float) -> None:
        self._setting = setting
        self._made = [float(group["lr"]) for group in optimizer.param_groups]
        self._own = list(self._made)
        self._written = list(self._made)
        self._ratios = [rate / setting if setting else 1.0 for rate in self._made]
        self._factor = 1.0

    def apply(self, optimizer: torch.optim.Optimizer, setting: float, factor: float) -> None:
        """Write the rates of an iteration into the groups.

        Args:
            optimizer: As in the iteration before, but for assignments from outside.
            setting: The model's ``learning_rate``.
            factor: Of annealing, between 1 and 0.
        """
        rates = [float(group["lr"]) for group in optimizer.param_groups]  # groups may share a tensor
        for i, (group, rate) in enumerate(zip(optimizer.param_groups, rates, strict=True)):
            if i == len(self._own):  # a group that was added
                self._own.append(0.0)
                self._written.append(-1.0)
                self._ratios.append(1.0)
            if rate != self._written[i]:
                self._own[i] = rate / (self._factor or 1.0)
                self._ratios[i] = self._own[i] / setting if setting else self._ratios[i]
            elif setting != self._setting:
                self._own[i] = self._ratios[i] * setting
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(self._own[i] * factor)
            else:
                group["lr"] = self._own[i] * factor
            self._written[i] = float(group["lr"])  # as rounded
        self._setting, self._factor = setting, factor

    def state_dict(self) -> dict[str, Any]:
        """The rates as plain data."""
        return {
            "setting": self._setting,
            "made": self._made,
            "own": list(self._own),
            "written": list(self._written),
            "ratios": list(self._ratios),
            "factor": self._factor,
        }

    def load_state_dict(self, state: Mapping[str, Any] | None, in_groups: Sequence[float]) -> bool:
        """Continue the rates of a checkpoint, unless the optimizer has been made with other rates now: then these.

        Args:
            state: From :meth:`state_dict`; ``None`` if the checkpoint has none.
            in_groups: The ``lr`` of each of the checkpoint's groups, which come back with the optimizer's state.

        Returns:
            Whether the checkpoint's rates are continued.
        """
        self._written = list(in_groups)
        if state is None:
            return False
        self._factor = state["factor"]
        if state["made"] != self._made or not len(state["own"]) == len(state["written"]) == len(in_groups):
            return False
        self._setting = state["setting"]
        self._own, self._written = list(state["own"]), list(state["written"])
        ratios = state.get("ratios")  # earlier files have none
        if isinstance(ratios, list) and len(ratios) == len(self._own) and all(isinstance(r, float) for r in ratios):
            self._ratios = list(ratios)
        elif self._setting:
            self._ratios = [own / self._setting for own in self._own]
        else:
            self._ratios += [1.0] * (len(self._own) - len(self._ratios))
        return True
