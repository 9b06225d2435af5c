"""What people ask about runs: curves, the content of a checkpoint, the proof of an exact resume.

What belongs here: a verb of the command line that trains nothing of its own.
What does not: parsing of options (``cli/``).
"""

from typing import Literal

# Here, as the modules that use them import NumPy.
Aggregate = Literal["iqm", "mean", "runs"]
"""What ``plot`` draws of runs that differ by their seeds."""
Returns = Literal["evaluation", "training"]
"""Of which episodes ``plot`` draws the returns."""
Axis = Literal["train_iter", "env_steps", "time"]
"""What ``plot`` draws them against."""
PictureFormat = Literal["png", "svg", "pdf"]
"""Of what ``plot`` writes."""
