"""Operations as machine code: what torch computes, for each kind of operation, layout and shape."""

import platform
import re
import textwrap

import gymnasium as gym
import pytest
import torch
from torch import nn
from torch.nn import functional as nnf

from pl_rl.compiled import compiler, tracing
from pl_rl.compiled import generator as codegen
from pl_rl.compiled.function import compile_function
from pl_rl.compiled.generator import graphs, operations
from pl_rl.errors import CompilationError

ROWS = torch.linspace(-3, 3, 15).view(3, 5)
SQUARE = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
CHOICES = torch.tensor([[0, 4], [3, 3], [1, 2]])
MASK = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
CELL = [torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))) for shape in [(3, 2), (3, 2), (8, 5)]]
CELL += [torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in [(8, 2), (8,), (8,)]]


def gradient_of(function, x):
    """Of a sum, so that backward operations are compiled too."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(function(x).float().square().sum(), x)[0]


def masked(x, mask):
    return x.masked_fill(mask == 0, torch.finfo(x.dtype).min)


def cells(x, hidden, inner, *weights):
    """Two steps of an LSTM and of a GRU, which has three gates of an LSTM's four."""
    of_gru = [weight[:6] for weight in weights]
    hidden, inner = torch.lstm_cell(x, torch.lstm_cell(x, (hidden, inner), *weights), *weights)
    return hidden, inner, torch.gru_cell(x, torch.gru_cell(x, hidden, *of_gru), *of_gru)


FUNCTIONS = {
    "activations": (lambda x: (nnf.elu(x), nnf.silu(x), nnf.gelu(x), nnf.leaky_relu(x), x.sigmoid(), x.tanh()), [ROWS]),
    "their gradients": (
        lambda x: [gradient_of(f, x) for f in (nnf.elu, nnf.silu, nnf.gelu, torch.tanh, nnf.softplus)],
        [ROWS],
    ),
    "powers": (lambda x: (x**2, x**3, x.abs() ** 0.5, x.abs() ** 1.7, 1 / (x + 9), x.square()), [ROWS]),
    "integers": (lambda x: (x + 1, x * 2.5, x.float() / 2, x.abs().sum()), [CHOICES]),
    "comparisons": (lambda x: (x > 0, (x >= 0.5) | (x != x), torch.where(x > 0, x, -2 * x), x.sign()), [ROWS]),
    "sums": (lambda x: (x.sum(), x.sum(0), x.sum(1), x.mean(1, keepdim=True), x.t().sum(0), x.amax(1)), [ROWS]),
    "extremes": (
        lambda x: (x.argmax(-1), x.t().argmax(0, keepdim=True), x.amin(0), x.clamp(-1), x.clamp(max=1)),
        [ROWS],
    ),
    "variances": (lambda x: (x.var(0), x.std(1, unbiased=False), nnf.layer_norm(x, (5,))), [ROWS]),
    "softmax": (lambda x: (x.softmax(1), x.log_softmax(0), gradient_of(lambda y: y.log_softmax(1), x)), [ROWS]),
    "views": (lambda x: (x.t().reshape(-1), x[1:, ::2] + 1, x[:, 1], x.unfold(1, 2, 3).sum(-1)), [ROWS]),
    "gradients of views": (lambda x: [gradient_of(lambda y: y[1:, 2:4], x), gradient_of(lambda y: y[:, 1], x)], [ROWS]),
    "pieces": (lambda x: (torch.cat([x, 2 * x], 1), torch.stack([x, -x]), *x.split([2, 3], 1)), [ROWS]),
    "choices": (
        lambda x, i: (x.gather(1, i), gradient_of(lambda y: y.gather(1, i), x), x.scatter(1, i[:, :1], 7.0)),
        [ROWS, CHOICES],
    ),
    "masks": (
        lambda x, mask: (
            *(masked(x, mask), masked(x, mask).log_softmax(1), (masked(x, mask) + x).argmax(1)),
            gradient_of(lambda y: masked(y, mask).softmax(1), x),
        ),
        [ROWS, MASK],
    ),
    "one-hot": (
        lambda i, of, w: (torch.cat([choice == of for choice in i.split(1, -1)], -1).float() @ w, (i == 3).long()),
        [CHOICES, torch.arange(5), torch.randn(10, 3, generator=torch.Generator().manual_seed(0))],
    ),
    "cells": (
        lambda x, *state: (*cells(x, *state), gradient_of(lambda y: torch.cat(cells(y, *state), 1), x)),
        [ROWS, *CELL],
    ),
    "constants": (lambda x: (x + torch.tensor([1.0, torch.inf, -1.0, 0.1, 2.0]), torch.full((2,), 3), x * 0.1), [ROWS]),
    "broadcasting": (lambda x: (x[:, :1] * x[:1] + x.sum(), x.expand(2, 3, 5) - x[0], x.t() + x.t()), [ROWS]),
    "batches of products": (lambda x: (torch.bmm(x.expand(2, 4, 4), x.t().expand(2, 4, 4)), x @ x[0]), [SQUARE]),
    "the same twice": (lambda x: (x.exp() * x.exp(), x, x, x.t()), [ROWS]),
    "edges": (
        lambda x: (x.exp(), x.log(), x.tanh(), x.relu(), x.clamp(-1, 1), torch.maximum(x, -x), x.expm1()),
        [torch.tensor([0.0, -0.0, 1e-30, -1e-6, 100.0, -100.0, torch.inf, -torch.inf, torch.nan])],
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_compiled_function_is_what_torch_computes(name):
    function, inputs = FUNCTIONS[name]
    outputs = compile_function(lambda *arguments: tuple(function(*arguments)), inputs)(*inputs)
    for output, expected in zip(outputs, function(*inputs), strict=True):
        torch.testing.assert_close(output, expected, rtol=2e-6, atol=1e-6, equal_nan=True, check_stride=False)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (8, 2, 3), (15, 33, 17), (64, 128, 300), (100, 1, 513), (3, 70, 31)])
