"""What a checkpoint must hold beyond weights and optimizer, and the account of a resume."""

from collections.abc import Mapping
from dataclasses import asdict
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console

from pl_rl.agent import Agent, as_agent
from pl_rl.callbacks.lookup import find_callbacks
from pl_rl.callbacks.run_checkpoint import RunCheckpoint
from pl_rl.callbacks.run_directory import run_directory, trackers_ahead
from pl_rl.callbacks.settings import (
    ENDED_BY_EARLY_STOPPING,
    Change,
    changes_of,
    ended_by_early_stopping,
    forget_ends,
    note_given,
    note_left,
    settings_of,
)
from pl_rl.checkpoints.format import FORMAT_VERSION, STATE_KEY
from pl_rl.checkpoints.restoring import check_optimizers
from pl_rl.checkpoints.training_state import (
    restore_training_state,
    save_after_failure,
    save_training_state,
    tell_of_other_platforms,
)
from pl_rl.envs import EnvConfig
from pl_rl.errors import UsageError
from pl_rl.files.plain_data import changed_settings, plain_data
from pl_rl.files.terminal import printable
from pl_rl.runs.directory import display_path, run_of_checkpoint
from pl_rl.runs.log_meter import SEAM_TAGS


class ResumeState(L.Callback):
    """Persists env steps and the rest of an agent's state in every checkpoint, whoever saves it.

    Attributes:
        losses: What the latest resume could not continue exactly, and why; ``None`` if nothing was resumed.
    """

    def __init__(self) -> None:
        self.losses: list[str] | None = None
        self._resumed: dict[str, Any] | None = None
        self._seed = 0
        self._final: dict[str, Any] | None = None
        self._failed = False
        self._settings: dict[str, dict[str, Any]] = {}
        self._changes: list[Change] = []
        self._ended_before = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Note the callbacks' settings as the user gives them."""
        self._resumed = None
        if stage == "fit":
            self._final, self._failed, self._changes, self._ended_before = None, False, [], False
            callbacks = find_callbacks(trainer, L.Callback)
            self._settings = settings_of(callbacks)
            note_given(callbacks)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the state; of a run that failed before it had one, what is saved are weights alone."""
        if self._failed and self._final is None:
            return
        state = self._final or self._waiting() or save_training_state(as_agent(pl_module))
        ended = trainer.should_stop and as_agent(pl_module).stop_reason is None
        checkpoint[STATE_KEY] = {
            **state,
            **({"processes": trainer.world_size} if as_agent(pl_module).shards > 1 else {}),
            "format_version": FORMAT_VERSION,
            "ended_by_callback": ended,
            "callback_settings": self._settings,
        }

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the counters over; evaluations need no more.

        Raises:
            UsageError: For another library's checkpoint.
        """
        if STATE_KEY not in checkpoint:
            if checkpoint["global_step"] == 0:
                return  # what a run that failed before it began has left
            raise UsageError(
                f"{str(trainer.ckpt_path)!r} is not a checkpoint of pl_rl; a run's are in its checkpoints/ folder"
            )
        self._resumed = checkpoint
        self._seed = torch.initial_seed()  # before the run's own comes back
        as_agent(pl_module).restore_counters(checkpoint[STATE_KEY]["counters"])
        callbacks = find_callbacks(trainer, L.Callback)
        self._changes = changes_of(callbacks, self._settings, checkpoint)
        self._ended_before = ended_by_early_stopping(callbacks, checkpoint, self._changes)
        if not self._ended_before:
            forget_ends(callbacks, checkpoint)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse the states of other optimizers, which are there by now and get their states next.

        Callbacks have theirs: their changed settings take effect, wherever in their states these are.
        """
        if self._resumed is not None:
            check_optimizers(self._resumed["optimizer_states"], trainer.optimizers)
        for change in self._changes:
            change.make()
        as_agent(pl_module).note_structure()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the rest, and say so.

        Here and not earlier, as Lightning and the loaders draw random numbers until now.
        """
        self._final = None
        as_agent(pl_module).note_structure()
        tell_of_other_platforms(as_agent(pl_module))
        if self._resumed is None:
            return
        agent, checkpoint = as_agent(pl_module), self._resumed
        self._resumed = None
        self.losses = restore_training_state(agent, checkpoint[STATE_KEY], agent.branching)
        if not agent.branching:
            self.losses += [loss for callback in find_callbacks(trainer, RunCheckpoint) for loss in callback.losses]
        else:
            agent.parent = {
                "checkpoint": str(trainer.ckpt_path),
                "train_iter": agent.train_iter,
                "env_steps": agent.env_steps,
            }
        if self._ended_before:
            # Lightning does not remember, and would train for one more epoch.
            agent.stop(ENDED_BY_EARLY_STOPPING)
        if trainer.is_global_zero:
            before = {**_defaults(agent), **_with_defaults(checkpoint["hyper_parameters"])}
            changes = changed_settings(before, dict(agent.hparams)) + [str(change) for change in self._changes]
            seed = checkpoint[STATE_KEY]["seed_everything"]
            if seed != self._seed and not agent.branching:
                changes.append(f"seed_everything: {seed} -> {self._seed}, without effect on the run's random numbers")
            report = _resume_report(trainer, agent, changes, self.losses, checkpoint[STATE_KEY].get("processes", 1))
            _note_seam(agent, report)
            for line in report:
                Console().print(printable(line), highlight=False, markup=False, soft_wrap=True)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Close the environments, which Lightning's teardown does after a regular end only.

        The state is kept before: callbacks that save a checkpoint of what failed come later.
        """
        agent, self._failed = as_agent(pl_module), True
        # Lightning restores its own part last; between the two nothing fits together.
        half_restored = (
            self._resumed is not None and trainer.global_step != self._resumed[STATE_KEY]["counters"]["train_iter"]
        )
        # Of several processes one alone cannot have the state of all.
        if self._final is None and not half_restored and trainer.world_size == 1:
            self._final = self._waiting() or save_after_failure(agent)
        note_left(find_callbacks(trainer, L.Callback))
        agent.close_after(exception)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the state for a ``save_checkpoint`` after the environments are closed."""
        self._final = save_training_state(as_agent(pl_module))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Note what the fit has made of the callbacks' settings."""
        if stage == "fit":
            note_left(find_callbacks(trainer, L.Callback))

    def _waiting(self) -> dict[str, Any] | None:
        """What a checkpoint holds of an agent's state and has not been restored yet."""
        return None if self._resumed is None else dict(self._resumed[STATE_KEY])


