"""The command line: ``python -m pl_rl VERB ...``.

The only place that knows jsonargparse and LightningCLI.
"""

import argparse
import contextlib
import difflib
import logging
import re
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn, cast

import lightning as L
import yaml
from jsonargparse import ActionConfigFile, ArgumentParser
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from rich.console import Console
from rich.table import Table

from pl_rl import plotting
from pl_rl.callbacks import RunCheckpoint, RunProgressBar, RunSummary
from pl_rl.checkpoints import read_checkpoint
from pl_rl.errors import RunFailure, UsageError
from pl_rl.evaluation import Episodes
from pl_rl.inspection import describe_checkpoint
from pl_rl.ppo import PPO
from pl_rl.runs import LOG_ROOT, config_of_run, find_checkpoint, find_config, run_of_checkpoint, shown
from pl_rl.trainer import Trainer
from pl_rl.verification import verify

PROG = "python -m pl_rl"
DESCRIPTION = """PPO whose runs can be stopped and continued.

Further verbs: plot RUN_DIR ... draws learning curves, inspect CKPT says what a checkpoint holds,
verify --config FILE proves for a configuration that a killed run goes on bit for bit."""
VERIFY_DESCRIPTION = (
    "Kill a run at random moments, resume it, and compare with one left alone. Takes all arguments of fit."
)


class ConfigFile(ActionConfigFile):
    """``--config`` that also knows the configs shipped with the package."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Parse the file."""
        self.apply_config(parser, namespace, self.dest, str(find_config(values)))


class Parser(LightningArgumentParser):
    """Says in one sentence what is wrong with an argument."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the sentence and exit with status 2."""
        options = [option for parser in self._parsers() for option in parser._option_string_actions]
        _fail(_sentence(message, options), status=2)

    def _parsers(self) -> list[ArgumentParser]:
        subcommands = self._subcommands_action
        return [self, *(subcommands.choices.values() if subcommands else [])]


class SaveConfig(SaveConfigCallback):
    """Writes a run's configuration to ``config.yaml``, and one that a resume changed to a file of its own beside it."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Choose a name that is not taken, unless the latest file says the same."""
        if trainer.log_dir is None or self.already_saved:
            return
        # Not the run's settings but this process's.
        self.config = self.config.clone()
        for name in ("config", "ckpt_path", "branch"):
            self.config.pop(name, None)
        latest = config_of_run(Path(trainer.log_dir))
        if latest is not None:
            settings = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
            self.already_saved = settings == yaml.safe_load(latest.read_text())
            number = 1 + len(list(latest.parent.glob("config_resume*.yaml")))
            self.config_filename = f"config_resume{number}.yaml"
        super().setup(trainer, pl_module, stage)


