"""Trackers: loggers whose run has an id in a service or database, by which a resume goes on with it.

What belongs here: one module for each kind of tracker, and what they have in common.
What does not: files in a run's directory (``runs/``).
"""

from typing import Literal

LoggerName = Literal["tensorboard", "csv", "wandb", "mlflow", "trackio"]
"""A word for a logger."""
