"""The supported ATen operations, and the C++ that each becomes."""

import torch

from pl_rl.compiled.generator.convolutions import CONVOLUTIONS

aten = torch.ops.aten

# Pointwise operations as templates. Operands are first converted to the result's type (AS_RESULT), or to the type that
# all of them are promoted to (AS_COMMON).
AS_RESULT = {
    aten.add.Tensor: "({0} + {1})",
    aten.add.Scalar: "({0} + {1})",
    aten.sub.Tensor: "({0} - {1})",
    aten.sub.Scalar: "({0} - {1})",
    aten.mul.Tensor: "({0} * {1})",
    aten.mul.Scalar: "({0} * {1})",
    aten.div.Tensor: "({0} / {1})",
    aten.div.Scalar: "({0} / {1})",
    aten.neg.default: "(-{0})",
    aten.abs.default: "absolute({0})",
    aten.sign.default: "sign({0})",
    aten.exp.default: "exp_of({0})",
    aten.expm1.default: "expm1_of({0})",
    aten.log.default: "log_of({0})",
    aten.log1p.default: "__builtin_log1pf({0})",
    aten.tanh.default: "tanh_of({0})",
    aten.sigmoid.default: "sigmoid_of({0})",
    aten.relu.default: "relu({0})",
    aten.erf.default: "__builtin_erff({0})",
    aten.sin.default: "__builtin_sinf({0})",
    aten.cos.default: "__builtin_cosf({0})",
    aten.sqrt.default: "__builtin_sqrtf({0})",
    aten.rsqrt.default: "(1.f / __builtin_sqrtf({0}))",
    aten.reciprocal.default: "(1.f / {0})",
    aten.floor.default: "__builtin_floorf({0})",
    aten.maximum.default: "maximum({0}, {1})",
    aten.minimum.default: "minimum({0}, {1})",
    aten.clone.default: "{0}",
    aten._to_copy.default: "{0}",
    aten.lift_fresh_copy.default: "{0}",
}
AS_COMMON = {
    aten.eq: "({0} == {1})",
    aten.ne: "({0} != {1})",
    aten.lt: "({0} < {1})",
    aten.le: "({0} <= {1})",
    aten.gt: "({0} > {1})",
    aten.ge: "({0} >= {1})",
    aten.logical_and: "({0} && {1})",
    aten.logical_or: "({0} || {1})",
    aten.logical_not: "(!{0})",
    aten.bitwise_and: "({0} & {1})",
    aten.bitwise_or: "({0} | {1})",
}
CONSTANTS = {
    aten.full.default: 1,
    aten.full_like.default: 1,
    aten.scalar_tensor.default: 0,
}
"""Tensors filled with one number, and which argument that is."""
POWERS = {
    1: "{0}",
    2: "square({0})",
    3: "({0} * square({0}))",
    0.5: "__builtin_sqrtf({0})",
    -1: "(1.f / {0})",
}
CLAMPS = {aten.clamp.default, aten.clamp.Tensor}
WRAPPING = {
    *(aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar, aten.mul.Tensor, aten.mul.Scalar),
    aten.neg.default,
}
"""Operations in which integers may overflow: undefined in C++ for signed ones, so they are computed unsigned."""
WHOLE = {torch.int64, torch.int32}
SMALL = {torch.uint8, torch.bool}
"""Types that C++ promotes to ``int``, so that results are converted back."""
SUMS = {aten.sum.default, aten.sum.dim_IntList, aten.mean.default, aten.mean.dim}
EXTREMES = {aten.amax.default: "maximum", aten.amin.default: "minimum"}
PRODUCTS = {aten.mm.default, aten.addmm.default, aten.bmm.default}
ELEMENTWISE = {
    *AS_RESULT,
    *(getattr(packet, name) for packet in AS_COMMON for name in packet.overloads() if "out" not in name),
    aten.where.self,
    *CLAMPS,
    aten.pow.Tensor_Scalar,
    aten.gather.default,
}
PIECES = {
    *(aten.argmax.default, aten.var.correction, aten.cat.default, aten.slice_scatter.default),
    *(aten.select_scatter.default, aten.scatter.src, aten.scatter.value, aten.scatter_add.default),
}
ELEMENT_READERS = {*ELEMENTWISE, *SUMS, *EXTREMES, *PIECES, *CONVOLUTIONS} - {aten.gather.default}
"""Operations that read their operands element by element, so that a producer can be fused into them."""
