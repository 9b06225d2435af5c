"""Running a verb of Lightning's Trainer. To import this takes the seconds that it takes to import Lightning."""

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import ArgsType, LightningArgumentParser

from pl_rl.cli.parsing import PROG, Parser
from pl_rl.cli.training import CLI, SaveConfig
from pl_rl.errors import UsageError
from pl_rl.ppo import PPO
from pl_rl.trainer import Trainer

FLAGS = ("--branch", "--auto_resume")
"""Arguments that may stand without a value."""


class TrainerParser(Parser, LightningArgumentParser):
    """A parser to which LightningCLI can add the arguments of classes."""


def _cli_for(verb: str) -> type[CLI]:
    """A command line with a parser for one verb alone, as it takes a while to make one; for all if it is none."""
    verbs = CLI.subcommands()

    class OneVerb(CLI):
        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            return {verb: verbs[verb]} if verb in verbs else verbs

    return OneVerb


class _Parsers(Exception):
    """Carries the parsers of all verbs out of the command line, which is about to parse."""


def parsers() -> dict[str, LightningArgumentParser]:
    """The parser of each verb."""

    class Unparsed(CLI):
        def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
            raise _Parsers(self._subcommand_parsers)

    try:
        _make(Unparsed, [], "")
    except _Parsers as made:
        found: dict[str, LightningArgumentParser] = made.args[0]
        return found
    raise RuntimeError("the command line was not made")


def run(args: list[str], description: str) -> None:
    """Run a verb.

    Args:
        args: The verb and its arguments.
        description: Of the program.

    Raises:
        UsageError: If Lightning refuses what it is to do.
    """
    try:
        _make(_cli_for(args[0]), with_values(args), description)
    except MisconfigurationException as error:
        raise UsageError(str(error)) from error


def with_values(args: list[str]) -> list[str]:
    """Arguments in which each flag has its value, where jsonargparse asks for one: what follows, or ``true``."""
    valued: list[str] = []
    for arg, before in zip(args, ["", *args[:-1]], strict=True):
        if arg in FLAGS:
            valued.append(f"{arg}=true")
        elif before in FLAGS and arg.lower() in ("true", "false"):
            valued[-1] = f"{before}={arg}"
        else:
            valued.append(arg)
    return valued


def _make(cli: type[CLI], args: list[str], description: str) -> None:
    cli(
        PPO,
        save_config_callback=SaveConfig,
        trainer_class=Trainer,
        seed_everything_default=0,
        trainer_defaults={
            "accelerator": "cpu",
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
        },
        parser_class=TrainerParser,
        parser_kwargs={"prog": PROG, "allow_abbrev": False, "description": description},
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        args=args,
    )
