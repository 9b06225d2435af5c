"""Starting a run from weights that were trained before."""

import shlex
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pl_rl.agent import Agent, as_agent, shape_in_words
from pl_rl.errors import UsageError
from pl_rl.networks import ACTIVATIONS, ActorCritic, MLPActorCritic
from pl_rl.runs import shown
from pl_rl.weights import PolicyWeights, read_weights
from pl_rl.weights.conversion import listed

Shapes = dict[str, tuple[int, ...]]


class PretrainedCheckpoint(L.Callback):
    """Starts a new run from the weights in a file; its counters, random numbers and optimiser are a new run's.

    A resumed run has its weights in the checkpoint: the file is not read then, and may be gone.

    Example::

        trainer = pl_rl.Trainer(callbacks=[PretrainedCheckpoint("ppo_cartpole.zip")])

    Args:
        path: File of weights, ours or another library's; null loads nothing.
        strict: Whether every selected weight must be in the file, in the model and of one shape; otherwise those that
            fit are loaded.
        include: Patterns of the parameters to load, such as ``actor.*``; null means all.
        exclude: Patterns of the parameters to leave as they were initialised.

    Attributes:
        lineage: What the run started from, as plain data; ``None`` if from its own initial weights.
    """

    def __init__(
        self,
        path: str | None = None,
        strict: bool = True,
        include: list[str] | None = None,
        exclude: list[str] | None = None,
    ) -> None:
        self.path = path
        self.strict = strict
        self.include = include
        self.exclude = exclude
        self.lineage: dict[str, Any] | None = None

    def check(self, agent: Agent) -> None:
        """Whether the file can be loaded into an agent; changes nothing.

        Raises:
            UsageError: If it cannot.
        """
        if self.path is not None:
            self._compare(self.path, agent.network)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Forget an earlier run; a resume then brings its own lineage."""
        if stage == "fit":
            self.lineage = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Load the weights, or leave those of the checkpoint alone, which are in place by now.

        Copied into the parameters, so that the optimiser, which has them already, goes on with the same ones.

        Raises:
            UsageError: If the file cannot be loaded.
        """
        if self.path is None:
            return
        if trainer.ckpt_path:
            if trainer.is_global_zero:
                line = f"The resume wins: weights are the checkpoint's, and {shown(self.path)} is not read."
                Console().print(line, highlight=False, markup=False, soft_wrap=True)
            return
        network = as_agent(pl_module).network
        weights, self.lineage = self._compare(self.path, network)
        state = network.state_dict()
        with torch.no_grad():
            for name in self.lineage["loaded"]:
                state[name].copy_(weights.tensors[name])
        if trainer.is_global_zero:
            table = Table(show_header=False, title="Pre-trained weights", title_justify="left", expand=False)
            for name, value in lineage_rows(self.lineage):
                table.add_row(name, escape(value))
            Console().print(table)

    def state_dict(self) -> dict[str, Any]:
        """The lineage, which a run keeps over all its resumes."""
        return {} if self.lineage is None else self.lineage

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.lineage = dict(state_dict)

    def _compare(self, path: str, network: ActorCritic) -> tuple[PolicyWeights, dict[str, Any]]:
        """The file's weights and the lineage of a network that they are loaded into.

        Raises:
            UsageError: If the file cannot be read, or does not fit.
        """
        model = _shapes(network.state_dict())
        weights = read_weights(Path(path), None if type(network) is MLPActorCritic else model.keys())
        if weights.normalizer is not None:
            raise UsageError(
                f"{path!r} holds statistics that observations are normalised by, and the model normalises none; use a "
                "policy that was trained on observations as they are"
            )
        file = _shapes(weights.tensors)
        self._check_patterns({**model, **file})
        notes = list(weights.notes)
        if self.strict:
            self._check_shapes(path, network, weights)
        differing = _differing_activation(network, weights)
        if differing is not None:
            theirs, ours = differing
            if self.strict:
                raise UsageError(
                    f"{path!r} was trained with {theirs} between its layers and the model has {ours}, so that the "
                    f"weights would mean another function; add --model.network.init_args.activation {theirs}"
                )
            notes.append(f"The file's activation is {theirs}, the model's {ours}: the weights mean another function.")
        groups = self._groups(model, file)
        if not groups["loaded"]:
            raise UsageError(
                f"{path!r} has nothing to load: of its tensors {listed(file)}, none that is selected has the name and "
                f"shape of one of the model's {listed(model)}; use a policy of this network"
            )
        origin = {"path": str(Path(path).absolute()), "source": weights.source, "sha256": weights.sha256}
        return weights, {**origin, **groups, "notes": notes}

    def _selects(self, name: str) -> bool:
        included = self.include is None or any(fnmatchcase(name, pattern) for pattern in self.include)
        return included and not any(fnmatchcase(name, pattern) for pattern in self.exclude or [])

    def _groups(self, model: Shapes, file: Shapes) -> dict[str, dict[str, str]]:
        """Parameters by what becomes of them, each with its shape."""
        groups: dict[str, dict[str, str]] = {"loaded": {}, "skipped": {}, "missing": {}, "unexpected": {}}
        for name in {**model, **file}:
            here, there = model.get(name), file.get(name)
            if not self._selects(name):
                groups["skipped"][name] = shape_in_words(there if here is None else here)
            elif here is None:
                groups["unexpected"][name] = shape_in_words(there)
            elif there is None:
                groups["missing"][name] = shape_in_words(here)
            elif here != there:
                groups["skipped"][name] = f"{shape_in_words(here)} ({shape_in_words(there)} in the file)"
            else:
                groups["loaded"][name] = shape_in_words(here)
        return groups

    def _check_patterns(self, names: Mapping[str, Any]) -> None:
        """Refuse a pattern that selects nothing, which is a slip."""
        for option, patterns in [("include", self.include), ("exclude", self.exclude)]:
            for pattern in patterns or []:
                if not any(fnmatchcase(name, pattern) for name in names):
                    raise UsageError(f"--pretrained.{option} has {pattern!r}, which matches none of {listed(names)}")

    def _check_shapes(self, path: str, network: ActorCritic, weights: PolicyWeights) -> None:
        """Refuse selected weights that are not the same in the file and the model."""
        model, file = _shapes(network.state_dict()), _shapes(weights.tensors)
        misfits = [name for name in {**model, **file} if self._selects(name) and model.get(name) != file.get(name)]
        if misfits:
            name, more = misfits[0], len(misfits) - 1
            others = f" ({more} more differ)" if more else ""
            there, here = shape_in_words(file.get(name)), shape_in_words(model.get(name))
            raise UsageError(
                f"{name} is {there} in {path!r} and {here} in the model{others}; {_remedy(network, weights)}"
            )


