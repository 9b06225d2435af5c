"""A trained policy by itself, after training.

What belongs here: acting without a Trainer, files for other programs, a model hub.
What does not: continuing a run (``resume/``), starting one from weights (``pretrained/``).
"""
