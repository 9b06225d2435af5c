"""Shards: the parts of a run that several processes share out, with the same bits for any number of processes.

What belongs here: what a shard computes by itself, what shards tell each other, processes and how they end together.
What does not: what one shard computes (``algorithm/``), how fast (``compiled/``).
"""
