"""Random numbers: independent streams from one seed, and the states of generators.

What belongs here: whatever decides which random numbers somebody draws.
What does not: drawing them.
"""
