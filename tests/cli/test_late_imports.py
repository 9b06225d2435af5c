"""What answers at once imports nothing that takes its time. Each in a process of its own, and without a clock."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from lightning.pytorch.cli import LightningCLI

import pl_rl
from pl_rl import cli
from pl_rl.cli.training import CLI
from pl_rl.networks import MLPActorCritic
from pl_rl.runs.trust import checked

REPOSITORY = Path(pl_rl.__file__).parents[1]
SLOW = ("torch", "lightning", "numpy", "gymnasium", "matplotlib", "tensorboard", "rich")


def python(code, *args):
    """What a new interpreter prints, of whose folder nothing is known."""
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code, *args], env=env, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


LOADED = f"print('loaded:', *(name for name in {SLOW} if name in sys.modules))"
ANSWER = f"""
import sys
from pl_rl.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    print("status", end.code)
{LOADED}
"""


@pytest.mark.parametrize(
    ("args", "status"),
    [
        ((), 2),
        (("fti",), 2),
        (("--help",), 0),
        (("--version",), 0),
        (("--version",), 0),
        (("plot", "--help"), 0),
        (("inspect", "--help"), 0),
        (("export", "--help"), 0),
        (("verify", "--help"), 0),
        (("plot", "--no_such_option"), 2),
        (("validate",), 2),
    ],
)
def test_what_needs_no_lightning_does_not_import_it(args, status):
    assert python(ANSWER, *args).endswith(f"status {status}\nloaded:\n")


def test_the_version_is_that_of_the_package():
    assert python(ANSWER, "--version").startswith(f"pl_rl {version('pl-rl')}\n")
    assert pl_rl.__version__ == version("pl-rl")


def test_the_package_is_imported_without_what_its_names_stand_for():
    names = "import sys, pl_rl; assert set(pl_rl.__all__) <= set(dir(pl_rl)); "
    assert python(names + LOADED) == "loaded:\n"


@pytest.mark.slow  # a process
def test_a_verb_of_the_trainer_imports_lightning_and_little_more():
    code = """
import sys
import lightning.pytorch.cli
before = set(sys.modules)
import pl_rl.cli.trainer_verbs
more = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(more - sys.stdlib_module_names))
"""
    assert python(code).split() == ["farama_notifications", "gymnasium", "pl_rl"]


@pytest.mark.slow  # processes
@pytest.mark.parametrize("imports", ["pl_rl.PPO", "main(['fit', '--help'])", "main(['inspect', 'nothing.ckpt'])"])
def test_no_garbage_is_collected_while_libraries_are_imported(imports):
    code = f"""
import gc, sys
import pl_rl
from pl_rl.cli import main
def note(phase, info):
    if phase == "start" and "torch" in sys.modules and not loaded():
        print("collected")
def loaded():
    return "lightning.pytorch" in sys.modules and not sys.modules["lightning.pytorch"].__spec__._initializing
gc.callbacks.append(note)
try:
    {imports}
except SystemExit:
    pass
gc.callbacks.clear()
print("loaded:", loaded(), gc.isenabled())
"""
    printed = python(code)
    assert "collected" not in printed
    assert printed.endswith("loaded: True True\n")


def test_each_public_name_is_what_its_module_has():
    everything = {}
    exec("from pl_rl import *", everything)
    assert set(pl_rl.__all__) <= everything.keys()
    assert all(everything[name].__name__ == name for name in pl_rl.__all__)
    assert pl_rl.callbacks.__name__ == "pl_rl.callbacks"
    with pytest.raises(AttributeError, match=r"module 'pl_rl' has no attribute 'Sarsa'"):
        pl_rl.Sarsa  # noqa: B018


def test_a_file_may_name_a_network_by_its_short_name_though_nobody_has_asked_for_it(monkeypatch):
    monkeypatch.delitem(vars(pl_rl), "MLPActorCritic", raising=False)
    network = {"class_path": "pl_rl.MLPActorCritic", "init_args": {}}
    assert checked({"network": network}) == {"network": network}
    assert pl_rl.MLPActorCritic is MLPActorCritic


def test_the_verbs_are_those_of_lightning_in_the_words_of_the_trainer():
    assert list(cli.TRAINER_VERBS) == list(LightningCLI.subcommands())
    for verb, description in cli.TRAINER_VERBS.items():
        assert getattr(pl_rl.Trainer, verb).__doc__.splitlines()[0] == description


def test_a_verb_makes_no_parser_of_another(monkeypatch, capsys):
    made, make = [], CLI._prepare_subcommand_parser

    def noted(self, trainer, verb, **settings):
        made.append(verb)
        return make(self, trainer, verb, **settings)

    monkeypatch.setattr(CLI, "_prepare_subcommand_parser", noted)
    with pytest.raises(SystemExit):
        cli.main(["fit", "--model.env", "CartPole-v1", "--print_config"])
    assert made == ["fit"]
