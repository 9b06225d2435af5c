"""Special functions for arguments of 1 or more, by operations that can be compiled; gradients are autograd's.

Both shift the argument by 3 and use Stirling's series there, https://dlmf.nist.gov/5.11, whose remainder is then below
the precision of float32.
"""

import math

from torch import Tensor


def log_gamma(x: Tensor) -> Tensor:
    """Logarithm of the gamma function, ``x >= 1``."""
    z = x + 3
    inverse = z.reciprocal()
    square = inverse * inverse
    series = inverse * (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square / 1680)))
    return (z - 0.5) * z.log() - z + 0.5 * math.log(2 * math.pi) + series - (x * (x + 1) * (x + 2)).log()


def digamma(x: Tensor) -> Tensor:
    """Derivative of :func:`log_gamma`, ``x >= 1``."""
    z = x + 3
    inverse = z.reciprocal()
    square = inverse * inverse
    series = square * (1 / 12 - square * (1 / 120 - square * (1 / 252 - square / 240)))
    shift = x.reciprocal() + (x + 1).reciprocal() + (x + 2).reciprocal()
    return z.log() - 0.5 * inverse - series - shift