def test_products_of_all_shapes_and_layouts(sizes):
    m, n, k = sizes
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(shape, generator=generator) for shape in [(m, k), (k, n)])
    left_by_columns, right_by_columns = left.t().contiguous(), right.t().contiguous()
    bias = torch.randn(n, generator=generator)

    def products(a, b, a_by_columns, b_by_columns, c):
        return (
            a @ b,
            torch.addmm(c, a, b_by_columns.t()),
            a_by_columns.t() @ b,
            torch.addmm(c, a_by_columns.t(), b_by_columns.t()),
        )

    inputs = [left, right, left_by_columns, right_by_columns, bias]
    exact = left.double() @ right.double()
    for output, added in zip(compile_function(products, inputs)(*inputs), [0, bias, 0, bias], strict=True):
        torch.testing.assert_close(output.double(), exact + added, rtol=1e-5, atol=1e-5 * k**0.5)


def test_few_long_rows_by_long_columns():
    generator = torch.Generator().manual_seed(0)
    for m, n, k in [(1, 6, 512), (5, 7, 1003), (8, 1, 513), (8, 16, 3136)]:
        left, right = (torch.randn(shape, generator=generator) for shape in [(m, k), (n, k)])
        bias = torch.randn(n, generator=generator)
        products = compile_function(lambda a, b, c: (a @ b.t(), torch.addmm(c, a, b.t())), [left, right, bias])
        exact = left.double() @ right.t().double()
        for output, added in zip(products(left, right, bias), [0, bias], strict=True):
            torch.testing.assert_close(output.double(), exact + added, rtol=1e-5, atol=1e-5 * k**0.5)


