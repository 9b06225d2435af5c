"""Mutated files for every reader: ``python -m tests.fuzz --files N --seed S``."""
