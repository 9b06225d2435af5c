"""One reader for each format of weights.

What belongs here: recognizing a file and giving its tensors our names.
What does not: opening files safely, and matching weights to a network (``pretrained/``).
"""
