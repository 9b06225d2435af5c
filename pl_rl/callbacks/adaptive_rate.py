"""A learning rate that follows how far each iteration moves the policy."""

from typing import Any

import lightning as L

from pl_rl.agent import as_agent
from pl_rl.algorithm.schedule import adapted_rate
from pl_rl.errors import UsageError


class KLAdaptiveRate(L.Callback):
    """Raises or lowers the learning rate after each iteration, by the KL divergence of its last pass.

    The rule is rsl_rl's, see :func:`pl_rl.algorithm.schedule.adapted_rate`, which is applied there before each update.
    The rate is part of the run's checkpoints, as any that a callback sets.

    Args:
        desired_kl: The divergence to stay near.

    Raises:
        UsageError: If it is not positive.
    """

    def __init__(self, desired_kl: float = 0.01) -> None:
        if not desired_kl > 0:
            raise UsageError(f"desired_kl={desired_kl} must be positive; 0.01 is common")
        self.desired_kl = desired_kl

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Set the rate of the next iteration."""
        model: Any = as_agent(pl_module)  # which sets its rate by that name, as scripts do
        model.learning_rate = adapted_rate(model.learning_rate, float(outputs["approx_kl"]), self.desired_kl)