class CLI(LightningCLI):
    """LightningCLI for PPO, with a run's checkpoints, progress bar and summary."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser whose ``--config`` finds shipped configs."""
        parser = self.parser_class(**kwargs)
        parser.add_argument("-c", "--config", action=ConfigFile, help="Path or shipped name of a configuration file.")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What is saved, and how often."""
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "predict":
            parser.add_argument("--video", type=Path | None, help="Folder for an MP4 file of each episode.")
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, with what a checkpoint knows about its run beneath what the user says."""
        assert isinstance(args, list)
        self.config = parser.parse_args(self._with_checkpoint(args))

    def _with_checkpoint(self, args: list[str]) -> list[str]:
        """The arguments with the checkpoint's full path and, unless a config is given, the run's own."""
        given = _option(args, "--ckpt_path")
        if given is None or args[0] not in self._subcommand_parsers:
            return args
        checkpoint = find_checkpoint(given, _root_dir(args) / LOG_ROOT)
        if Path(given).absolute() != checkpoint:
            print(f"checkpoint: {shown(checkpoint)}", flush=True)
        hyperparameters = read_checkpoint(checkpoint)["hyper_parameters"]
        parser = self._subcommand_parsers[args[0]]
        parser.set_defaults({f"model.{name}": value for name, value in hyperparameters.items()})
        run = run_of_checkpoint(checkpoint)
        own_config = config_of_run(run) if run is not None else None
        if own_config is not None and _option(args, "-c", "--config") is None:
            args = [args[0], "--config", str(own_config), *args[1:]]
        return [*args, "--ckpt_path", str(checkpoint)]

    def _parse_ckpt_path(self) -> None:
        """Nothing: the checkpoint's hyperparameters are defaults; LightningCLI would let them override the user."""

    def before_instantiate_classes(self) -> None:
        """Leave no run directory behind where nothing is trained."""
        if self.subcommand != "fit":
            self.config[self.subcommand].trainer.logger = False
            self.save_config_callback = None

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """The trainer with the callbacks that the verb needs."""
        trainer_config = {**self._get(self.config_init, "trainer"), **kwargs}
        callbacks: list[L.Callback] = []
        if trainer_config["enable_progress_bar"] is not False and self.subcommand == "fit":
            callbacks.append(RunProgressBar())
        if trainer_config["enable_checkpointing"] is not False:
            callbacks.append(self._get(self.config_init, "checkpoint"))
        if self.subcommand == "fit":
            callbacks.append(RunSummary())
        return self._instantiate_trainer(trainer_config, callbacks)

    def before_predict(self) -> None:
        """Tell the model where videos go."""
        self.model.video_dir = self.config.predict.video

    def predict(self, model: PPO, **kwargs: Any) -> None:
        """Play episodes and print their returns."""
        for episodes in self.trainer.predict(model, **kwargs) or []:
            _print_episodes(cast(Episodes, episodes))
        if model.video_dir is not None:
            print(f"videos: {shown(model.video_dir)}")


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: Arguments, those of the process by default.
    """
    args = sys.argv[1:] if args is None else args
    _quieten_lightning()
    try:
        _check_verb(args)
        if args[0] in OWN_VERBS:
            OWN_VERBS[args[0]](args[1:])
            return
        # A flag, where jsonargparse asks for a value.
        args = ["--branch=true" if arg == "--branch" else arg for arg in args]
        CLI(
            PPO,
            save_config_callback=SaveConfig,
            trainer_class=Trainer,
            seed_everything_default=0,
            trainer_defaults={
                "accelerator": "cpu",
                "enable_model_summary": False,
                "num_sanity_val_steps": 0,
            },
            parser_class=Parser,
            parser_kwargs={"prog": PROG, "allow_abbrev": False, "description": DESCRIPTION},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args,
        )
    except (UsageError, MisconfigurationException) as error:
        _fail(error, status=2)
    except RunFailure as error:
        _fail(error, status=1)


def _check_verb(args: list[str]) -> None:
    """Refuse an unknown verb, and an evaluation of a policy that nobody trained.

    Raises:
        UsageError: For either.
    """
    verbs = [*LightningCLI.subcommands(), *OWN_VERBS]
    if not args or (args[0] not in verbs and not args[0].startswith("-")):
        given = f"there is no verb {args[0]!r}" if args else "a verb is missing"
        raise UsageError(f"{given}; the verbs are {', '.join(verbs)}")
    asks = {"-h", "--help", "--print_config"}.intersection(arg.partition("=")[0] for arg in args)
    if args[0] in ("validate", "test", "predict") and not asks and _option(args, "--ckpt_path") is None:
        raise UsageError(f"{args[0]} needs a trained policy; add --ckpt_path last, or the path of a checkpoint")


def _root_dir(args: list[str]) -> Path:
    """Where runs are, as far as it can be told before parsing."""
    given = _option(args, "--trainer.default_root_dir")
    config = _option(args, "-c", "--config")
    if given is None and config is not None:
        with contextlib.suppress(yaml.YAMLError, AttributeError):
            given = yaml.safe_load(find_config(config).read_text()).get("trainer", {}).get("default_root_dir")
    return Path(given or ".")


def _option(args: list[str], *names: str) -> str | None:
    """The value of an option, as far as it can be told before parsing."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    peek.add_argument(*names, dest="value")
    value: str | None = peek.parse_known_args(args)[0].value
    return value


