"""Random functions as machine code: what torch computes, for all operations, shapes, layouts and values together.

A function is a list of steps, each an operation on values that are there by then; all of them are its results. Beside
each value goes how far rounding may take it: nowhere, or as far as its operation takes what was rounded before. What
jumps (comparisons, whole numbers) is computed from exact values only.

``pytest tests/compiled/test_generator_properties.py --hypothesis-profile=nightly`` tries more, with the flags that
runs have.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as nnf

from pl_rl.compiled import compiler
from pl_rl.compiled.function import compile_function

ULPS = 16 * 2.0**-23
TINY = 1e-37
MOST = torch.finfo(torch.float32).max
FLOATS = [
    *(0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 255.7, -300.0, 16777217.0, math.inf, -math.inf, math.nan),
    *(1e-40, -1e-45, 1e-20, 3e38, -3e38, 88.5, 88.7, -88.5, 103.0, -104.5, 1e10, -1e19, 4e9),
]
INTEGERS = [0, 1, -1, 2, 7, 255, 256, -129, 2**31, 2**31 - 1, -(2**31), 2**53 + 1, -(2**62) - 1, 2**63 - 1, -(2**63)]
SIZES = st.sampled_from([0, 1, 1, 2, 3, 5, 8, 17, 33])


@dataclass
class Value:
    """A value of a function, and how far rounding may take each of its elements."""

    tensor: torch.Tensor
    tolerance: torch.Tensor
    given: bool = False

    @property
    def exact(self):
        return not self.tolerance.any()


@dataclass
class Step:
    """An operation on values by their numbers."""

    name: str
    operands: tuple[int, ...]
    apply: object
    rounds: object


def layouts(draw, tensor):
    """The same numbers, or some of them, in another place of memory."""
    kind = draw(st.sampled_from(["rows", "columns", "part"]))
    if kind == "columns" and tensor.dim() > 1:
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if kind == "part" and tensor.dim():
        return tensor.repeat_interleave(2, -1)[..., ::2]
    return tensor


@st.composite
def given_values(draw, shape):
    """An argument."""
    dtype = draw(st.sampled_from([torch.float32] * 4 + [torch.int64, torch.int32, torch.uint8, torch.bool]))
    chance = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if dtype.is_floating_point:
        numbers = torch.tensor(chance.normal(scale=3, size=shape), dtype=dtype)
        strange = torch.tensor(chance.choice(FLOATS, size=shape), dtype=dtype)
        share = draw(st.sampled_from([0, 0.1, 1]))
        tensor = torch.where(torch.tensor(chance.random(size=shape)) < share, strange, numbers)
    else:
        tensor = torch.tensor(chance.choice(np.array(INTEGERS), size=shape)).to(dtype)
    tensor = layouts(draw, tensor)
    return Value(tensor, torch.zeros(tensor.shape, dtype=torch.float64), given=True)


# How far rounding takes the result of an operation, from the operation, its operands and its result ------------------


def nowhere(apply, operands, result):
    return torch.zeros(result.shape, dtype=torch.float64)


def as_its_operands(apply, operands, result):
    """Of views, choices and signs."""
    if not result.is_floating_point():
        return nowhere(apply, operands, result)
    return apply(*(o.tolerance for o in operands)).abs()


def smoothly(apply, operands, result):
    """As far as the corners of what the operands may be, and some last bits."""
    exact = apply(*(o.tensor.double() for o in operands)).double()
    tolerance = ULPS * exact.abs() + TINY
    for signs in itertools.product([-1, 1], repeat=len(operands)):
        corner = apply(*(o.tensor.double() + s * o.tolerance for o, s in zip(operands, signs, strict=True))).double()
        away = (corner - exact).abs()
        tolerance = torch.maximum(tolerance, away + ULPS * exact.abs() + TINY)
    # What overflows on the way depends on the order.
    return torch.where((exact.abs() > 0.01 * MOST) & exact.isfinite(), math.inf, tolerance)


def as_its_largest_part(apply, operands, result):
    """Where parts cancel: 1 + erf, of numbers far below zero."""
    return smoothly(apply, operands, result) + ULPS * sum(o.tensor.double().abs() for o in operands)


def by_sums(magnitude):
    """As far as the sum of absolute values has digits; whether one overflows depends on its order."""

    def rounds(apply, operands, result):
        of_all = magnitude(*(o.tensor.double().abs().nan_to_num(posinf=0) for o in operands))
        tolerance = 4 * ULPS * of_all + TINY
        if not all(o.exact for o in operands):  # of what is linear alone
            tolerance = tolerance + magnitude(*(o.tolerance for o in operands))
        return torch.where(of_all > 0.01 * MOST, math.inf, tolerance)

    return rounds


# Operations -----------------------------------------------------------------------------------------------------------


def is_float(value):
    return value.tensor.is_floating_point()


def is_whole(value):
    return value.tensor.dtype in (torch.int64, torch.int32)


def is_exact(value):
    return value.exact


def has_dims(value):
    return value.tensor.dim() > 0


def is_matrix(value):
    return is_float(value) and value.exact and value.tensor.dim() == 2


def unary(apply, rounds, *conditions):
    def make(draw, values):
        fitting = [i for i, value in enumerate(values) if all(condition(value) for condition in conditions)]
        return ((draw(st.sampled_from(fitting)),), apply, rounds) if fitting else None

    return make


def binary(apply, rounds, *conditions):
    def make(draw, values):
        fitting = [i for i, value in enumerate(values) if all(condition(value) for condition in conditions)]
        if not fitting:
            return None
        one = draw(st.sampled_from(fitting))
        others = [i for i in fitting if broadcast(values[one], values[i])]
        return (one, draw(st.sampled_from(others))), apply, rounds

    return make


def broadcast(one, other):
    try:
        shape = torch.broadcast_shapes(one.tensor.shape, other.tensor.shape)
    except RuntimeError:
        return False
    return math.prod(shape) < 20_000


def along(apply, rounds, *conditions):
    """Operations along a dimension that is drawn."""

    def make(draw, values):
        fitting = [i for i, v in enumerate(values) if has_dims(v) and all(condition(v) for condition in conditions)]
        if not fitting:
            return None
        operand = draw(st.sampled_from(fitting))
        dim = draw(st.integers(-values[operand].tensor.dim(), values[operand].tensor.dim() - 1))
        number = draw(st.integers(0, 3))
        bound = (
            [function(dim, number) for function in (apply, rounds)] if rounds in SUMS else [apply(dim, number), rounds]
        )
        return (operand,), *bound

    return make


def sums(dim, _):
    return by_sums(lambda x: x.sum(dim))


def means(dim, _):
    return by_sums(lambda x: x.sum(dim) / max(1, x.shape[dim]))


def squares(dim, _):
    return by_sums(lambda x: 4 * (x * x).sum(dim))


def largest(dim, _):
    """Of softmax and its like: by the largest number among those that are normalized together."""
    return by_sums(lambda x: 1 + x.amax(dim, keepdim=True).expand(x.shape) if x.numel() else x)


SUMS = {sums, means, squares, largest}


def product(draw, values):
    fitting = [i for i, value in enumerate(values) if is_matrix(value)]
    pairs = [(i, j) for i in fitting for j in fitting if values[i].tensor.shape[1] == values[j].tensor.shape[0]]
    return (draw(st.sampled_from(pairs)), torch.mm, by_sums(torch.mm)) if pairs else None


def product_with_itself(draw, values):
    fitting = [i for i, value in enumerate(values) if is_matrix(value)]
    return ((draw(st.sampled_from(fitting)),), lambda x: x @ x.t(), by_sums(lambda x: x @ x.t())) if fitting else None


def cast(dtype):
    return unary(lambda x: x.to(dtype), nowhere, is_exact)


def compare(operation, scalar):
    if scalar is None:
        return binary(operation, nowhere, is_exact)
    return unary(lambda x: operation(x, scalar), nowhere, is_exact)


def picks(draw, values):
    """Gather by an index of any layout."""
    fitting = [i for i, value in enumerate(values) if has_dims(value) and value.tensor.numel()]
    if not fitting:
        return None
    operand = draw(st.sampled_from(fitting))
    shape = values[operand].tensor.shape
    dim = draw(st.integers(0, len(shape) - 1))
    seed = draw(st.integers(0, 99))
    shape = [draw(st.integers(0, 4)) if i == dim else n for i, n in enumerate(shape)]
    index = np.random.default_rng(seed).integers(0, values[operand].tensor.shape[dim], shape).tolist()
    apply = lambda x: x.gather(dim, torch.tensor(index, dtype=torch.int64).view(shape))  # noqa: E731
    return (operand,), apply, as_its_operands


def puts(draw, values):
    """Scatter, to places that are not named twice."""
    fitting = [i for i, value in enumerate(values) if has_dims(value) and value.tensor.numel()]
    if not fitting:
        return None
    operand = draw(st.sampled_from(fitting))
    shape = values[operand].tensor.shape
    dim = draw(st.integers(0, len(shape) - 1))
    place = draw(st.integers(0, shape[dim] - 1))
    index = [1 if i == dim else n for i, n in enumerate(shape)]

    def apply(x):
        at = torch.full(index, place)
        return x.scatter(dim, at, x.narrow(dim, 0, 1))

    return (operand,), apply, as_its_operands


def written(dim, number):
    """Every other element is written."""

    def apply(x):
        part = x.transpose(0, dim)[number::2].transpose(0, dim)
        return torch.slice_scatter(x, -part, dim, start=number, step=2)

    return apply


def assigned(dim, number):
    def apply(x):
        y = x.clone()
        y.select(dim, number).fill_(0)
        return y

    return apply


SMOOTH = {
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log": torch.log,
    "log1p": torch.log1p,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "erf": torch.erf,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "cube": lambda x: x**3,
    "to the 4": lambda x: x**4,
    "to the 1.5": lambda x: x.abs() ** 1.5,
    "elu": nnf.elu,
    "silu": nnf.silu,
    "softplus": nnf.softplus,
    "leaky": nnf.leaky_relu,
    "reciprocal": lambda x: 1 / (x.abs() + 0.5),
    "rsqrt": lambda x: (x.abs() + 0.5).rsqrt(),
    "scaled": lambda x: 0.1 * x - 3,
}
OPERATIONS = {
    **{name: unary(f, smoothly, is_float) for name, f in SMOOTH.items()},
    "gelu": unary(nnf.gelu, as_its_largest_part, is_float),
    "sine": unary(torch.sin, smoothly, is_float, is_exact),
    "cosine": unary(torch.cos, smoothly, is_float, is_exact),
    "add": binary(torch.add, smoothly, is_float),
    "subtract": binary(torch.sub, smoothly, is_float),
    "multiply": binary(torch.mul, smoothly, is_float),
    "add twice": binary(lambda x, y: torch.add(x, y, alpha=2), smoothly, is_float),
    "divide": binary(lambda x, y: x / (y.abs() + 0.5), smoothly, is_float),
    "divide what is given": binary(torch.div, smoothly, is_float, lambda value: value.given),
    "add whole": binary(torch.add, nowhere, is_whole),
    "multiply whole": binary(torch.mul, nowhere, is_whole),
    "any types": binary(torch.add, nowhere, is_exact, lambda value: not is_float(value)),
    "product of any types": binary(torch.mul, nowhere, is_exact, lambda value: not is_float(value)),
    "bytes negated": unary(torch.neg, nowhere, lambda value: value.tensor.dtype == torch.uint8),
    "power of whole": unary(lambda x: x**5, nowhere, is_whole),
    "square of whole": unary(lambda x: x**2, nowhere, is_whole),
    "half": unary(lambda x: x / 2, smoothly, is_whole),
    "negative": unary(torch.neg, as_its_operands, is_float),
    "absolute": unary(torch.abs, as_its_operands, is_float),
    "absolute whole": unary(torch.abs, nowhere, is_whole),
    "relu": unary(torch.relu, smoothly, is_float),
    "relu of whole": unary(torch.relu, nowhere, is_whole),
    "sign": unary(torch.sign, nowhere, is_exact, lambda value: value.tensor.dtype != torch.bool),
    "floor": unary(torch.floor, nowhere, is_exact, is_float),
    "maximum": binary(torch.maximum, smoothly, is_float),
    "minimum": binary(torch.minimum, nowhere, is_exact),
    "clamp": unary(lambda x: x.clamp(-1, 2), nowhere, is_exact, lambda value: value.tensor.dtype != torch.bool),
    "clamp above": unary(lambda x: x.clamp(max=1.5), smoothly, is_float),
    "clamp by tensors": binary(lambda x, y: torch.clamp(x, min=y, max=y * 2), smoothly, is_float),
    "clamp by one tensor": binary(lambda x, y: torch.clamp(x, min=y), nowhere, is_exact, is_float),
    "clamp by another": binary(lambda x, y: torch.clamp(x, max=y), nowhere, is_exact, is_float),
    **{f"{f.__name__} {s}": compare(f, s) for f in (torch.gt, torch.le, torch.eq, torch.ne) for s in (None, 1, 0.5)},
    "and": binary(torch.logical_and, nowhere, is_exact),
    "or": binary(torch.logical_or, nowhere, is_exact),
    "not": unary(torch.logical_not, nowhere, is_exact),
    "where": binary(lambda x, y: torch.where(x > y, x, y * 2), nowhere, is_exact, is_float),
    **{f"to {dtype}": cast(dtype) for dtype in (torch.float32, torch.int64, torch.int32, torch.uint8, torch.bool)},
    "sum": along(lambda dim, _: lambda x: x.sum(dim), sums, is_float),
    "sum of all": unary(lambda x: x.sum(), by_sums(lambda x: x.sum()), is_float),
    "sum of whole": along(lambda dim, _: lambda x: x.sum(dim), nowhere, lambda value: not is_float(value)),
    "mean": along(lambda dim, _: lambda x: x.mean(dim), means, is_float),
    "variance": along(lambda dim, _: lambda x: x.var(dim, correction=0), squares, is_float, is_exact),
    "softmax": along(lambda dim, _: lambda x: x.softmax(dim), largest, is_float, is_exact),
    "log of softmax": along(lambda dim, _: lambda x: x.log_softmax(dim), largest, is_float, is_exact),
    "largest": along(lambda dim, _: lambda x: x.amax(dim), nowhere, is_exact),
    "smallest": along(lambda dim, _: lambda x: x.amin(dim, keepdim=True), nowhere, is_exact),
    "place of the largest": along(lambda dim, _: lambda x: x.argmax(dim), nowhere, is_exact),
    "product": product,
    "product with itself": product_with_itself,
    "transposed": along(lambda dim, _: lambda x: x.transpose(0, dim), as_its_operands),
    "part": along(lambda dim, n: lambda x: x.transpose(0, dim)[n % 2 :: n + 1], as_its_operands),
    "one more dimension": along(lambda dim, _: lambda x: x.unsqueeze(dim) + 0, as_its_operands),
    "expanded": unary(lambda x: x.expand(3, *x.shape), as_its_operands, lambda value: value.tensor.dim() < 3),
    "flat": unary(lambda x: x.reshape(-1), as_its_operands),
    "joined": along(lambda dim, _: lambda x: torch.cat([x, x[:0], x], dim), as_its_operands),
    "stacked": unary(lambda x: torch.stack([x, x], -1), as_its_operands, lambda value: value.tensor.dim() < 3),
    "gather": picks,
    "scatter": puts,
    "part written": along(written, as_its_operands),
    "one written": along(assigned, as_its_operands),
}


@st.composite
def functions(draw):
    """Arguments, steps and values of a random function."""
    size = (draw(SIZES), draw(SIZES))
    shapes = [size, size, (size[1],), (size[0], 1), (draw(SIZES), size[0]), (), (2, *size)]
    values = [draw(given_values(draw(st.sampled_from(shapes)))) for _ in range(draw(st.integers(2, 4)))]
    arguments, steps = list(values), []
    for name in draw(st.lists(st.sampled_from(sorted(OPERATIONS)), min_size=20, max_size=30, unique=True)):
        made = OPERATIONS[name](draw, values)
        if made is None:
            continue
        operands, apply, rounds = made
        try:
            result = apply(*(values[i].tensor for i in operands))
        except (RuntimeError, IndexError, UserWarning):  # torch does not do that with such types or sizes
            continue
        tolerance = rounds(apply, [values[i] for i in operands], result)
        values.append(Value(result, tolerance.nan_to_num(nan=math.inf, posinf=math.inf)))
        steps.append(Step(name, operands, apply, rounds))
    return arguments, steps, values[len(arguments) :]


@pytest.fixture(scope="module", autouse=True)
def quick_compiler():
    """Fewer optimizations, but in the nightly profile."""
    flags = compiler.FLAGS
    if settings.get_current_profile_name() != "nightly":
        compiler.FLAGS = ["-O1" if flag == "-O2" else flag for flag in flags]
    yield
    compiler.FLAGS = flags


@pytest.mark.slow
@settings(suppress_health_check=list(HealthCheck))
@given(functions())
def test_a_random_function_is_what_torch_computes(function):
    arguments, steps, values = function

    def compute(*given):
        results = list(given)
        for step in steps:
            results.append(step.apply(*(results[i] for i in step.operands)))
        return tuple(results[len(given) :])

    given = [value.tensor.clone() for value in arguments]
    outputs = compile_function(compute, given)(*given)
    for step, value, output in zip(steps, values, outputs, strict=True):
        expected, actual = value.tensor.double(), output.double()
        assert (output.dtype, output.shape) == (value.tensor.dtype, value.tensor.shape), step
        if not value.tensor.is_floating_point():
            assert torch.equal(output, value.tensor), f"{step}: {output} instead of {value.tensor}"
            continue
        right = (actual == expected) | (actual.isnan() & expected.isnan()) | value.tolerance.isinf()
        right |= (actual - expected).abs() <= value.tolerance
        assert right.all(), f"{step}: {actual[~right]} instead of {expected[~right]} +- {value.tolerance[~right]}"
