"""The verbs of Lightning's Trainer: fit, validate, test, predict."""

import os
import secrets
import shlex
import sys
from inspect import signature
from pathlib import Path
from typing import Any, cast

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback

from pl_rl.algorithm.evaluation import Episodes
from pl_rl.callbacks import EvaluationVideos, PretrainedCheckpoint, RunCheckpoint, RunProgressBar, RunSummary
from pl_rl.callbacks.lookup import find_callback
from pl_rl.callbacks.run_directory import LOGS_KEY, run_directory
from pl_rl.callbacks.videos import check_counted
from pl_rl.checkpoints.format import read_checkpoint
from pl_rl.cli.configs import packaged_configs
from pl_rl.cli.help import TrainerHelp
from pl_rl.cli.parsing import ConfigFile, Parser, option, setting, with_whole_numbers
from pl_rl.cli.tables import print_episodes, print_statistics
from pl_rl.cli.trust import names_said
from pl_rl.distributed.processes import is_first, led
from pl_rl.errors import UsageError
from pl_rl.files.plain_yaml import parse_yaml, read_yaml
from pl_rl.files.terminal import printable
from pl_rl.networks.actor_critic import MLPActorCritic
from pl_rl.networks.description import network_from_description
from pl_rl.networks.layers import ACTIVATIONS
from pl_rl.ppo import PPO
from pl_rl.pretrained import read_weights
from pl_rl.pretrained.matching import fitting_settings
from pl_rl.resume.start import Start, find_start
from pl_rl.runs.directory import (
    COMMAND_FILE,
    LOG_ROOT,
    age_of,
    config_number,
    config_of_run,
    display_path,
    find_checkpoint,
    own_run,
)
from pl_rl.runs.trust import by_settings, checked_of_file, is_own
from pl_rl.trackers.words import check_package
from pl_rl.trainer import Trainer

TIME_LIMIT_STATUS = os.EX_TEMPFAIL
"""Exit status of a run that its time limit ended: the command is to be given again."""


CONFIG_HELP = (
    f"Path of a configuration file, or one shipped: {', '.join(Path(name).stem for name in packaged_configs())}."
)


class SaveConfig(SaveConfigCallback):
    """Writes a run's configuration to ``config.yaml``, and one that a resume changed to a file of its own beside it."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Choose a name that is not taken, unless the latest file says the same."""
        run = run_directory(trainer)
        if run is None or self.already_saved or not trainer.is_global_zero:
            return
        # Not the run's settings but this process's.
        self.config = self.config.clone()
        for name in ("config", "ckpt_path", "branch", "auto_resume"):
            self.config.pop(name, None)
        summary, latest = find_callback(trainer, RunSummary), config_of_run(run)
        if latest is not None:
            settings = parse_yaml(self.parser.dump(self.config, skip_none=False))
            self.already_saved = settings == read_yaml(latest)
            number = 1 + max(map(config_number, latest.parent.glob("config_resume*.yaml")), default=0)
            self.config_filename = f"config_resume{number}.yaml"
        if summary is not None:
            summary.config = latest if self.already_saved else run / self.config_filename
        # Beside its place first: half a configuration would be taken for the run's by every resume to come.
        name, self.config_filename = self.config_filename, ".config.partial"
        if not self.already_saved:
            partial = run / self.config_filename
            partial.unlink(missing_ok=True)
            self.parser.save(self.config, str(partial), skip_none=False, multifile=self.multifile)
            partial.replace(partial.with_name(name))
            self.already_saved = True


