"""A trained policy by itself, after training.

What belongs here: acting without a Trainer, files for other programs, a model hub.
What does not: continuing a run (``resume/``), starting one from weights (``pretrained/``).
"""

from typing import Literal

Format = Literal["state_dict", "safetensors", "onnx", "hub"]
"""What ``export`` writes; here, as :mod:`pl_rl.deploy.export` imports PyTorch."""
