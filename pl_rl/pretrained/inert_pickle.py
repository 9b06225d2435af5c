"""Reading a pickle as data: nothing that it names is imported, nothing that it asks for is called.

A pickle is a program for a small stack machine. Besides building containers, strings and numbers, that machine can
fetch what has a name (``find_class``), call what it fetched, and give the result a state. Here ``find_class`` makes a
fresh subclass of :class:`Record` for every name and looks nothing up, so all that a pickle can call are records that
note their arguments. There is no opcode that reads an attribute, persistent ids are refused, and the registry of
extensions leads to ``find_class`` too; so no pickle reaches a function of Python or of any library.
"""

import io
import pickle
import pickletools
from typing import Any, ClassVar

from pl_rl.pretrained.policy_weights import Unreadable

MAX_NAMES = 1000


class Record:
    """Stands for an object of a pickle.

    Attributes:
        origin: The name under which the pickle asks for the class or function.
        args: What it was called with.
        state: What its ``__setstate__`` would have got.
    """

    origin: ClassVar[str] = ""
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any, **kwargs: Any) -> "Record":
        """Notes the arguments, whether the pickle calls the class or has it make an empty object."""
        record = super().__new__(cls)
        record.args = args
        record.state = None
        return record

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, item: Any) -> None:
        """Items of a subclass of ``list`` are dropped."""

    def extend(self, items: Any) -> None:
        """Items of a subclass of ``list`` are dropped."""

    def __setitem__(self, key: Any, item: Any) -> None:
        """Items of a subclass of ``dict`` are dropped."""


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self._classes: dict[str, type[Record]] = {}

    def find_class(self, module: str, name: str) -> type[Record]:
        origin = f"{module}.{name}"
        if origin not in self._classes:
            if len(self._classes) == MAX_NAMES:  # each takes a thousand bytes
                raise ValueError(f"it names more than {MAX_NAMES} classes")
            self._classes[origin] = type("Record", (Record,), {"origin": origin})
        return self._classes[origin]


def load_inert(data: bytes) -> Any:
    """The content of a pickle, with a :class:`Record` in place of each object that is not a builtin.

    Raises:
        Unreadable: If it is damaged.
    """
    try:
        for opcode, argument, _ in pickletools.genops(data):
            # The machine's memory is an array as long as the largest index.
            if "PUT" in opcode.name and isinstance(argument, int) and argument > len(data):
                raise ValueError(f"index {argument} in {len(data)} bytes")
        return _Unpickler(data).load()
    except Exception as error:  # unpickling fails in as many ways as a pickle can be broken
        raise Unreadable(f"is a damaged pickle ({error}); use another copy") from error
