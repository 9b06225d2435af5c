"""PPO itself, in eager PyTorch.

What belongs here: the mathematics, the loss, rollouts, action selection, updates, evaluation, schedules, settings.
What does not: networks (``networks/``), simulators (``envs/``), machine code (``compiled/``), files.
"""