# Images, filters, stride, padding.
CONVOLUTIONS = {
    "deep Q-learning, first": ((2, 4, 84, 84), (32, 4, 8, 8), 4, 0),
    "deep Q-learning, second": ((2, 32, 20, 20), (64, 32, 4, 4), 2, 0),
    "deep Q-learning, third": ((3, 64, 9, 9), (64, 64, 3, 3), 1, 0),
    "odd": ((3, 5, 11, 13), (7, 5, 3, 2), (2, 3), (1, 2)),
    "padded": ((2, 16, 12, 10), (20, 16, 5, 5), 2, 2),
    "a single pixel": ((4, 3, 6, 6), (33, 3, 6, 6), 1, 0),
    "1 x 1 filters": ((2, 33, 5, 7), (70, 33, 1, 1), 1, 0),
    "wide lines": ((1, 2, 20, 75), (50, 2, 2, 18), 1, (0, 3)),
    "pixels that are left out": ((2, 3, 11, 12), (4, 3, 2, 2), 4, 0),
    "one of everything": ((1, 1, 5, 6), (1, 1, 2, 3), 1, 0),
    "one channel": ((3, 1, 6, 5), (4, 1, 1, 1), 1, 0),
    "stride beyond the filters": ((2, 3, 8, 9), (5, 3, 1, 2), 3, 1),
}


