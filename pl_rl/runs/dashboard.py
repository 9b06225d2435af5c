"""What TensorBoard's page of custom scalars shows: a group of charts for each question, what matters most first.

The page of all scalars sorts by name, and names stay as they are, so that curves of runs that are continued do.
"""

from collections.abc import Iterable
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger


def _band(group: str, what: str) -> list[Any]:
    """A mean with the range around it."""
    return ["Margin", [f"{group}/{what}_{statistic}" for statistic in ("mean", "min", "max")]]


def _lines(*tags: str) -> list[Any]:
    return ["Multiline", list(tags)]


LAYOUT: dict[str, dict[str, list[Any]]] = {
    "How good is it?": {
        "evaluation return, by env steps": _band("evaluator_step", "return"),
        "evaluation return, by train iterations": _band("evaluator_iter", "return"),
        "training return, by env steps": _lines("rollout/return_mean"),
    },
    "How long are its episodes?": {
        "evaluation, by env steps": _band("evaluator_step", "length"),
        "training, by env steps": _lines("rollout/length_mean"),
    },
    "Does it learn as it should?": {
        "policy's change in an iteration": _lines("losses/approx_kl", "losses/clip_fraction"),
        "exploration": _lines("losses/entropy", "policy/std"),
        "value function": _lines("losses/explained_variance"),
        "losses": _lines("losses/loss", "losses/policy_loss", "losses/value_loss"),
        "gradient": _lines("losses/grad_norm"),
    },
    "How fast is it, and by which schedule?": {
        "env steps a second": _lines("time/env_steps_per_second"),
        "learning rate": _lines("schedule/learning_rate"),
        "clipping": _lines("schedule/clip_coef"),
    },
}


def lay_out(loggers: Iterable[Any]) -> None:
    """Tell TensorBoard, at the beginning of a run."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_custom_scalars(LAYOUT)
