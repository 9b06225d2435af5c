"""How far two results may be apart that differ by rounding alone."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Of a result's length, by which two orders of summation may differ; some 1e-6 are seen.
MOST_ROUNDING = 1e-3
# Numbers may differ by as much as ten times what parameters that are off by 1e-4 would change them: more than rounding
# ever does, also where they are small differences of large numbers or a unit is just about to switch.
PERTURBATION, MOST_PERTURBATIONS = 1e-4, 10
SMALLEST_DIFFERENCE = 1e-6


def length_of_difference(tensor: Tensor, expected: Tensor) -> float:
    """How far a tensor is from another one, in lengths of that one."""
    return float((tensor - expected).norm() / expected.norm().clamp(min=1e-6))


def perturbed(values: Sequence[Tensor]) -> list[Tensor]:
    """Tensors whose elements are moved at random by a small share of themselves, the same way each time."""
    generator = torch.Generator().manual_seed(0)
    return [value * (1 + PERTURBATION * torch.randn(value.shape, generator=generator)) for value in values]


def excess_difference(actual: Tensor, expected: Tensor, compute_nearby: Callable[[], Tensor]) -> float | None:
    """How far a result is from what it should be, in lengths of that; ``None`` if rounding explains it.

    Args:
        actual: Of a compiled function.
        expected: By PyTorch.
        compute_nearby: By PyTorch with :func:`perturbed` parameters; called if the two are not as good as equal.
    """
    difference = length_of_difference(actual, expected)
    absolute = (actual - expected).norm()
    if difference < MOST_ROUNDING or absolute < SMALLEST_DIFFERENCE or not expected.isfinite().all():
        return None
    return None if absolute <= MOST_PERTURBATIONS * (compute_nearby() - expected).norm() else difference
