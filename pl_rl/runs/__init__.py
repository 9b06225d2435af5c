"""A run's directory and the process that trains in it.

What belongs here: finding runs, their identity, lock and log files, whose files may name what.
What does not: the content of a checkpoint (``checkpoints/``), what Lightning calls (``callbacks/``).
"""
