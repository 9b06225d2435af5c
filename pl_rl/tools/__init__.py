"""What people ask about runs: curves, the content of a checkpoint, the proof of an exact resume.

What belongs here: a verb of the command line that trains nothing of its own.
What does not: parsing of options (``cli/``).
"""

from typing import Literal

# Here, as the modules that use them import NumPy.
Aggregate = Literal["iqm", "mean", "runs"]
"""What ``plot`` draws of runs that differ by their seeds."""
PictureFormat = Literal["png", "svg", "pdf"]
"""Of what ``plot`` writes."""
