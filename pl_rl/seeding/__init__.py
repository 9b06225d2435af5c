"""Random numbers: independent streams from one seed, and the states of generators.

What belongs here: seeds, streams and generator states.
What does not: sampling (``networks/distributions``).
"""
