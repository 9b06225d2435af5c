"""Starting a run from weights that were trained before."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pl_rl.agent import Agent, as_agent
from pl_rl.errors import UsageError
from pl_rl.files.plain_data import changed_settings
from pl_rl.files.terminal import printable
from pl_rl.networks.actor_critic import MLPActorCritic
from pl_rl.pretrained import Normalizer, PolicyWeights, read_weights
from pl_rl.pretrained.freezing import FreezeSchedule, Freezing
from pl_rl.pretrained.matching import Match, OtherShapes, Rules, match
from pl_rl.runs.directory import display_path


class PretrainedCheckpoint(L.Callback):
    """Starts a new run from the weights in a file; its counters, random numbers and optimizer are a new run's.

    A resumed run has its weights in the checkpoint, and what it holds too: the file is not read then, and may be gone.
    Where a resume names the file again, what it says of freezing counts from there on.

    Example::

        trainer = pl_rl.Trainer(callbacks=[PretrainedCheckpoint("ppo_cartpole.zip")])

    Args:
        path: File of weights, ours or another library's, or a URL of one; null loads nothing.
        strict: Whether every selected weight must be in the file and in the model; otherwise those that are in both are
            loaded.
        include: Patterns of the parameters to load, such as ``actor.*``; null means all.
        exclude: Patterns of the parameters to leave as they were initialized.
        rename: Beginnings of names in the file, and what takes their place: ``{"policy.": "actor."}``.
        shapes: What to do with a weight of another shape: stop with an error, skip it, or take over the part that
            overlaps, for observations or actions that became more.
        normalizer: Whether to take over the statistics that observations are normalized by; or the file that has them,
            such as that of a ``VecNormalize``.
        optimizer: Whether Adam goes on with its averages in the file.
        freeze: Patterns of parameters that do not learn.
        freeze_iterations: For how many iterations they do not; null means the whole run.
        critic_warmup: Iterations in which the value function alone learns, all that the policy depends on being frozen.

    Attributes:
        lineage: What the run started from, as plain data; ``None`` if from its own initial weights.
    """

    def __init__(
        self,
        path: str | None = None,
        strict: bool = True,
        include: list[str] | None = None,
        exclude: list[str] | None = None,
        rename: dict[str, str] | None = None,
        shapes: OtherShapes = "error",
        normalizer: bool | str = True,
        optimizer: bool = False,
        freeze: list[str] | None = None,
        freeze_iterations: int | None = None,
        critic_warmup: int = 0,
    ) -> None:
        self.path = path
        self.rules = Rules(strict, include, exclude, shapes)
        self.rename = rename
        self.normalizer = normalizer
        self.optimizer = optimizer
        self.freezing = Freezing(freeze or [], freeze_iterations, critic_warmup)
        self.lineage: dict[str, Any] | None = None
        self._schedule: FreezeSchedule | None = None
        self._frozen: set[str] = set()

    def check(self, agent: Agent) -> None:
        """Whether the file can be loaded into an agent; changes nothing.

        Raises:
            UsageError: If it cannot.
        """
        if self.path is not None:
            self._compare(self.path, agent)
        elif self.freezing != Freezing():
            raise UsageError(
                "--pretrained.freeze and --pretrained.critic_warmup need weights; add --pretrained.path FILE"
            )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Forget an earlier run; a resume then brings its own lineage."""
        if stage == "fit":
            self.lineage = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Load the weights, or leave those of the checkpoint alone, which are in place by now.

        Copied into the parameters, so that the optimizer, which has them already, goes on with the same ones.

        Raises:
            UsageError: If the file cannot be loaded.
        """
        if self.path is None:
            return
        if trainer.ckpt_path:
            line = f"The resume wins: weights are the checkpoint's, and {display_path(self.path)} is not read."
            changes = (
                [] if self.lineage is None else changed_settings(self.lineage.get("held", {}), asdict(self.freezing))
            )
            if changes and self.lineage is not None:
                self.freezing.check(as_agent(pl_module).network)
                self.lineage["held"] = asdict(self.freezing)
            if trainer.is_global_zero:
                for text in [line, *(f"  changed: pretrained.{change}" for change in changes)]:
                    Console().print(printable(text), highlight=False, markup=False, soft_wrap=True)
            return
        agent = as_agent(pl_module)
        weights, found, statistics = self._compare(self.path, agent)
        state = agent.network.state_dict()
        with torch.no_grad():
            for name, tensor in found.tensors.items():
                state[name].copy_(tensor)
        if statistics is not None and agent.normalizer is not None:
            agent.normalizer.load_statistics(
                statistics["mean"], statistics["var"], statistics["scale"], statistics["count"], statistics["clip"]
            )
        if self.optimizer:
            _restore_adam(self.path, trainer.optimizers[0], weights, found, agent)
        self.lineage = {
            "path": self.path if "://" in self.path else str(Path(self.path).absolute()),
            "source": weights.source,
            "sha256": weights.sha256,
            **found.groups,
            "observations": None if statistics is None else statistics["count"],
            "optimizer": self.optimizer,
            "held": asdict(self.freezing),
            "notes": [*weights.notes, *found.notes],
        }
        if trainer.is_global_zero:
            table = Table(show_header=False, title="Pre-trained weights", title_justify="left", expand=False)
            for name, value in lineage_rows(self.lineage):
                table.add_row(name, escape(printable(value)))
            Console().print(table)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Plan what is frozen, by the lineage, which a resume has brought back by now."""
        freezing = Freezing(**self.lineage.get("held", {})) if self.lineage else Freezing()
        self._schedule = None if freezing == Freezing() else FreezeSchedule(freezing, as_agent(pl_module).network)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Hold and let go, by the run's count of iterations."""
        if self._schedule is not None:
            agent = as_agent(pl_module)
            self._freeze(agent, self._schedule.names(agent.iteration))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave the network as it was."""
        if stage == "fit":
            self._freeze(as_agent(pl_module), set())

    def state_dict(self) -> dict[str, Any]:
        """The lineage, which a run keeps over all its resumes."""
        return {} if self.lineage is None else self.lineage

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.lineage = dict(state_dict)

    def _freeze(self, agent: Agent, names: set[str]) -> None:
        if names != self._frozen:
            parameters = dict(agent.network.named_parameters())
            for name in names ^ self._frozen:
                parameters[name].requires_grad_(name not in names)
            self._frozen = names

    def _compare(self, path: str, agent: Agent) -> tuple[PolicyWeights, Match, Normalizer | None]:
        """The file's weights, what an agent takes of them, and the statistics of observations that it takes.

        Raises:
            UsageError: If the file cannot be read, or does not fit.
        """
        network = agent.network
        own_names = None if type(network) is MLPActorCritic else network.state_dict().keys()
        weights = read_weights(path, own_names, self.rename)
        if not weights.tensors:
            raise UsageError(
                f"{path!r} holds statistics of observations and no policy; name the policy's file with "
                "--pretrained.path and this one with --pretrained.normalizer"
            )
        found = match(path, weights, network, self.rules)
        self.freezing.check(network)
        if self.optimizer and weights.optimizer is None:
            raise UsageError(f"{path!r} has no state of Adam for its weights; leave out --pretrained.optimizer")
        statistics = _wanted_statistics(path, weights, agent, self.normalizer)
        if statistics is None and agent.normalizer is not None:
            found.notes.append("The statistics of observations start afresh.")
        return weights, found, statistics


def lineage_rows(lineage: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a run started from, in rows of a name and a value."""
    rows = [("started from", f"{display_path(lineage['path'])}, {lineage['source']}, sha256 {lineage['sha256'][:12]}")]
    for group in ("loaded", "reshaped", "skipped", "missing", "unexpected"):
        if lineage.get(group):
            rows.append((f"weights {group}", ", ".join(f"{name} {shape}" for name, shape in lineage[group].items())))
    if lineage.get("observations") is not None:
        rows.append(("statistics", f"of {lineage['observations']:,.0f} observations, which normalize them"))
    if lineage.get("optimizer"):
        rows.append(("optimizer", "Adam's averages, of the weights that are loaded whole"))
    rows += [("held", sentence) for sentence in Freezing(**lineage.get("held", {})).in_words()]
    return rows + [("note", note) for note in lineage["notes"]]