def _defaults(agent: Agent) -> dict[str, Any]:
    """Of the agent's settings, for a checkpoint that was saved before there was such a setting."""
    parameters = signature(type(agent)).parameters
    return {
        name: plain_data(parameters[name].default)
        for name in agent.hparams
        if name in parameters and parameters[name].default is not Parameter.empty
    }


def _with_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's settings with those of the environment that there were not when it was saved."""
    return {**settings, "env": {**plain_data(asdict(EnvConfig(settings["env"]["id"]))), **settings["env"]}}


def _note_seam(agent: Agent, report: list[str]) -> None:
    """Give TensorBoard the account of a resume, where the curves of both axes went on."""
    for logger in agent.loggers:
        if isinstance(logger, TensorBoardLogger):
            for counter, tag in SEAM_TAGS.items():
                logger.experiment.add_text(tag, "\n".join(map(printable, report)), getattr(agent, counter))


def _is_same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _resume_report(
    trainer: L.Trainer, agent: Agent, changes: list[str], losses: list[str], processes: int
) -> list[str]:
    """The resume in words; ``processes`` had been the run's."""
    run, before = run_directory(trainer), run_of_checkpoint(Path(str(trainer.ckpt_path)))
    what = "Branched" if agent.branching else "Continued"
    if run is not None and not agent.branching and before is not None and not _is_same(run, before):
        what += f" from {display_path(before)}"
    what += "" if run is None else f" in{'to' if agent.branching else ''} {display_path(run)}"
    what += ", with random numbers of its own" if agent.branching and run is not None else ""
    lines = [
        f"{what}.",
        f"  checkpoint: {display_path(str(trainer.ckpt_path))}",
        f"  at: iteration {agent.iteration:,}, train_iter {agent.train_iter:,}, env_steps {agent.env_steps:,}",
    ]
    lines += [f"  changed: {change}" for change in changes]
    if any(change.startswith("total_env_steps") for change in changes) and agent.anneals:
        lines.append(f"  annealing goes on towards {agent.total_env_steps:,} env steps, which shifts it from here on")
    if processes != trainer.world_size:
        lines.append(f"  processes: {processes} -> {trainer.world_size}")
    lines += [f"  not exact: {loss}" for loss in losses]
    if changes or losses:
        ahead = trackers_ahead(trainer, agent)
        lines += [f"  {logger} keeps the points that it has from after the checkpoint" for logger in ahead]
    if not losses:
        lines.append("  fidelity: exact")
    return lines
