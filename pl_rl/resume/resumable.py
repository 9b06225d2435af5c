"""An agent whose settings are in its checkpoints, and which goes on from them."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from inspect import currentframe
from types import FrameType
from typing import Any, Self, cast

from lightning.pytorch.utilities import rank_zero_info

from pl_rl.agent import Agent
from pl_rl.algorithm.settings import (
    LIVE_SETTINGS,
    SETTINGS,
    change_setting,
    check_parts,
    check_settings,
    plain_number,
    stored,
)
from pl_rl.checkpoints.compatibility import check_loaded, check_saved
from pl_rl.checkpoints.format import STATE_KEY
from pl_rl.envs import EnvConfig
from pl_rl.envs.make import with_version
from pl_rl.errors import UsageError
from pl_rl.files.plain_data import changed_settings, plain_data
from pl_rl.networks.description import NetworkFactory, describe_network, network_from_description
from pl_rl.resume.loading import load_module
from pl_rl.runs.trust import by_loading, checked


class ResumableAgent(Agent):
    """An agent whose settings are attributes, and hyperparameters in its checkpoints.

    A subclass assigns its settings, calls ``save_hyperparameters`` and then :meth:`settings_are_made`.

    Args:
        env: The environment, its name, or what a checkpoint has of it.
        network: Makes the network, or what a checkpoint has of it.
        settings: As :class:`pl_rl.agent.Agent`.

    Attributes:
        resumed: The content of the checkpoint that the latest fit goes on from, if it does.

    Raises:
        UsageError: If a checkpoint names what is not trusted, or these are something else.
    """

    def __init__(
        self, env: EnvConfig | Mapping[str, Any] | str, network: NetworkFactory | Mapping[str, Any], **settings: Any
    ) -> None:
        # A checkpoint's hyperparameters are plain data, and load_from_checkpoint passes them back as such.
        if isinstance(env, Mapping):
            env = EnvConfig(**checked({"env": env}, way_out=by_loading)["env"])
        elif isinstance(env, str):
            env = EnvConfig(env)
        if isinstance(network, Mapping):
            network = network_from_description(checked({"network": network}, way_out=by_loading)["network"])
        check_parts(env, network)
        env = with_version(env)
        super().__init__(env=env, network=network, **settings)
        self._described = {"env": dataclasses.asdict(env), "network": describe_network(network, self.network)}
        self.resumed: dict[str, Any] | None = None
        # What settings were before the run changed them.
        self._before_run: dict[str, Any] = {}
        self._is_checked = False

    def settings_are_made(self) -> None:
        """From here on, settings that are assigned are looked at.

        Raises:
            UsageError: If a value cannot work.
        """
        for name, value in [*vars(self).items(), *self._parameters.items()]:
            if name in SETTINGS:
                setattr(self, name, plain_number(name, value))
        check_settings(self)
        given = {name: stored(name, plain_number(name, value)) for name, value in self.hparams.items()}
        self.save_hyperparameters(plain_data({**given, **self._described}))
        self._is_made = True

    def __setattr__(self, name: str, value: Any) -> None:
        """Let a setting that is assigned take effect from the next iteration on, or refuse it.

        Before a run it becomes one of the model's hyperparameters; in a run it is the run's alone.

        Raises:
            UsageError: If it cannot change any more, or the value cannot work.
        """
        if name not in SETTINGS or "_is_made" not in vars(self):
            super().__setattr__(name, value)
            return
        change_setting(
            self, name, plain_number(name, value), partial(self._assign, name), self._before_run, self.has_environments
        )

    def _assign(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "gamma" and self.reward_scaler is not None:
            self.reward_scaler.gamma = value

    def save_hyperparameters(
        self,
        *args: Any,
        ignore: Sequence[str] | str | None = None,
        frame: FrameType | None = None,
        logger: bool = True,
    ) -> None:
        """As Lightning's; once the model is made, as plain data, in which it stays described by class and arguments.

        A subclass that saves its own arguments would put ``env`` and ``network`` there as they were given.
        """
        frame = frame or cast(FrameType, currentframe()).f_back
        if "_is_made" not in vars(self):
            super().save_hyperparameters(*args, ignore=ignore, frame=frame, logger=logger)
            return
        described = {name: self.hparams[name] for name in ("env", "network")}
        super().save_hyperparameters(*args, ignore=ignore, frame=frame, logger=logger)
        if args and isinstance(args[0], Mapping):  # as when they are assigned
            described |= {name: args[0][name] for name in described if isinstance(args[0].get(name), Mapping)}
        super().save_hyperparameters(plain_data({**self.hparams, **described}), frame=frame, logger=logger)

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        trust: Iterable[str] = (),
        **kwargs: Any,
    ) -> Self:
        """The model of a checkpoint, with its weights.

        Args:
            checkpoint_path: Path, URL or open file; one below ``lightning_logs`` is the user's own.
            map_location: Device of the weights; the CPU by default.
            hparams_file: Not supported; give settings as keyword arguments.
            strict: Whether names of weights must agree, as Lightning's.
            weights_only: As Lightning's; nothing but plain data is ever read.
            trust: Names in a checkpoint from elsewhere that may be imported and called, beyond those that
                :mod:`pl_rl.runs.trust` allows; that of a package allows all in it.
            kwargs: Settings in the place of the checkpoint's.

        Raises:
            UsageError: If the checkpoint cannot be read, or names what is not trusted.
        """
        if hparams_file is not None or weights_only is False:
            raise UsageError(
                "hparams_file and weights_only=False are not supported; pass settings as keyword arguments"
            )
        return load_module(cls, checkpoint_path, map_location, strict, trust, kwargs)

    def setup(self, stage: str) -> None:
        """Begin a run.

        Raises:
            UsageError: If settings that were assigned since the model was made do not go together.
        """
        if stage == "fit":
            self._forget_run()
            check_settings(self)
            self._is_checked = False
        super().setup(stage)
        self.resumed = None
        self._hparams_given = dict(self.hparams)

    def _forget_run(self) -> None:
        """Settings as they were before a run changed them."""
        for name, value in self._before_run.items():
            self._assign(name, value)
        self._before_run.clear()

    def value_before_run(self, name: str) -> Any:
        """A setting as it was before the run changed it."""
        return self._before_run.get(name, getattr(self, name))

    def check_hyperparameters(self) -> None:
        """Whether they are as they were when the fit began.

        Raises:
            UsageError: For a change, which would have no effect.
        """
        if self.hparams != self._hparams_given:
            changed = changed_settings(self._hparams_given, dict(self.hparams))[0]
            raise UsageError(
                f"hparams were changed during fit ({changed}), which has no effect; set the attribute of the model"
            )

    def adopt_settings(self, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
        """Take over settings that changed while a checkpoint's run trained, unless the user has changed them since.

        As in the run itself they are the run's alone.

        Args:
            checkpoint: Its content, of the present format.

        Returns:
            Those that were taken over.

        Raises:
            UsageError: If they cannot work.
        """
        self._forget_run()
        given, changed = checkpoint["hyper_parameters"], checkpoint[STATE_KEY]["counters"].get("settings", {})
        adopted = {
            name: value
            for name, value in changed.items()
            if name in LIVE_SETTINGS and self.hparams.get(name) == given.get(name)
        }
        for name, value in adopted.items():
            self._before_run[name] = getattr(self, name)
            self._assign(name, value)
        try:
            check_settings(self, fitting=True)
        except UsageError:
            self._forget_run()
            raise
        return adopted

    def counters(self) -> dict[str, Any]:
        """What counts the run, and the settings that callbacks have changed."""
        now = {name: stored(name, getattr(self, name)) for name in LIVE_SETTINGS}
        changed = {name: value for name, value in now.items() if value != self.hparams.get(name)}
        return {**super().counters(), "settings": changed}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Look at the first checkpoint of a fit, which callbacks have added their parts to, as a resume will.

        Raises:
            RunFailure: If nobody could continue it.
        """
        if not self._is_checked and self.has_environments and STATE_KEY in checkpoint:
            self._is_checked = True
            check_saved(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over settings that changed while the checkpoint's run trained.

        Raises:
            UsageError: If the checkpoint is one of another network, before Lightning fails over its tensors.
        """
        check_loaded(self, checkpoint)  # the first hook that sees what Lightning read
        if STATE_KEY not in checkpoint:  # a file of weights alone tells nothing of a run
            return
        self.resumed = checkpoint
        for name, value in self.adopt_settings(checkpoint).items():
            rank_zero_info(f"{name} is {value}, as it was changed while the run trained.")
