"""Reading the weights of a policy, whoever trained it.

A file is recognized by what it contains, whatever its name, and nothing in it is ever executed.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from pl_rl.checkpoints.format import LFS_POINTER
from pl_rl.errors import UsageError
from pl_rl.pretrained.conversion import listed, renamed, tensor_dict
from pl_rl.pretrained.files import WeightsFile, open_weights
from pl_rl.pretrained.formats import (
    cleanrl,
    di_engine,
    own_checkpoint,
    rsl_rl,
    stable_baselines3,
    state_dict,
    vec_normalize,
)
from pl_rl.pretrained.policy_weights import PolicyWeights, Unreadable

_FORMATS: list[tuple[Callable[[WeightsFile], bool], Callable[[WeightsFile], PolicyWeights]]] = [
    (own_checkpoint.recognize, own_checkpoint.convert),
    (di_engine.recognize, di_engine.convert),
    (stable_baselines3.recognize, stable_baselines3.convert),
    (vec_normalize.recognize, vec_normalize.convert),
    (rsl_rl.recognize, rsl_rl.convert),
    # CleanRL's names can be ours: the stricter test comes first.
    (cleanrl.recognize, cleanrl.convert),
    (state_dict.recognize, state_dict.convert),
]
_READABLE = (
    "pl_rl reads its own checkpoints, the state_dict of an MLPActorCritic (torch.save or safetensors), and files of "
    "DI-engine, Stable-Baselines3, CleanRL and rsl_rl"
)


def read_weights(
    path: str | Path, names: Collection[str] | None = None, rename: Mapping[str, str] | None = None
) -> PolicyWeights:
    """The weights in a file, under the names of ``MLPActorCritic``.

    Args:
        path: Of the file; or a URL that fsspec can open.
        names: The parameters of a network of another class; a ``state_dict`` that has any of them is taken as it is.
        rename: Beginnings of names, and what takes their place; with it a ``state_dict`` may be anyone's.

    Raises:
        UsageError: If it is no such file, or holds a policy that does not fit; the message says why.
    """
    try:
        file = open_weights(str(path))
        if names is not None and state_dict.has_any(file, names, rename or {}):
            return renamed(state_dict.convert_any(file), rename or {})
        for recognize, convert in _FORMATS:
            if recognize(file):
                return renamed(convert(file), rename or {})
        if rename and tensor_dict(file.content):
            return renamed(state_dict.convert_any(file), rename)
        raise Unreadable(_unknown(file))
    except Unreadable as error:
        sentence = " ".join(str(error).split())
        raise UsageError(f"{str(path)!r} {sentence}") from error
    except UsageError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # A part may be anything where a library's own files have one thing.
        sentence = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(f"{str(path)!r} is damaged, or no file of weights ({sentence}); use another copy") from error


def _unknown(file: WeightsFile) -> str:
    """What a file in no known format is."""
    if isinstance(file.content, dict):
        return f"has entries that belong to no known policy: {listed(file.content)}; {_READABLE}"
    if file.content is not None:
        return f"holds a {type(file.content).__name__} and no named tensors; {_READABLE}"
    if file.members:
        return f"is a zip archive of something else: {listed(file.members)}; {_READABLE}"
    if file.data.startswith(LFS_POINTER):
        return "is a Git LFS pointer and not the file itself; fetch it with git lfs pull"
    if file.data.startswith(b"\x80"):
        return f"is a pickle, which could run code when opened, and was left closed; {_READABLE}"
    return f"begins with {file.data[:16]!r}, like no file of weights; {_READABLE}"
