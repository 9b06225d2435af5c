"""What plain data must look like, written down as data.

A schema is a function of a value and the name of its place. It raises :class:`Misfit` for the first value that does not
fit. The functions here make schemas of smaller ones.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Schema = Callable[[Any, str], None]

LARGEST = 2**63 - 1
_NUMPY_HAS = frozenset(
    (torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32,
     torch.int64, torch.float16, torch.float32, torch.float64)
)  # fmt: skip


class Misfit(ValueError):
    """A value that is not what its place is for; the message says which, what it is, and what it should be."""

    def __init__(self, place: str, value: Any, wanted: str) -> None:
        super().__init__(f"{place or 'its content'} is {_in_words(value)}, and should be {wanted}")


def whole(low: int = 0, high: int = LARGEST) -> Schema:
    """A whole number in this range; truth values are none."""
    return that(lambda value: _is_whole(value) and low <= value <= high, f"a whole number from {low:,} to {high:,}")


def number(low: float = -float("inf"), high: float = float("inf")) -> Schema:
    """A number in this range; one that is not a number (NaN) only if nothing limits it."""
    unlimited = (low, high) == (-float("inf"), float("inf"))

    def fits(value: Any) -> bool:
        if not isinstance(value, float) and not (_is_whole(value) and abs(value) <= LARGEST):
            return False
        return unlimited or low <= value <= high

    return that(fits, "a number" if unlimited else f"a number from {low:g} to {high:g}")


def that(fits: Callable[[Any], bool], wanted: str) -> Schema:
    """A value for which a function says yes; one over which it fails does not fit."""

    def check(value: Any, place: str) -> None:
        try:
            fine = fits(value)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            fine = False
        if not fine:
            raise Misfit(place, value, wanted)

    return check


def maybe(schema: Schema) -> Schema:
    """``None``, or a value of this schema."""

    def check(value: Any, place: str) -> None:
        if value is not None:
            schema(value, place)

    return check


def real(low: float, high: float, wanted: str) -> Schema:
    """A number in this range, or a tensor of one."""
    return that(
        lambda value: isinstance(value, int | float | Tensor) and low <= float(value) <= high,
        f"{wanted} from {low:g} to {high:g}",
    )


def record(
    needed: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None, others: Schema | None = None
) -> Schema:
    """A dictionary with these entries; others may be there, of plain data or another schema, by names of text."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, dict):
            raise Misfit(place, value, "a dictionary")
        for name in needed:
            if name not in value:
                raise Misfit(_inside(place, name), None, "there")
        known = {**(optional or {}), **needed}
        for name, item in value.items():
            TEXT(name, f"a name in {place or 'the file'}")
            known.get(name, others or PLAIN)(item, _inside(place, name))

    return check


def mapping(items: Schema, names: Schema | None = None) -> Schema:
    """A dictionary whose values are all of one schema, and whose keys are text or of another."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, dict):
            raise Misfit(place, value, "a dictionary")
        for name, item in value.items():
            (names or TEXT)(name, f"a name in {place or 'the file'}")
            items(item, _inside(place, name))

    return check


def sequence(items: Schema) -> Schema:
    """A list or tuple whose items are all of one schema."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, list | tuple):
            raise Misfit(place, value, "a list")
        for number, item in enumerate(value):
            items(item, f"{place}[{number}]")

    return check


def fields(*items: Schema) -> Schema:
    """A tuple or list of just these items."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, list | tuple) or len(value) != len(items):
            raise Misfit(place, value, f"a tuple of {len(items)}")
        for number, (schema, item) in enumerate(zip(items, value, strict=True)):
            schema(item, f"{place}[{number}]")

    return check


def array(*dtypes: torch.dtype, ndim: int | None = None) -> Schema:
    """A tensor that NumPy can have, of these types and this many dimensions where they are given."""
    kind = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes) or "numbers"

    def fits(value: Any) -> bool:
        plain = isinstance(value, Tensor) and value.layout is torch.strided and not value.requires_grad
        return plain and not value.is_neg() and value.dtype in (dtypes or _NUMPY_HAS) and ndim in (None, value.ndim)

    return that(fits, f"a tensor of {kind}" + ("" if ndim is None else f" with {ndim} dimensions"))


def rows() -> Schema:
    """A tensor that NumPy can have, with at least one dimension."""

    def check(value: Any, place: str) -> None:
        array()(value, place)
        if value.ndim == 0:
            raise Misfit(place, value, "a tensor with rows")

    return check


def like(template: Any) -> Schema:
    """A value of the same kind: dictionaries and tuples of the same entries, numbers for numbers, and so on."""
    if isinstance(template, bool):
        return BOOL
    if isinstance(template, int | float):
        return number(-1e300, 1e300)
    if isinstance(template, dict):
        return record({name: like(value) for name, value in template.items()})
    if isinstance(template, tuple | list):
        return fields(*map(like, template))
    if isinstance(template, Tensor):
        return that(lambda value: isinstance(value, Tensor) and value.shape == template.shape, _in_words(template))
    return PLAIN


def _plain(value: Any, place: str) -> None:
    """Whatever can be written down; how large and deep it is was checked when the file was opened."""
    if isinstance(value, dict):
        for name, item in value.items():
            _plain(item, _inside(place, name))
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            _plain(item, place)
    elif _is_whole(value) and abs(value) >= 2**256:
        raise Misfit(place, value, "a number of fewer digits")


def _setting(value: Any, place: str) -> None:
    if isinstance(value, dict):
        mapping(_setting)(value, place)
    elif isinstance(value, list | tuple):
        sequence(_setting)(value, place)
    elif value is not None and not isinstance(value, bool | str | float):
        whole(-LARGEST, 2 * LARGEST)(value, place)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _inside(place: str, name: Any) -> str:
    return f"{place}.{name}" if place else str(name)


def _in_words(value: Any) -> str:
    if value is None:
        return "absent or null"
    if _is_whole(value) and abs(value) >= 2**256:
        return "a number of very many digits"
    if isinstance(value, bool | int | float | str):
        return repr(value)[:60]
    if isinstance(value, Tensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')} and shape {tuple(value.shape)}"
    size = f" of {len(value):,}" if hasattr(value, "__len__") else ""
    return f"a {type(value).__name__}{size}"


TEXT = that(lambda value: isinstance(value, str), "text")
BOOL = that(lambda value: isinstance(value, bool), "true or false")
PLAIN: Schema = _plain
SETTING: Schema = _setting
"""What a configuration can say: text, numbers, and lists and dictionaries of them."""
