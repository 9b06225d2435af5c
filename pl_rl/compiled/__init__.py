"""Updates and action selection as machine code, and the audit that they compute what PyTorch does.

What belongs here: when to compile, tracing, the C++ generator and its kernels, Inductor, CartPole's motion, the
compiler and its cache.
What does not: anything that an eager run needs. It builds on ``algorithm/``, which knows nothing of it.
"""
