"""Going on from a checkpoint: from a file to a run or a model.

What belongs here: one command given again and again, runs that are over, a module from a checkpoint.
What does not: what a checkpoint holds (``checkpoints/``), what Lightning calls (``callbacks/``).
"""