def lineage_rows(lineage: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a run started from, in rows of a name and a value."""
    rows = [("started from", f"{shown(lineage['path'])}, {lineage['source']}, sha256 {lineage['sha256'][:12]}")]
    for group in ("loaded", "skipped", "missing", "unexpected"):
        if lineage[group]:
            rows.append((f"weights {group}", ", ".join(f"{name} {shape}" for name, shape in lineage[group].items())))
    return rows + [("note", note) for note in lineage["notes"]]


def _remedy(network: ActorCritic, weights: PolicyWeights) -> str:
    """The network's settings that fit the file, if there are any."""
    if type(network) is not MLPActorCritic or weights.network is None:
        return "use --pretrained.exclude to leave such weights out, or --pretrained.strict false to load what fits"
    settings: dict[str, Any] = {name: value for name, value in weights.network.items() if value is not None}
    fitting = MLPActorCritic(network.observation_space, network.action_space, **settings)
    if _shapes(fitting.state_dict()) != _shapes(weights.tensors):
        return (
            "no settings of the network fit the file to this environment's observations and actions; use a file that "
            "was trained for them, or --pretrained.strict false to load what fits"
        )
    return "use " + " ".join(
        f"--model.network.init_args.{name} {shlex.quote(str(value))}" for name, value in settings.items()
    )


def _differing_activation(network: ActorCritic, weights: PolicyWeights) -> tuple[str, str] | None:
    """The activations of the file and of the model, where both are known and not the same."""
    theirs = None if weights.network is None else weights.network["activation"]
    if theirs is None or not isinstance(network, MLPActorCritic):
        return None
    classes = {type(module) for module in network.modules()}
    ours = next((name for name, cls in ACTIVATIONS.items() if cls in classes), None)
    return None if ours in (None, theirs) else (theirs, str(ours))


def _shapes(tensors: Mapping[str, torch.Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