def _plot(args: list[str]) -> None:
    parser = Parser(prog=f"{PROG} plot", description="Draw the evaluation curves of runs as PNG files.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="Run directories (version_N).")
    parser.add_argument("--output", type=Path | None, help="Folder for the files; the first run's by default.")
    config = parser.parse_args(args)
    for path in plotting.plot_runs(config.runs, config.output or config.runs[0]):
        print(shown(path))


def _verify(args: list[str]) -> None:
    parser = argparse.ArgumentParser(prog=f"{PROG} verify", description=VERIFY_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--iterations", type=int, default=30, help="Length of each run (default: 30).")
    parser.add_argument("--kills", type=int, default=3, help="How often to kill (default: 3).")
    options, fit_args = parser.parse_known_args(args)
    if not 1 <= options.kills < options.iterations:
        raise UsageError(
            f"--kills {options.kills} does not fit into --iterations {options.iterations}; use at least one kill and "
            "more iterations than kills"
        )
    if not fit_args:
        raise UsageError("verify needs what fit would be given; add --config FILE")
    result = verify(fit_args, options.iterations, options.kills)
    table = Table("component", "killed and resumed against uninterrupted")
    for component, difference in result.differences.items():
        table.add_row(component, "identical" if difference is None else difference)
    console = Console()
    console.print(table)
    for remark in result.remarks:
        console.print(f"not exact: {remark}", highlight=False, soft_wrap=True)
    moments = ", ".join(map(str, result.killed_after))
    different = [component for component, difference in result.differences.items() if difference is not None]
    if different:
        raise RunFailure(f"killed after iterations {moments}, the run went on differently: {', '.join(different)}")
    print(f"Killed after iterations {moments}, the run went on bit for bit.")


def _inspect(args: list[str]) -> None:
    parser = Parser(prog=f"{PROG} inspect", description="Say what a checkpoint holds.")
    parser.add_argument("checkpoint", metavar="CKPT", help="Path, or the name of one in the newest run (last, best).")
    table = Table(show_header=False)
    for name, value in describe_checkpoint(find_checkpoint(parser.parse_args(args).checkpoint)):
        table.add_row(name, value)
    Console().print(table)


OWN_VERBS = {"plot": _plot, "inspect": _inspect, "verify": _verify}


def _print_episodes(episodes: Episodes) -> None:
    table = Table("episode", "return", "length")
    for number, (episode_return, length) in enumerate(zip(*episodes, strict=True)):
        table.add_row(str(number), f"{episode_return:.2f}", f"{length:,}")
    statistics = episodes.statistics()
    table.add_section()
    table.add_row("mean", f"{statistics['return_mean']:.2f}", f"{statistics['length_mean']:,.1f}")
    Console().print(table)


def _sentence(message: str, options: list[str]) -> str:
    """The parser's message on one line, with the nearest option where one is unknown."""
    sentence = " ".join(message.split())
    if "arguments are required" in sentence and "model.env" in sentence:
        return "no environment is named; add --model.env ID or --config FILE"
    # The type of a network factory, spelled out, helps nobody.
    sentence = re.sub(r"Type collections\.abc\.Callable\S.* expects a function or", "expects", sentence)
    unknown = re.search(r"(?:does not accept option|[Uu]nrecognized arguments:|Unknown option) '?-*([\w.]+)", sentence)
    if unknown is None:
        return sentence
    settings = [option for option in options if not any(other.startswith(f"{option}.") for other in options)]
    nearest = difflib.get_close_matches(f"--{unknown[1]}", settings, n=1, cutoff=0.75)
    return f"{sentence}; did you mean {nearest[0]}?" if nearest else sentence


def _fail(error: object, status: int) -> NoReturn:
    sys.stderr.write(f"error: {error}\n")
    sys.exit(status)


def _quieten_lightning() -> None:
    """Leave out Lightning's advertisements and the devices that are not used."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(lambda record: not re.match(r"💡|GPU available|TPU available|HPU available", record.getMessage()))
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", r".*LeafSpec", category=FutureWarning)
