"""PPO itself, one operation at a time.

What belongs here: the mathematics, the loss, rollouts, updates, acting, evaluation, schedules and settings.
What does not: networks (``networks/``), simulators (``envs/``), machine code (``compiled/``), files.
"""
