"""What the scripts beside this file share: observations, and the answers of a library to them."""

import hashlib
import json
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


def observations(size, seed=0):
    """64 observations ``[64, size]`` of a standard normal distribution, float32."""
    return np.random.default_rng(seed).standard_normal((64, size)).astype(np.float32)


def adam_pairs(optimizer):
    """The first number of each parameter, and that of its first moment in Adam."""
    state = optimizer.state
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [[p.flatten()[0].item(), state[p]["exp_avg"].flatten()[0].item()] for p in parameters]


def write_reference(path, made_with, **answers):
    """Writes ``NAME.ref.json`` beside a file of weights; arrays and tensors become lists."""
    reference = {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "made_with": made_with,
        **{name: value.tolist() if hasattr(value, "tolist") else value for name, value in answers.items()},
    }
    path.with_name(f"{path.stem}.ref.json").write_text(json.dumps(reference) + "\n")
