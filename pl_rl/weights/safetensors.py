"""Tensors in the safetensors format, https://huggingface.co/docs/safetensors; the library is optional."""

import struct

from torch import Tensor

from pl_rl.weights.policy_weights import Unreadable


def recognise(data: bytes) -> bool:
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
        raise Unreadable("is a safetensors file; to read it, pip install safetensors") from error
    try:
        tensors: dict[str, Tensor] = load_tensors(data)
    except Exception as error:  # the library's own error class has no stable place
        raise Unreadable(f"is a damaged safetensors file ({error}); use another copy") from error
    return dict(sorted(tensors.items()))
