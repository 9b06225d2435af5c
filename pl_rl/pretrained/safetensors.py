"""Tensors in the safetensors format, https://huggingface.co/docs/safetensors; the library is optional."""

import json
import struct
from collections.abc import Mapping

from torch import Tensor

from pl_rl.errors import UsageError, installation
from pl_rl.pretrained.policy_weights import Unreadable


def recognize(data: bytes) -> bool:
    """Whether a JSON header of the stated length comes first."""
    if len(data) < 10:
        return False
    (header_size,) = struct.unpack("<Q", data[:8])
    return data[8:9] == b"{" and 2 <= header_size <= len(data) - 8


def load(data: bytes) -> dict[str, Tensor]:
    """The tensors by name, in the order of their names, as the library gives them in no certain order.

    Raises:
        Unreadable: If the library is not installed, or the file is damaged.
    """
    try:
        from safetensors.torch import load as load_tensors
    except ImportError as error:
        raise Unreadable(f"is a safetensors file; to read it, {installation('safetensors')}") from error
    try:
        tensors: dict[str, Tensor] = load_tensors(data)
    except Exception as error:  # the library's own error class has no stable place
        raise Unreadable(f"is a damaged safetensors file ({error}); use another copy") from error
    return dict(sorted(tensors.items()))


def read_metadata(data: bytes) -> dict[str, str]:
    """The text in a file, by name; nothing where it has none or is no such file."""
    if not recognize(data):
        return {}
    (header_size,) = struct.unpack("<Q", data[:8])
    text = json.loads(data[8 : 8 + header_size]).get("__metadata__") or {}
    return {str(name): str(value) for name, value in text.items()}


def dump(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A file of tensors by name, with text about them; the same bytes each time.

    Raises:
        UsageError: If the library is not installed.
    """
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise UsageError(f"writing safetensors needs one more package; {installation('safetensors')}") from error
    # Copies, as the format has no place for two names of one tensor. "format" is what other readers look for.
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return _in_order(save(copies, {"format": "pt", **metadata}))


def _in_order(data: bytes) -> bytes:
    """The file with its text sorted, which the library writes in no certain order, so that a file can be repeated."""
    (header_size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + header_size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + header_size :]
