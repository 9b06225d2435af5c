"""Traces that tests share: in a process, the same function of the same modules and layouts is traced once.

Tracing takes a second or two, most of the time of a short compiled run. What is traced depends on code, which a test
process does not change, on the attributes of modules, and on the layouts of tensors; all of them are in the key. That
a process of its own traces the same is what the tests of ``verify`` are for.
"""

import types
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from pl_rl.compiled.function import Compiled

PLAIN = (type(None), bool, int, float, complex, str, bytes, type, torch.dtype, torch.device, np.dtype)
# What they have is not traced.
OPAQUE = (torch.Generator, np.random.Generator, torch.optim.Optimizer, Compiled)


class Unknown(Exception):
    """An object of which nobody says what it has."""


class Traces:
    """As the function that it calls for what it does not have.

    Args:
        trace: ``pl_rl.compiled.tracing.trace``.
    """

    def __init__(self, trace: Callable[..., fx.GraphModule]) -> None:
        self.trace = trace
        self._kept: dict[Any, fx.GraphModule] = {}

    def __call__(self, function: Callable[..., Sequence[Tensor]], example: Sequence[Tensor]) -> fx.GraphModule:
        try:
            asked = describe(function), describe(example), torch.is_grad_enabled(), torch.get_default_dtype()
        except Unknown:
            return self.trace(function, example)
        if asked not in self._kept:
            self._kept[asked] = self.trace(function, example)
        return self._kept[asked]


def describe(value: Any, of_values: bool = False, above: tuple[int, ...] = ()) -> Any:
    """What decides on a trace, hashable.

    Args:
        value: Any object.
        of_values: Whether numbers in tensors count, as they do where a module has them beside its parameters.
        above: What the object was found in.

    Raises:
        Unknown: If it is of a type of neither torch nor the project.
    """
    if isinstance(value, PLAIN):
        return type(value), value
    if isinstance(value, OPAQUE):
        return type(value)
    if id(value) in above:
        return "above", above.index(id(value))
    inner = partial(describe, of_values=of_values, above=(*above, id(value)))
    if isinstance(value, Tensor):
        layout = type(value), tuple(value.shape), value.stride(), value.dtype, value.requires_grad
        return (layout, value.detach().numpy().tobytes()) if of_values else layout
    if isinstance(value, np.ndarray | np.generic):
        return type(value), value.shape, value.dtype.str, value.tobytes()
    if isinstance(value, Mapping):
        return type(value), tuple((inner(key), inner(each)) for key, each in value.items())
    if isinstance(value, Sequence):
        return type(value), tuple(inner(each) for each in value)
    if isinstance(value, AbstractSet):
        return type(value), frozenset(inner(each) for each in value)
    if isinstance(value, partial):
        return partial, inner(value.func), inner(value.args), inner(value.keywords)
    if isinstance(value, types.MethodType):
        return types.MethodType, value.__func__, inner(value.__self__)
    if isinstance(value, types.FunctionType):
        return value, inner([cell.cell_contents for cell in value.__closure__ or ()])
    if isinstance(value, types.BuiltinFunctionType):
        return value
    if type(value).__module__.partition(".")[0] not in ("torch", "pl_rl", "tests", "gymnasium"):
        raise Unknown
    return type(value), _attributes(value, inner)


def _attributes(value: Any, inner: Callable[..., Any]) -> Any:
    attributes = getattr(value, "__dict__", {}) | {
        name: getattr(value, name)
        for base in type(value).__mro__
        for name in getattr(base, "__slots__", ())
        if hasattr(value, name)
    }
    if not isinstance(value, nn.Module):
        return inner(attributes)
    layouts = {name: attributes.pop(name) for name in ("_parameters", "_buffers")}
    modules = attributes.pop("_modules")
    return inner(layouts, of_values=False), inner(modules), inner(attributes, of_values=True)
