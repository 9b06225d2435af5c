"""What a checkpoint holds, and whether a file is a sound one.

What belongs here: format, migrations, schema, writing and reading a file, the training state in it.
What does not: where the files of a run lie (``runs/``), weights of other libraries (``pretrained/``).
"""
