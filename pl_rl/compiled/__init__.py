"""Updates and action selection as machine code, and the audit that they compute what PyTorch does.

What belongs here: when to compile, tracing, the C++ generator and its kernels, the compiler, the cache of machine code.
What does not: anything that an eager run needs. It builds on ``algorithm/``, which knows nothing of it.
"""
