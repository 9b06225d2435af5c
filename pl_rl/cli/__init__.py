"""The command line: ``python -m pl_rl VERB ...``.

What belongs here: options, help and exit statuses; nothing else knows jsonargparse and LightningCLI.
What does not: what a verb does (``trainer``, ``tools/``, ``deploy/``), which is imported by the verb that needs it.
"""

import argparse
import errno
import gc
import logging
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from pl_rl import __version__
from pl_rl.cli.completion import COMMAND, SHELLS, check_shell, completion_script
from pl_rl.cli.configs import packaged_configs
from pl_rl.cli.parsing import PROG, Parser, fail, option, setting
from pl_rl.cli.sentences import said_by_library
from pl_rl.cli.verbs import OWN_VERBS
from pl_rl.errors import RunFailure, UsageError
from pl_rl.imports import quick_imports
from pl_rl.runs.output import lasting_output, open_standard_descriptors

# Of the disk rather than of the program.
STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)

DESCRIPTION = "PPO whose runs can be stopped and continued."

# What each does, as its help says; those of Lightning's Trainer as the docstrings of :class:`pl_rl.Trainer` do.
TRAINER_VERBS = {
    "fit": "Train, or continue a run as if it had never stopped.",
    "validate": "Repeat the evaluation that training made at a checkpoint.",
    "test": "Evaluate a checkpoint on episodes that no choice was based on.",
    "predict": "Play episodes with the policy of a checkpoint.",
}
VERBS = {**TRAINER_VERBS, **{name: verb.description for name, verb in OWN_VERBS.items()}}


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: Arguments, those of the process by default.
    """
    args = sys.argv[1:] if args is None else args
    Parser.given = args
    open_standard_descriptors()
    _quieten_lightning()
    threading.excepthook = _quiet_about_the_disk
    with lasting_output():
        _run(args)


def _run(args: list[str]) -> None:
    try:
        _check_verb(args)
        if args[0] in OWN_VERBS:
            OWN_VERBS[args[0]].run(args[1:])
            return
        if args[0] in ("-h", "--help", "--version"):
            _parser_of_verbs().parse_args(args)
        if args[0].partition("=")[0] == "--print_completion":
            _print_completion(option(args, "--print_completion"))
            return
        # Late, as Lightning takes seconds.
        with _loading(), quick_imports():
            from pl_rl.cli.trainer_verbs import run

        gc.freeze()  # all that has been imported, which every collection in training would look through
        run(args, DESCRIPTION)
    except UsageError as error:
        fail(error, status=2)
    except RunFailure as error:
        for note in getattr(error, "__notes__", []):  # the traceback of an environment
            sys.stderr.write(f"{note}\n")
        fail(error, status=1)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            fail(f"{str(error.filename)[:80]!r}... is longer than a file system takes; use a shorter name", status=2)
        if error.errno not in STORAGE_ERRORS:
            raise
        fail(f"{error}; the checkpoints that are there are whole: continue with --ckpt_path last", status=1)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        sentence = said_by_library(error)
        if sentence is None:
            raise
        fail(sentence, status=2)


def _print_completion(shell: str | None) -> None:
    shell = check_shell(shell)
    from pl_rl.cli.trainer_verbs import parsers

    own = {name: verb.parser() for name, verb in OWN_VERBS.items()}
    print(completion_script(shell, VERBS, {**parsers(), **own}), end="")


@contextmanager
def _loading() -> Iterator[None]:
    """Say at once that something happens, where somebody looks on."""
    if not sys.stderr.isatty():
        yield
        return
    sys.stderr.write("loading ...")
    sys.stderr.flush()
    try:
        yield
    finally:
        sys.stderr.write("\r           \r")


def _parser_of_verbs() -> argparse.ArgumentParser:
    """For what can be asked without a verb: each verb has a parser of its own."""
    shipped = [name.removesuffix(".yaml") for name in packaged_configs()]
    parser = argparse.ArgumentParser(
        prog=PROG,
        usage="%(prog)s [-h] [--version] [--print_completion SHELL] VERB ...",
        description=DESCRIPTION,
        epilog=f"{PROG} VERB --help says more. Shipped for --config: {', '.join(shipped)}.",
    )
    parser.add_argument("--version", action="version", version=f"pl_rl {__version__}")
    parser.add_argument(
        "--print_completion", metavar="SHELL", help=f"Print what makes {' or '.join(SHELLS)} complete {COMMAND}."
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for name, description in VERBS.items():
        verbs.add_parser(name, help=description)
    return parser


def _check_verb(args: list[str]) -> None:
    """Refuse an unknown verb, and an evaluation of a policy that nobody trained.

    Raises:
        UsageError: For either.
    """
    if not args or (args[0] not in VERBS and not args[0].startswith("-")):
        given = f"there is no verb {args[0]!r}" if args else "a verb is missing"
        raise UsageError(f"{given}; the verbs are {', '.join(VERBS)}")
    asks = {"-h", "--help", "--help_trainer", "--print_config"}.intersection(arg.partition("=")[0] for arg in args)
    if args[0] in ("validate", "test", "predict") and not asks and setting(args, "ckpt_path") is None:
        raise UsageError(f"{args[0]} needs a trained policy; add --ckpt_path last, or the path of a checkpoint")


def _quiet_about_the_disk(failure: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread cannot write: that is raised where the log is next written or flushed, and said there."""
    quiet = (*STORAGE_ERRORS, errno.ENOENT)  # the folder of the log is gone
    if not (isinstance(failure.exc_value, OSError) and failure.exc_value.errno in quiet):
        threading.__excepthook__(failure)


def _quieten_lightning() -> None:
    """Leave out Lightning's advertisements and the devices that are not used."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(
        lambda record: not re.match(r"💡|GPU avail|TPU avail|HPU avail|Restor|Loaded model", record.getMessage())
    )
    logger.addFilter(lambda record: "distributed_backend=" not in record.getMessage())
    for name in ("seed", "distributed"):
        logging.getLogger(f"lightning.fabric.utilities.{name}").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", r".*LeafSpec", category=FutureWarning)
