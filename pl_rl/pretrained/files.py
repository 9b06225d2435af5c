"""Opening a file of weights without running anything that it contains.

What ``torch.save`` wrote is opened with ``weights_only=True``, other pickles are left closed, and the members of an
archive are read in memory after their sizes have been added up.
"""

import hashlib
import io
import pickle
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec

from pl_rl.files.plain_archive import MAX_UNFOLDED, SMALL, NotPlain, load_plain
from pl_rl.pretrained import safetensors
from pl_rl.pretrained.policy_weights import Unreadable

# More than any policy of vectors has, and little enough to hold in memory.
MAX_BYTES = 2**30
# With which torch.save began before it wrote zip archives.
_OLD_TORCH = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)


@dataclass(frozen=True)
class WeightsFile:
    """A file in memory.

    Attributes:
        path: Where it lies, as the user named it.
        data: All of it.
        members: The names in it, if it is a zip archive.
        content: The tensors and plain data in it, if ``torch.save`` or safetensors wrote it.
    """

    path: str
    data: bytes
    members: list[str]
    content: Any

    @cached_property
    def sha256(self) -> str:
        """The file's checksum, in hexadecimal digits."""
        return hashlib.sha256(self.data).hexdigest()

    def read_member(self, name: str) -> bytes:
        """One file of the archive."""
        with zipfile.ZipFile(io.BytesIO(self.data)) as archive:
            return archive.read(name)


def open_weights(path: str) -> WeightsFile:
    """Reads a file and opens the container that its first bytes tell.

    Raises:
        Unreadable: If there is no such file, or it is empty, damaged, too large or not safe to open.
    """
    data = _read(path)
    if not data:
        raise Unreadable("is empty; use another copy")
    members: list[str] = []
    content = None
    if data.startswith(b"PK\x03\x04"):
        members = _check_archive(data)
        if any(name.endswith("/constants.pkl") for name in members):
            raise Unreadable(
                "is a TorchScript program, which would have to be run; use the training checkpoint instead"
            )
        if any(name.endswith("/data.pkl") for name in members):
            content = load_torch(data)
    elif data.startswith(_OLD_TORCH):
        content = load_torch(data)
    elif safetensors.recognize(data):
        content = safetensors.load(data)
    return WeightsFile(path, data, members, content)


def load_torch(data: bytes) -> Any:
    """What ``torch.save`` wrote, on the CPU.

    Raises:
        Unreadable: If it holds more than tensors and plain data, or is damaged.
    """
    try:
        return load_plain(data)
    except NotPlain as error:
        raise Unreadable(f"is damaged, or no file of weights: {error}; use another copy") from error
    except Exception as error:  # torch.load fails in as many ways as a file can be broken
        raise Unreadable(
            "is damaged, or holds more than tensors and plain data, which could run code when opened; "
            "save the policy's state_dict() alone and use that"
        ) from error


def _read(location: str) -> bytes:
    if "://" in location:
        return _download(location)
    path = Path(location)
    if path.is_dir():
        raise Unreadable("is a folder; name the file of weights in it")
    if not path.is_file():
        raise Unreadable("does not exist or is no ordinary file; check the path")
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise Unreadable(f"has {size:,} bytes, more than the {MAX_BYTES:,} of any policy; use a smaller file")
        return path.read_bytes()
    except OSError as error:
        raise Unreadable(f"cannot be read ({error.strerror}); check its permissions") from error


def _download(url: str) -> bytes:
    """A file anywhere that fsspec reaches, https://filesystem-spec.readthedocs.io."""
    try:
        with fsspec.open(url, "rb") as file:
            data: bytes = file.read(MAX_BYTES + 1)
    except Exception as error:  # each kind of storage fails in its own ways
        raise Unreadable(f"cannot be fetched ({type(error).__name__}: {error}); check the URL") from error
    if len(data) > MAX_BYTES:
        raise Unreadable(f"has more than the {MAX_BYTES:,} bytes of any policy; use a smaller file")
    return data


def _check_archive(data: bytes) -> list[str]:
    """The names in a zip archive whose size and checksums are right."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(member.file_size for member in archive.infolist())
            if size > max(SMALL, MAX_UNFOLDED * len(data)):
                raise Unreadable(f"unpacks to {size:,} bytes from {len(data):,}, as numbers never do; it is no policy")
            damaged = archive.testzip()
            names = archive.namelist()
    except Unreadable:
        raise
    except Exception as error:  # zipfile fails in as many ways as an archive can be broken
        raise Unreadable(f"is a damaged or truncated zip archive ({error}); use another copy") from error
    if damaged is not None:
        raise Unreadable(f"is damaged: the checksum of {damaged} is wrong; use another copy")
    return names