def check_convolution(name, bias=True):
    images, filters, stride, padding = CONVOLUTIONS[name]
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(images, generator=generator), torch.randn(filters, generator=generator)]
    inputs += [torch.randn(filters[0], generator=generator)] if bias else []

    def convolve(*given):
        given = [tensor.detach().requires_grad_() for tensor in given]
        output = nnf.conv2d(*given, stride=stride, padding=padding)
        return output.detach(), *torch.autograd.grad(output.square().sum(), given)

    outputs = compile_function(convolve, inputs)(*inputs)
    for output, expected in zip(outputs, convolve(*(tensor.double() for tensor in inputs)), strict=True):
        scale = expected.abs().max()
        torch.testing.assert_close(output / scale, (expected / scale).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_and_their_gradients(name):
    check_convolution(name)


def test_convolutions_without_bias():
    check_convolution("odd", bias=False)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other machines have other names for their vectors")
@pytest.mark.parametrize("machine", ["x86-64", "x86-64-v3"])
@pytest.mark.parametrize("name", ["odd", "padded", "wide lines"])
def test_shorter_vectors(machine, name, monkeypatch):
    flags = [f"-march={machine}" if flag == "-march=native" else flag for flag in compiler.FLAGS]
    monkeypatch.setattr(compiler, "FLAGS", flags)
    check_convolution(name)


@pytest.mark.parametrize("trained", [("images",), ("filters",), ("bias",), ("images", "bias")])
def test_gradients_of_a_convolution_that_nobody_asks_for_are_left_out(trained):
    given = {"images": torch.randn(2, 3, 7, 8), "filters": torch.randn(4, 3, 3, 3), "bias": torch.randn(4)}

    def gradients(images, filters, bias):
        tensors = {"images": images, "filters": filters, "bias": bias}
        tensors = {name: tensor.detach().requires_grad_(name in trained) for name, tensor in tensors.items()}
        output = nnf.conv2d(tensors["images"], tensors["filters"], tensors["bias"], padding=1).tanh()
        return torch.autograd.grad(output.square().sum(), [tensors[name] for name in trained])

    inputs = list(given.values())
    for output, expected in zip(compile_function(gradients, inputs)(*inputs), gradients(*inputs), strict=True):
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


def test_images_of_all_layouts_and_types():
    """Bytes, channels last, views; elements that become part of a convolution, those that others read too."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 9, 8, 3), generator=generator, dtype=torch.uint8)
    weight = torch.randn(4, 3, 3, 3, generator=generator)

    def convolve(pixels, weight):
        weight = weight.detach().requires_grad_()
        images = (pixels.float() / 255).permute(0, 3, 1, 2)
        first = nnf.conv2d(images, weight)
        again = nnf.conv2d(images[:, :, 1:, ::2], weight, stride=2)
        loss = first.relu().flatten(1).sum(1).mean() + again.sum() + (first * images.sum()).mean()
        return torch.autograd.grad(loss, weight)[0], first.detach(), again.detach().flatten(1)

    inputs = [pixels, weight]
    for output, expected in zip(compile_function(convolve, inputs)(*inputs), convolve(*inputs), strict=True):
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4, check_stride=False)


def test_elementary_functions_are_exact_to_the_last_bits():
    x = torch.linspace(-87, 88, 100_003)
    inputs = [x, x.exp(), x / 87, torch.linspace(-1e-3, 1e-3, 1001)]

    def functions(x, positive, small, tiny):
        return x.exp(), positive.log(), small.tanh(), tiny.tanh(), tiny.expm1()

    exact = functions(*(tensor.double() for tensor in inputs))
    for output, expected in zip(compile_function(functions, inputs)(*inputs), exact, strict=True):
        error = (output - expected).abs() / expected.abs().clamp(min=1e-37)
        assert error.max() < 4 * 2**-24


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: (nnf.conv1d(x.view(1, 3, 5), torch.ones(1, 3, 2)),), r"aten.convolution.default with dimensions=1"),
        (lambda x: (nnf.conv2d(x.view(1, 1, 3, 5), x[:2, :2].reshape(1, 1, 2, 2), dilation=2),), "with dilation=2"),
        (lambda x: (nnf.conv2d(x.view(1, 3, 1, 5), x.view(3, 1, 1, 5), groups=3),), "with groups=3"),
        (lambda x: (nnf.conv_transpose2d(x.view(1, 1, 3, 5), x.view(1, 1, 3, 5)),), "with transposed=True"),
        (lambda x: (x.double() + 1,), "computes in torch.float64"),
        (lambda x: (x.sort()[0],), "aten.sort.default"),
    ],
)
def test_what_it_is_not_made_for_is_named(function, reason):
    with pytest.raises(CompilationError, match=reason):
        compile_function(function, [ROWS])


def test_layers_that_networks_are_made_of():
    torch.manual_seed(0)
    space = gym.spaces.Box(-1, 1, (6,))
    network = nn.Sequential(
        nn.Linear(space.shape[0], 8), nn.LayerNorm(8), nn.GELU(), nn.Unflatten(1, (2, 4)), nn.Flatten()
    )
    parameters = list(network.parameters())
    names = [name for name, _ in network.named_parameters()]

    def gradients(obs, *values):
        values = [value.detach().requires_grad_() for value in values]
        outputs = torch.func.functional_call(network, dict(zip(names, values, strict=True)), obs)
        return *torch.autograd.grad(outputs.square().mean(), values), outputs.detach()

    inputs = [torch.randn(16, 6), *(parameter.detach() for parameter in parameters)]
    for output, expected in zip(compile_function(gradients, inputs)(*inputs), gradients(*inputs), strict=True):
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-6)


def test_numbers_at_the_edges_of_their_types():
    """Past 2^127, whole numbers of more than 24 bits, bytes below zero: what torch computes, digit by digit."""
    high = torch.linspace(88.2, 88.72, 301)
    whole = torch.tensor([2**53 + 1, -(2**62) - 1, 2**24 + 1, -3, 0])
    numbers = torch.tensor([-1.5, -300.0, 300.0, 255.9, -0.5, 1e10, 1e30, torch.nan, torch.inf, -0.0])

    def functions(high, whole, numbers, byte):
        return (
            *(high.expm1(), whole.relu(), whole.sign(), whole**4, whole**5, whole.abs(), whole.amax(), whole.amin()),
            *(numbers.to(torch.uint8), numbers.int(), numbers.long(), numbers.bool(), 1 / numbers.abs()),
            *((byte + byte).float(), -byte > 5, byte * byte, (byte + 3).long()),
        )

    inputs = [high, whole, numbers, torch.tensor([1, 200, 255, 16], dtype=torch.uint8)]
    outputs = compile_function(functions, inputs)(*inputs)
    for place, (output, expected) in enumerate(zip(outputs, functions(*inputs), strict=True)):
        torch.testing.assert_close(
            output, expected, rtol=1e-6, atol=0, equal_nan=True, msg=lambda text, place=place: f"{place}: {text}"
        )


def test_whole_numbers_wrap_around_as_in_torch():
    """C++ takes it that they do not, and so that x + 1 is larger than x."""
    whole = torch.tensor([2**63 - 1, -(2**63), 5, 2**62])

    def functions(x, y):
        of_one = [(x + 1 > x, x - 1 < x, -x, x * 3, x**2, x**3, torch.add(x, x, alpha=3), (-x).abs()) for x in (x, y)]
        return *of_one[0], *of_one[1]

    inputs = [whole, torch.tensor([2**31 - 1, -(2**31), 5, 2**30], dtype=torch.int32)]
    for output, expected in zip(compile_function(functions, inputs)(*inputs), functions(*inputs), strict=True):
        assert output.dtype == expected.dtype and torch.equal(output, expected)


def test_bounds_that_are_tensors():
    low, high = ROWS - 1, (-ROWS).clone()
    high[0, 0], low[1, 1] = torch.nan, torch.inf

    def clamps(x, low, high):
        gradient = gradient_of(lambda y: y.clamp(low, high), x)
        return x.clamp(low, high), x.clamp(min=low), x.clamp(max=high), x.clamp(None, high[0]), gradient

    inputs = [ROWS, low, high]
    for output, expected in zip(compile_function(clamps, inputs)(*inputs), clamps(*inputs), strict=True):
        torch.testing.assert_close(output, expected, equal_nan=True)


def test_nothing_to_compute_with():
    """Tensors without elements, and products over nothing."""

    def functions(nothing, bias):
        left, right = nothing.new_ones(3, 4)[:, :0] + 0, nothing.view(0, 2)
        return left @ right, torch.addmm(bias, left, right), nothing.sum(), nothing.mean(), torch.cat([nothing, bias])

    inputs = [torch.empty(0), torch.tensor([1.0, 2.0])]
    for output, expected in zip(compile_function(functions, inputs)(*inputs), functions(*inputs), strict=True):
        torch.testing.assert_close(output, expected, equal_nan=True)


def test_constants_are_what_they_were():
    """GCC 12 copies {1, 1, 1, 0, 0, 0, 0, 0} as eight ones, where it may see that nobody changes it."""
    patterns = [[1] * ones + [0] * (n - ones) for n in (8, 9, 16, 17) for ones in (1, 2, 3, n // 2)]
    outputs = compile_function(
        lambda x: tuple(torch.tensor(p, dtype=d) for p in patterns for d in (torch.int64, torch.float32, torch.int32)),
        [ROWS],
    )(ROWS)
    assert [output.tolist() for output in outputs] == [p for p in patterns for _ in range(3)]


def trace_of(function, *shapes):
    return tracing.trace(lambda *inputs: (function(*inputs),), [torch.ones(shape) for shape in shapes])


def test_the_example_of_the_generator_is_what_it_generates():
    recorded, source = (textwrap.dedent(block) for block in re.findall(r"::\n\n((?: {4}.*\n|\n)+)", graphs.__doc__))
    graph = trace_of(lambda x, w: (x @ w).tanh(), [8, 3], [3, 5])
    x, w, *nodes, _ = graph.graph.nodes
    names = {x: "x", w: "w"}
    lines = [f"{node} = {node.target}({', '.join(names.get(arg, str(arg)) for arg in node.args)})" for node in nodes]
    assert recorded.split("\n") == [*lines, "", ""]
    assert source == codegen.generate(graph).text + "\n"
    fused = codegen.generate(trace_of(lambda x, w: 2 * (x @ w).tanh(), [8, 3], [3, 5])).text
    transposed = codegen.generate(trace_of(lambda x, w: x @ w.t(), [8, 3], [5, 3])).text
    for text, quoted in [(fused, "(tanh_of(b2[i0]) * 0x1.0000000000000p+1f)"), (transposed, "b1 + 0, 1, 3")]:
        assert quoted in text and f"``{quoted}``" in graphs.__doc__
    assert fused.count("for (") == source.count("for (") == 1


def test_all_that_is_written_piece_by_piece_is_known_to_be():
    assert set(graphs.HANDLERS) == operations.PIECES | {torch.ops.aten.convolution.default}
