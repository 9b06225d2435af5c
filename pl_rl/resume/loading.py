"""A LightningModule from a checkpoint, without what Lightning does on the way: call what the file names."""

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

import fsspec
import lightning as L
import torch

from pl_rl.checkpoints.format import STATE_KEY, check_content, load_sound, load_sound_from
from pl_rl.errors import UsageError
from pl_rl.files.schema import SETTING, Misfit, mapping, record, that
from pl_rl.runs.trust import checked, checked_of_file

WEIGHTS_AND_SETTINGS = record(
    {"state_dict": mapping(that(lambda value: isinstance(value, torch.Tensor), "a tensor"))},
    {"hyper_parameters": mapping(SETTING)},
)

Module = TypeVar("Module", bound=L.LightningModule)


def load_module(
    cls: type[Module],
    source: str | Path | IO[bytes],
    device: Any,
    strict: bool | None,
    trust: Iterable[str],
    instead: Mapping[str, Any],
) -> Module:
    """What ``load_from_checkpoint`` of a class gives.

    Args:
        cls: The class, whatever the file names as its own.
        source: Path, URL or open file.
        device: Of the weights, ``None`` for the CPU.
        strict: Whether names of weights must agree; as the module says where ``None``.
        trust: As in :func:`pl_rl.runs.trust.checked`.
        instead: Settings in the place of the checkpoint's.

    Raises:
        UsageError: If the file cannot be read, or names what is not trusted.
    """
    if device is not None and not isinstance(device, str | int | torch.device):
        raise UsageError(f"map_location={device!r} is not supported; name a device, such as 'cpu'")
    checkpoint = _read(source)
    settings = _settings(cls, checkpoint.get("hyper_parameters", {}), source, trust, instead)
    model = _make(cls, {**settings, **instead}, source)
    described = {name: model.hparams[name] for name in instead if name in model.hparams}
    # What is given is meant to differ; tensors are compared all the same.
    checkpoint = {**checkpoint, "hyper_parameters": {**checkpoint.get("hyper_parameters", {}), **described}}
    for name in instead if STATE_KEY in checkpoint else ():  # not as a callback had changed it
        checkpoint[STATE_KEY]["counters"].get("settings", {}).pop(name, None)
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"], strict=model.strict_loading if strict is None else strict)
    return model if device is None else model.to(device)


def _settings(
    cls: type[Module], stored: Mapping[str, Any], source: Any, trust: Iterable[str], instead: Mapping[str, Any]
) -> dict[str, Any]:
    """What the class takes of a checkpoint's settings, once all that they name is trusted."""
    parameters = inspect.signature(cls.__init__).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    settings = {
        name: value
        for name, value in stored.items()
        if name not in instead and (name in parameters or takes_all) and not name.startswith("_")
    }
    if isinstance(source, str | Path) and "://" not in str(source):
        return checked_of_file(settings, Path(source), trust)
    return checked(settings, trust, f"{source}")


def _make(cls: type[Module], settings: Mapping[str, Any], source: Any) -> Module:
    try:
        inspect.signature(cls).bind(**settings)
    except TypeError as error:
        raise UsageError(
            f"{source} has not the settings of a {cls.__qualname__}: {error}; pass it as an argument"
        ) from error
    try:
        return cls(**settings)
    except TypeError as error:
        raise UsageError(f"{source} has a setting that no {cls.__qualname__} can be made with: {error}") from error


def _read(source: str | Path | IO[bytes]) -> dict[str, Any]:
    """The content of a checkpoint, or of a file of weights and settings alone."""
    if isinstance(source, str | Path) and "://" not in str(source):
        content = load_sound(Path(source))
    elif isinstance(source, str | Path):
        content = load_sound_from(lambda: _download(str(source)), str(source))
    else:
        content = load_sound_from(source.read, str(source))
    if not isinstance(content, dict) or STATE_KEY in content or "state_dict" not in content:
        return check_content(str(source), content)
    try:
        WEIGHTS_AND_SETTINGS(content, "")
    except Misfit as error:
        raise UsageError(f"{source} holds no model: {error}") from error
    return content


def _download(url: str) -> bytes:
    with fsspec.open(url, "rb") as file:
        content: bytes = file.read()
    return content
