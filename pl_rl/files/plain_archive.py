"""Opening what ``torch.save`` wrote, when somebody else may have written it to do harm.

Nothing in it is executed (``weights_only=True``), and nothing is taken for more than the file has bytes for: parts that
are compressed or lie over one another, tensors that repeat one number a billion times, lists that hold one another.
"""

import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

MAX_DEPTH = 64
# Of a tree that is unfolded, for each byte of the file. Names and tied weights stand in a file once.
MAX_UNFOLDED = 8
SMALL = 2**20
"""Bytes that a tree may unfold to, however small its file is."""

# What torch.load gives back whatever is in it; there is more that it may give back, some of it by some releases only.
CERTAIN = frozenset({type(None), bool, int, float, str, list, tuple, dict, OrderedDict, Tensor, torch.nn.Parameter})
CERTAIN_DTYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
)
CERTAIN_BITS = 2000  # of a number; longer ones are written otherwise from 2,040 on

# What weights_only=True lets a pickle call that gives more than it was given, as often as it asks.
_COPYING = (b"_codecs\nencode\n", b"__builtin__\nbytearray\n", b"builtins\nbytearray\n")


class NotPlain(ValueError):
    """Why a file is left closed, as the rest of a sentence that begins with its name."""


def load_plain(content: bytes) -> Any:
    """The tensors and plain data in the bytes of a file of ``torch.save``, on the CPU.

    Raises:
        NotPlain: If they claim to be more than the file has bytes for.
        Exception: If it is damaged or holds more than plain data; in as many ways as torch has.
    """
    if content.startswith(b"PK"):
        check_archive(content)
    elif any(name in content for name in _COPYING):  # before torch.save wrote archives
        raise NotPlain("it holds more than tensors and names")
    value = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    check_tree(value, len(content))
    return value


def check_tree(value: Any, size: int | None = None) -> None:
    """Refuse data that unfold to far more than they take.

    Args:
        value: The data.
        size: Of the file that they come from, in bytes; ``None`` means about what they take in memory.

    Raises:
        NotPlain: If they do, nest too deeply, hold themselves, or have tensors without numbers.
    """
    _Measure().check(value, size)


def is_sure_to_load(value: Any, size: int) -> bool:
    """Whether :func:`load_plain` is known to open what ``torch.save`` makes of data, without trying it.

    Trying takes ten times as long, as PyTorch's reader of plain data is written in Python.

    Args:
        value: The data.
        size: Of the file, in bytes.
    """
    measure = _Measure()
    try:
        measure.check(value, size)
    except NotPlain:
        return False
    return measure.certain


def check_archive(content: bytes) -> None:
    """Refuse an archive that is not as ``torch.save`` writes it: parts one after another, none of them compressed.

    Raises:
        NotPlain: If it is another, or its pickle makes copies of what it holds again and again.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = sorted(archive.infolist(), key=lambda part: part.header_offset)
        if any(part.compress_type != zipfile.ZIP_STORED or part.compress_size != part.file_size for part in parts):
            raise NotPlain("its parts are compressed, which torch.save never does")
        ends = [0, *(part.header_offset + part.file_size for part in parts)]
        starts = [*(part.header_offset for part in parts), len(content)]
        # Where the first begins shows that zipfile and torch find the same parts.
        if starts[0] != 0 or any(start < end for start, end in zip(starts, ends, strict=True)):
            raise NotPlain("its parts lie over one another, or something lies before them")
        for part in parts:
            if part.filename.endswith("/data.pkl"):
                _check_pickle(archive.read(part))


class _Measure:
    """How much data are, each object looked at once.

    Attributes:
        storages: Bytes of the tensors' numbers, by where they lie.
        taken: Bytes, roughly, of everything else.
        certain: Whether all of them are of types that torch.load always gives back.
    """

    def __init__(self) -> None:
        self.storages: dict[int, int] = {}
        self.taken = 0
        self.certain = True
        self._known: dict[int, tuple[int, Any]] = {}

    def check(self, value: Any, size: int | None) -> None:
        """See :func:`check_tree`."""
        unfolded = self.unfolded(value, 0)
        stored = sum(self.storages.values())
        if size is None:
            size = stored + self.taken
        most = max(SMALL, MAX_UNFOLDED * size)
        if unfolded > most or stored > size:
            raise NotPlain(f"its {size:,} bytes claim to be more than {most if unfolded > most else size:,}")

    def unfolded(self, value: Any, depth: int) -> int:
        """Bytes, roughly, if everything were written out where it stands.

        Raises:
            NotPlain: As :func:`check_tree`.
        """
        if type(value) not in CERTAIN or (type(value) is int and value.bit_length() > CERTAIN_BITS):
            self.certain = False
        if value is None or isinstance(value, (int, float, complex)):  # a union is made anew each time
            self.taken += 1
            return 1
        if id(value) in self._known:
            return self._known[id(value)][0]
        if depth > MAX_DEPTH:
            raise NotPlain(f"its data nest deeper than {MAX_DEPTH} levels")
        self._known[id(value)] = (2**63, value)  # what holds itself has no end
        total = 1
        if isinstance(value, (str, bytes, bytearray)):
            total += len(value)
            self.taken += len(value)
        elif isinstance(value, Tensor):
            total += self._bytes_of(value)
        elif isinstance(value, dict):
            total += sum(self.unfolded(part, depth + 1) for item in value.items() for part in item)
            if attributes := getattr(value, "__dict__", None):  # as of a module's state
                total += self.unfolded(attributes, depth + 1)
        elif isinstance(value, (list, tuple, set, frozenset)):
            total += sum(self.unfolded(item, depth + 1) for item in value)
        self.taken += 1
        self._known[id(value)] = (total, value)
        return total

    def _bytes_of(self, tensor: Tensor) -> int:
        if tensor.is_meta:
            raise NotPlain("it has a tensor without numbers (on the meta device)")
        if tensor.layout is torch.strided and not tensor.is_nested:
            storage = tensor.untyped_storage()
            self.storages[storage.data_ptr()] = storage.nbytes()
        if not (tensor.layout is torch.strided and tensor.device.type in ("cpu", "cuda")):
            self.certain = False
        if tensor.dtype not in CERTAIN_DTYPES or tensor.is_neg() or vars(tensor):
            self.certain = False
        return tensor.numel() * tensor.element_size()


def _check_pickle(program: bytes) -> None:
    """Refuse a pickle that can make many large copies of one text."""
    if not any(name in program for name in _COPYING):
        return
    longest = calls = 0
    try:
        for opcode, argument, _ in pickletools.genops(program):
            calls += opcode.name == "REDUCE"
            longest = max(longest, len(argument) if isinstance(argument, str | bytes) else 0)
    except ValueError as error:
        raise pickle.UnpicklingError(str(error)) from error
    if longest * calls > max(SMALL, 64 * len(program)):
        raise NotPlain(f"its data could be made {calls:,} copies of {longest:,} bytes")
