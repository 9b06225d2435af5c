"""Policies that were trained before, by whomever: reading their weights, matching them to a network, freezing.

What belongs here: anything about the weights that a new run starts from.
What does not: going on with a run (``resume/``), the callback that loads (``callbacks/``).
"""

from pl_rl.pretrained.policy_weights import AdamState, NetworkSettings, Normalizer, PolicyWeights
from pl_rl.pretrained.reading import read_weights

__all__ = ["AdamState", "NetworkSettings", "Normalizer", "PolicyWeights", "read_weights"]
