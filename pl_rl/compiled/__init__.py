"""The same updates and actions as machine code, and the audit that they are the same.

What belongs here: the choice, tracing, the C++ generator and its kernels, the compiler, the cache of code.
What does not: anything that a run without it needs. Eager PyTorch (``algorithm/``) is always there.
"""
