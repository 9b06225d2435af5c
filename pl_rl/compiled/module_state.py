"""State of a module that a compiled function depends on: parameters, buffers, attributes, mode, hooks.

A compiled function was traced from a module once. Parameters and buffers are its arguments and may change; all other
state was compiled in as constants, so a change of it has to be noticed.
"""

import copy
from collections import deque
from collections.abc import Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.module import _has_any_global_hook

from pl_rl.errors import CompilationError

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
CONTAINERS = (dict, list, set, deque)
# Their attributes are not watched: code, and what nobody changes.
OPAQUE = (Tensor, gym.Space, type, ModuleType, FunctionType, MethodType, BuiltinFunctionType)
DEPTH = 4
# Their classes are not watched.
LIBRARIES = ("abc", "builtins", "collections", "enum", "functools", "numpy", "torch", "typing")


class Place:
    """Where a module keeps a parameter or a buffer, with the shape, type and device that it was compiled for.

    Attributes:
        name: Dotted.
        tensor: The original one.
    """

    def __init__(self, name: str, holder: dict[str, Any], key: str) -> None:
        self.name = name
        self._holder, self._key = holder, key
        self.tensor: Tensor = holder[key]
        self._form = (self.tensor.shape, self.tensor.dtype, self.tensor.device)

    @property
    def fits(self) -> bool:
        """Whether the current tensor can be an argument in the place of the original one."""
        tensor = self._holder.get(self._key)
        return (
            tensor is not None and tensor.is_contiguous() and (tensor.shape, tensor.dtype, tensor.device) == self._form
        )

    def current(self) -> Tensor:
        """The current tensor, without its gradient.

        Raises:
            CompilationError: If it does not fit.
        """
        if not self.fits:
            raise CompilationError(f"{self.name} has another shape or type than it was compiled for")
        tensor: Tensor = self._holder[self._key].detach()
        return tensor

    @property
    def is_original(self) -> bool:
        """Whether the original tensor is still there, whatever its values."""
        return self._holder.get(self._key) is self.tensor


def places_of(module: nn.Module) -> list[Place]:
    """A module's parameters and buffers.

    Raises:
        CompilationError: If one is not contiguous.
    """
    places = []
    for full_name, _ in [*module.named_parameters(), *module.named_buffers()]:
        prefix, _, name = full_name.rpartition(".")
        part: Any = module.get_submodule(prefix)
        place = Place(full_name, part._parameters if name in part._parameters else part._buffers, name)
        if not place.fits:
            raise CompilationError(f"{full_name} is not contiguous, as after t() or in channels_last")
        places.append(place)
    return places


def call_with(module: nn.Module, state: Mapping[str, Tensor], arguments: tuple[Any, ...]) -> Any:
    """``functional_call``: a module's results with other parameters and buffers.

    Raises:
        CompilationError: If the module replaces one of them as it runs, which would be lost.
    """
    given = dict(state)
    results = functional_call(module, given, arguments)
    for name, tensor in state.items():
        if given[name] is not tensor:
            raise CompilationError(f"it replaces {name} as it runs")
    return results


class ModuleWatch:
    """Notices a change of a module that was compiled in: of numbers, flags, arrays, layers, classes or hooks.

    Values of tensors may change, and buffers may be replaced. It compares references, which takes microseconds.

    Args:
        module: Watched with its submodules and their attributes.
    """

    def __init__(self, module: nn.Module) -> None:
        self._names: list[str] = []
        self._live: list[Any] = []
        self._recorded: list[Any] = []
        self._arrays: list[tuple[str, Any, bytes]] = []
        self._seen: set[int] = set()
        self._note("", module, 0)

    def change(self) -> str | None:
        """What has changed, in words; ``None`` if nothing."""
        if not _same(self._live, self._recorded):
            for name, live, recorded in zip(self._names, self._live, self._recorded, strict=True):
                if not _same(live, recorded):
                    return f"{_which(name, live, recorded)} has changed"
        for name, array, content in self._arrays:
            if array.tobytes() != content:
                return f"{name} has changed"
        return None

    def undo(self) -> None:
        """Restore everything but the contents of arrays."""
        for live, recorded in zip(self._live, self._recorded, strict=True):
            if isinstance(live, CONTAINERS) and not _same(live, recorded):
                live.clear()
                live.extend(recorded) if isinstance(live, list | deque) else live.update(recorded)

    def _note(self, name: str, value: Any, depth: int) -> None:
        if id(value) in self._seen or isinstance(value, OPAQUE) or depth > DEPTH:
            return
        self._seen.add(id(value))
        if isinstance(value, np.ndarray):
            self._arrays.append((name, value, value.tobytes()))
        elif isinstance(value, CONTAINERS):
            self._record(name, value, copy.copy(value))
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for key, item in items:
                self._note(f"{name}[{key!r}]", item, depth + 1)
        elif isinstance(value, tuple):
            for key, item in enumerate(value):
                self._note(f"{name}[{key}]", item, depth + 1)
        elif hasattr(value, "__dict__"):
            self._note_attributes(name, value, 0 if isinstance(value, nn.Module) else depth)
            for cls in type(value).__mro__:
                if id(cls) not in self._seen and cls.__module__.partition(".")[0] not in LIBRARIES:
                    self._seen.add(id(cls))
                    self._record(cls.__name__, vars(cls), dict(vars(cls)))
                    for key, item in vars(cls).items():
                        self._note(f"{cls.__name__}.{key}", item, depth + 1)

    def _note_attributes(self, name: str, owner: Any, depth: int) -> None:
        attributes = vars(owner)
        self._record(name, attributes, dict(attributes))
        for key, item in attributes.items():
            full_name = f"{name}.{key}" if name else key
            if isinstance(owner, nn.Module) and key == "_buffers":
                self._record(full_name, item.keys(), set(item))
            elif isinstance(owner, nn.Module) and key == "_modules":
                self._record(full_name, item, dict(item))
                for child, module in item.items():
                    self._note(f"{name}.{child}" if name else child, module, 0)
            elif "state_dict" not in key:  # hooks of saving and loading
                self._note(full_name, item, depth + 1)

    def _record(self, name: str, live: Any, recorded: Any) -> None:
        self._names.append(name)
        self._live.append(live)
        self._recorded.append(recorded)


def find_hook(module: nn.Module) -> str | None:
    """Where a module has a hook, in words: it would run when the module is traced and never again."""
    if _has_any_global_hook():
        return "all modules have a hook"
    for name, part in module.named_modules():
        if any(getattr(part, hooks) for hooks in HOOKS):
            return f"{name or type(part).__name__} has a hook"
    for name, parameter in module.named_parameters():
        if has_hook(parameter):
            return f"{name} has a hook"
    return None


def has_hook(parameter: Tensor) -> bool:
    """Whether a parameter has a hook on its gradient."""
    return bool(parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None))


def _same(live: Any, recorded: Any) -> bool:
    try:
        return bool(live == recorded)
    except Exception:  # arrays and tensors that replaced others do not compare as one truth
        return False


def _which(name: str, live: Any, recorded: Any) -> str:
    """The name of what differs within a container."""
    if isinstance(live, Mapping) and isinstance(recorded, dict):
        missing = object()
        for key in [*recorded, *live]:
            if not _same([live.get(key, missing)], [recorded.get(key, missing)]):
                return f"{name}.{key}" if name else str(key)
    return name
