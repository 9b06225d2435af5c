"""Writing a run's policy for use elsewhere."""

import contextlib
import io
import logging
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from pl_rl.deploy import Format
from pl_rl.deploy.policy import (
    TrainedPolicy,
    TrainedWeights,
    checked_settings,
    file_metadata,
    load_weights,
    read_trained,
)
from pl_rl.errors import RunFailure, UsageError, installation
from pl_rl.files.writing import flush
from pl_rl.networks.records import entries, tree_map
from pl_rl.pretrained import safetensors
from pl_rl.runs.directory import display_path
from pl_rl.runs.trust import WayOut, in_python
from pl_rl.signals import held_back

_ENDINGS: dict[Format, str] = {"state_dict": ".pt", "safetensors": ".safetensors", "onnx": ".onnx", "hub": "-hub"}


def export(
    checkpoint: Path,
    to: Format,
    output: Path | None = None,
    trust: Iterable[str] = (),
    way_out: WayOut = in_python,
) -> str:
    """Write the policy of a checkpoint.

    Args:
        checkpoint: The file.
        to: ``state_dict`` and ``safetensors`` hold the weights; ``onnx`` is the deterministic policy as a graph from
            ``obs`` to the outputs of :class:`pl_rl.deploy.policy.TrainedPolicy`, for any batch; ``hub`` is a folder
            for a model hub, see :mod:`pl_rl.deploy.hub`.
        output: Where; beside the checkpoint under its name by default. A file or folder there is left alone.
        trust: Names in a checkpoint from elsewhere that may be imported and called, as in
            :class:`pl_rl.deploy.policy.TrainedPolicy`.
        way_out: Says how to trust a name.

    Returns:
        What was written, in words.

    Raises:
        UsageError: If the checkpoint cannot be read or the policy not be made from it alone or not without a name
            that is not trusted, if there is something at ``output`` or it cannot be written, or if a package is
            missing.
        RunFailure: If the network cannot be turned into a graph.
    """
    target = output or checkpoint.with_name(checkpoint.stem + _ENDINGS[to])
    if os.path.lexists(target):
        raise UsageError(
            f"{display_path(target)} exists and is not overwritten; name another place with --output, or remove it"
        )
    trained = read_trained(checkpoint)
    env_id, count = trained.settings["env"]["id"], len(trained.tensors)
    if to == "hub":
        with _placed(target) as partial:
            _write_hub(trained, checkpoint, trust, way_out, partial)
        return f"Wrote the folder {display_path(target)}: the policy for {env_id}, its settings and a model card."
    content = f"{count} tensors of the policy for {env_id}"
    if to == "onnx":
        data, names = _onnx(trained, checkpoint, trust, way_out)
        content = f"the deterministic policy for {env_id}, from obs to {', '.join(names)}"
    elif to == "safetensors":
        data = safetensors.dump(trained.tensors, file_metadata(trained.settings, trained.training))
    else:
        data = _state_dict(trained)
    with _placed(target) as partial:
        partial.write_bytes(data)
    return f"Wrote {display_path(target)}: {content}; {len(data):,} bytes."


def _state_dict(trained: TrainedWeights) -> bytes:
    file = io.BytesIO()
    torch.save(trained.tensors, file)
    return file.getvalue()


def _onnx(trained: TrainedWeights, path: Path, trust: Iterable[str], way_out: WayOut) -> tuple[bytes, tuple[str, ...]]:
    """The graph, and the names of its outputs."""
    if find_spec("onnxscript") is None:
        raise UsageError(f"writing ONNX needs more packages; {installation('onnx')}")
    policy = TrainedPolicy(checked_settings(trained.settings, trained.spaces, path, trust, way_out), trained.spaces)
    load_weights(policy, trained.tensors)
    example, state = {"obs": policy.example()}, policy.example_state()
    if state is not None:
        example["state"] = state
    with _quiet(), held_back():
        try:
            program: Any = torch.onnx.export(
                policy,
                kwargs=example,
                input_names=[*entries(example["obs"]), *list(example)[1:]],
                output_names=policy.outputs,
                dynamic_shapes=tree_map(lambda _: {0: torch.export.Dim("batch")}, example),
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = " ".join(str(error.__cause__ or error).split())
            raise RunFailure(
                f"the network {trained.settings['network']['class_path']} cannot be turned into an ONNX graph: "
                f"{reason[:500]}; export its weights with --to state_dict or safetensors"
            ) from error
    model = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # source lines, with the paths of this machine
    for key, value in file_metadata(trained.settings, trained.training).items():
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString(deterministic=True), policy.outputs


def _write_hub(trained: TrainedWeights, path: Path, trust: Iterable[str], way_out: WayOut, folder: Path) -> None:
    try:
        from pl_rl.deploy.hub import HubPolicy
    except ImportError as error:
        raise UsageError(str(error)) from error
    policy = HubPolicy.of_weights(trained, path, trust, way_out)
    save: Any = policy.save_pretrained
    save(folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on packages that it could use and on its own use of PyTorch."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _placed(target: Path) -> Iterator[Path]:
    """A name beside the target for a file or folder, which takes the target's place at the end, whole or not at all.

    Raises:
        UsageError: If it cannot be written there.
    """
    partial = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove(partial)  # what a kill left behind
        yield partial
        for path in [partial, *partial.rglob("*"), target.parent]:
            if path == target.parent:
                partial.rename(target)
            flush(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            _remove(partial)
        if isinstance(error, OSError):
            reason = f"{error.strerror}: {error.filename}"
            raise UsageError(
                f"{display_path(target)} cannot be written ({reason}); name another place with --output"
            ) from error
        raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