def _wanted_statistics(path: str, weights: PolicyWeights, agent: Agent, wanted: bool | str) -> Normalizer | None:
    """The statistics of observations that an agent takes over.

    Raises:
        UsageError: If they cannot be had, or the agent normalizes no observations, or other ones.
    """
    if wanted is False:
        return None
    if isinstance(wanted, str):
        path, statistics = wanted, read_weights(wanted).normalizer
        if statistics is None:
            raise UsageError(f"{wanted!r} has no statistics of observations; leave out --pretrained.normalizer")
    else:
        statistics = weights.normalizer
    if statistics is None:
        return None
    if agent.normalizer is None:
        raise UsageError(
            f"{path!r} has statistics that observations are normalized by, and the model normalizes none; add "
            "--model.norm_obs true, or --pretrained.normalizer false to leave them"
        )
    here, there = agent.normalizer.mean.numel(), statistics["mean"].numel()
    if here != there:
        raise UsageError(
            f"{path!r} has statistics of {there} numbers of an observation, and the environment observes {here}; use "
            "--pretrained.normalizer false to leave them"
        )
    return statistics


def _restore_adam(
    path: str, optimizer: torch.optim.Optimizer, weights: PolicyWeights, found: Match, agent: Agent
) -> None:
    """Give Adam the averages of the weights that were loaded whole; the others start afresh.

    Raises:
        UsageError: If the model's optimizer is another one.
    """
    if not isinstance(optimizer, torch.optim.Adam):
        raise UsageError(
            f"{path!r} has the state of Adam, and the model's optimizer is {type(optimizer).__name__}; leave out "
            "--pretrained.optimizer"
        )
    if weights.optimizer is None:
        raise UsageError(f"{path!r} has no state of an optimizer; leave out --pretrained.optimizer")
    parameters = dict(agent.network.named_parameters())
    for name in found.groups["loaded"]:
        parameter, state = parameters[name], weights.optimizer[name]
        optimizer.state[parameter] = {
            "step": torch.tensor(state["step"], dtype=torch.float32, device=parameter.device),
            "exp_avg": state["exp_avg"].to(parameter, copy=True),
            "exp_avg_sq": state["exp_avg_sq"].to(parameter, copy=True),
        }
