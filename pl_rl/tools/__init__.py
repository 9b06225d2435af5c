"""What people ask about runs: curves, the content of a checkpoint, the proof of an exact resume.

What belongs here: a verb of the command line that trains nothing of its own.
What does not: parsing of options (``cli/``).
"""
