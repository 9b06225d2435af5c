"""Everything that can happen to a run, made to happen: ``python -m tests.chaos`` prints a table of what came of it."""
