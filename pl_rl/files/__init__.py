"""Reading and writing files that anybody may have made or changed.

What belongs here: plain data from archives and YAML, schemas, writing that follows no link, printable text.
What does not: anything that knows what a run or a checkpoint is.
"""
