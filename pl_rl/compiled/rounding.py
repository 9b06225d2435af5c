"""How far two results may be apart that differ by rounding alone: numerical tolerances of the audit."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Relative error (in the 2-norm) that another order of summation may cause; some 1e-6 are seen.
MOST_ROUNDING = 1e-3
# A result may be ill-conditioned (a small difference of large numbers, a ReLU near zero). So an error is accepted, too,
# if it is at most MOST_PERTURBATIONS times what a relative change of all parameters by PERTURBATION causes.
PERTURBATION, MOST_PERTURBATIONS = 1e-4, 10
SMALLEST_DIFFERENCE = 1e-6


def relative_error(tensor: Tensor, expected: Tensor) -> float:
    """Relative error in the 2-norm."""
    return float((tensor - expected).norm() / expected.norm().clamp(min=1e-6))


def perturbed(values: Sequence[Tensor]) -> list[Tensor]:
    """Tensors with a relative perturbation of ``PERTURBATION``, pseudorandom and the same in each call."""
    generator = torch.Generator().manual_seed(0)
    return [value * (1 + PERTURBATION * torch.randn(value.shape, generator=generator)) for value in values]


def excess_difference(actual: Tensor, expected: Tensor, compute_nearby: Callable[[], Tensor]) -> float | None:
    """The relative error of a result; ``None`` if rounding explains it.

    Args:
        actual: Of a compiled function.
        expected: By PyTorch.
        compute_nearby: By PyTorch with :func:`perturbed` parameters; called only above ``MOST_ROUNDING``.
    """
    difference = relative_error(actual, expected)
    absolute = (actual - expected).norm()
    if difference < MOST_ROUNDING or absolute < SMALLEST_DIFFERENCE or not expected.isfinite().all():
        return None
    return None if absolute <= MOST_PERTURBATIONS * (compute_nearby() - expected).norm() else difference