class CLI(LightningCLI):
    """LightningCLI for PPO, with a run's checkpoints, progress bar and summary."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser whose ``--config`` finds shipped configs."""
        parser = self.parser_class(**kwargs)
        parser.add_argument("-c", "--config", action=ConfigFile, help=CONFIG_HELP)
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What is saved and how often, and what a run starts from."""
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(EvaluationVideos, "eval")
        parser.add_lightning_class_args(PretrainedCheckpoint, "pretrained")
        parser.add_argument(
            "--pretrained.adopt_network",
            type=bool,
            default=False,
            help="Take the settings of the network from the file, over those of the command line and the config.",
        )

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        cast(Parser, parser).is_of_trainer = True
        parser.add_argument(
            "--help_trainer", action=TrainerHelp, help="Show the options of Lightning's Trainer and exit."
        )
        if subcommand == "predict":
            parser.add_argument("--render", action="store_true", help="Show the episodes in a window.")
            parser.add_argument("--video", type=Path | None, help="Folder for an MP4 file of each episode.")
            parser.add_argument("--gif", type=Path | None, help="Folder for an animated GIF of each episode.")
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, with what a checkpoint knows about its run beneath what the user says."""
        if not isinstance(args, list):
            raise UsageError(f"the command line must be a list of words, and is a {type(args).__name__}; pass a list")
        self.command = [arg for arg in args if not arg.startswith("--auto_resume")]
        self.config = parser.parse_args(with_whole_numbers(self._with_checkpoint(args)))

    def _with_checkpoint(self, args: list[str]) -> list[str]:
        """The arguments with the checkpoint's full path and, unless a config is given, the run's own."""
        self.start: Start | None = None
        if args[0] not in self._subcommand_parsers:
            return args
        given = setting(args, "ckpt_path")
        log_root = Path(setting(args, "trainer.default_root_dir") or ".", LOG_ROOT)
        auto_resume = str(setting(args, "auto_resume")).lower() == "true"
        if args[0] == "fit":
            self.start = find_start(given, auto_resume, self.command, log_root)
            path, checkpoint = self.start.path, self.start.checkpoint
        elif given is not None:
            path = find_checkpoint(given, log_root)
            checkpoint = read_checkpoint(path)
        else:
            path = None
        if path is None:
            return args
        if is_first() and (given is None or Path(given).absolute() != path):
            print(f"checkpoint: {display_path(path)}, saved {age_of(path)} ago", flush=True)
        unknown = sorted(map(str, checkpoint["hyper_parameters"].keys() - signature(PPO).parameters.keys()))
        if unknown:
            raise UsageError(
                f"{display_path(path)} has the setting {unknown[0]!r}, which pl_rl.PPO has not; go on with it in a "
                "script, by the class that it was saved from"
            )
        settings = checked_of_file(checkpoint["hyper_parameters"], path, names_said(args), by_settings, log_root)
        network_from_description(settings["network"])
        defaults = {name: dict(value) if isinstance(value, dict) else value for name, value in settings.items()}
        self._subcommand_parsers[args[0]].set_defaults({f"model.{name}": value for name, value in defaults.items()})
        # A run without logs once had no directory of its own, and what lies where it began is not its configuration.
        run = own_run(path, checkpoint)
        if run is not None and not checkpoint[LOGS_KEY] and not (run / COMMAND_FILE).is_file():
            run = None
        own_config = config_of_run(run) if run is not None else None
        if own_config is not None and option(args, "-c", "--config") is None:
            if is_own(own_config, log_root):
                args = [args[0], "--config", str(own_config), *args[1:]]
            elif is_first():
                print(
                    f"{display_path(own_config)} is not used, as it lies outside of {display_path(log_root)}; if you "
                    f"trust it, add --config {shlex.quote(display_path(own_config))}",
                    flush=True,
                )
        return [*args, "--ckpt_path", str(path)]

    def _parse_ckpt_path(self) -> None:
        """Nothing: the checkpoint's hyperparameters are defaults; LightningCLI would let them override the user."""

    def _set_seed(self) -> None:
        config = self.config[self.subcommand]
        if config.seed_everything is True:
            config.seed_everything = led("seed", lambda: secrets.randbelow(2**32))
            if is_first() and (
                config.get("ckpt_path") is None or config.get("branch")
            ):  # another run goes on with its own
                print(
                    f"seed: {config.seed_everything}, drawn; --seed_everything {config.seed_everything} repeats the run"
                )
        seed = self._get(self.config, "seed_everything")
        if not 0 <= seed < 2**32:  # False and True, which are no seed and any, lie within
            raise UsageError(f"seed_everything={seed} is no seed; use a number from 0 to {2**32 - 1}")
        super()._set_seed()

    def after_fit(self) -> None:
        """Tell a scheduler where a time limit ended a run that is not over."""
        timer = find_callback(self.trainer, Timer)
        left = None if timer is None else timer.time_remaining()
        if left is not None and left <= 0 and self.model.stop_reason is None:
            sys.exit(TIME_LIMIT_STATUS)

    def before_instantiate_classes(self) -> None:
        """Make the network as a file has it; leave no run directory behind where nothing is trained."""
        config = self.config[self.subcommand]
        if config.pretrained.pop("adopt_network") and config.pretrained.path is not None and config.ckpt_path is None:
            self._adopt_network(config)
        if self.subcommand == "fit":
            check_counted(config.eval.video_freq, config.model.eval_freq)  # before there is a directory
        else:
            config.trainer.logger = False
            if not config.trainer.callbacks:  # one of them may be a bar
                config.trainer.enable_progress_bar = False
            self.save_config_callback = None
        given = config.trainer.logger
        for logger in given if isinstance(given, list) else [given]:
            check_package(str(getattr(logger, "class_path", "")))

    def _adopt_network(self, config: Any) -> None:
        """Let the model have the settings that fit a file of weights; a resume's are in its checkpoint.

        Raises:
            UsageError: If the file cannot be read, or does not tell.
        """
        path = config.pretrained.path
        weights = read_weights(path)
        settings = fitting_settings(weights)
        network = config.model.network
        if not settings or not network.class_path.endswith(f".{MLPActorCritic.__name__}"):
            raise UsageError(
                f"{path!r} does not tell the settings of a {network.class_path}; leave out --pretrained.adopt_network"
            )
        if settings.get("activation") not in (None, *ACTIVATIONS):
            raise UsageError(
                f"{path!r} names the activation {str(settings['activation'])[:80]!r}, and a {network.class_path} has "
                f"{', '.join(ACTIVATIONS)}; leave out --pretrained.adopt_network"
            )
        network.init_args.update(Namespace(settings))
        statistics = config.pretrained.normalizer
        if isinstance(statistics, str) or (statistics and weights.normalizer is not None):
            config.model.norm_obs = settings["norm_obs"] = True
        words = ", ".join(f"{name}={value}" for name, value in settings.items())
        if is_first():
            print(printable(f"network: {words}, as in {display_path(path)}"), flush=True)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """The trainer with the callbacks that the verb needs."""
        trainer_config = {**self._get(self.config_init, "trainer"), **kwargs}
        # With every verb, as Lightning misses a callback that has a state in the checkpoint.
        callbacks: list[L.Callback] = [self._get(self.config_init, "pretrained")]
        if trainer_config["enable_progress_bar"] is not False and self.subcommand == "fit":
            callbacks.append(RunProgressBar())
        if trainer_config["enable_checkpointing"] is not False:
            callbacks.append(self._get(self.config_init, "checkpoint"))
        if self.subcommand == "fit":
            callbacks.append(RunSummary())
            videos = self._get(self.config_init, "eval")
            callbacks += [videos] if videos.video_freq else []  # else it is in no checkpoint
        try:
            trainer = cast(Trainer, self._instantiate_trainer(trainer_config, callbacks))
        except UsageError:
            raise
        except (ValueError, TypeError, RuntimeError, ImportError) as error:  # as Lightning refuses its arguments
            raise UsageError(f"the trainer cannot be made so: {' '.join(str(error).split())}") from error
        trainer.command, trainer.start = self.command, self.start
        return trainer

    def before_predict(self) -> None:
        """Tell the model where its episodes are drawn.

        Raises:
            UsageError: If that is two places.
        """
        config = self.config.predict
        ways = {"--render": config.render, "--video": config.video is not None, "--gif": config.gif is not None}
        given = [way for way, is_given in ways.items() if is_given]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} are ways to watch; leave all but one out")
        self.model.in_window, self.model.video_dir = config.render, config.video or config.gif
        self.model.video_format = "gif" if config.gif is not None else "mp4"

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's verbs, and their arguments that are no options: for data and for its own table."""
        return {verb: {*skipped, "verbose"} for verb, skipped in LightningCLI.subcommands().items()}

    def validate(self, model: PPO, **kwargs: Any) -> None:
        """Repeat an evaluation and print its statistics."""
        for logged in self.trainer.validate(model, verbose=False, **kwargs):
            print_statistics(logged, model.eval_episodes)

    def test(self, model: PPO, **kwargs: Any) -> None:
        """Evaluate on other episodes and print their statistics."""
        for logged in self.trainer.test(model, verbose=False, **kwargs):
            print_statistics(logged, model.eval_episodes)

    def predict(self, model: PPO, **kwargs: Any) -> None:
        """Play episodes and print their returns."""
        for episodes in self.trainer.predict(model, **kwargs) or []:
            print_episodes(cast(Episodes, episodes))
        if model.video_dir is not None:
            print(f"videos: {display_path(model.video_dir)}")
