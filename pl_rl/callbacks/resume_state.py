"""What a checkpoint must hold beyond weights and optimiser."""

from typing import Any

import lightning as L

from pl_rl.agent import as_agent
from pl_rl.checkpoints import FORMAT_VERSION, STATE_KEY


class ResumeState(L.Callback):
    """Persists env steps and the rest of an agent's state in every checkpoint, whoever saves it."""

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the state as plain data, so that the file opens with ``torch.load(..., weights_only=True)``."""
        agent = as_agent(pl_module)
        checkpoint[STATE_KEY] = {"format_version": FORMAT_VERSION, **agent.counters()}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the state over."""
        as_agent(pl_module).restore_counters(checkpoint[STATE_KEY])
