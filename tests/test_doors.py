"""The table of doors and places is whole: what is added to the package has to be added there too."""

import ast
import dataclasses
import inspect
import os
import re
import shutil
import sys
from pathlib import Path

import gymnasium as gym
import pytest

import pl_rl
from pl_rl import cli
from pl_rl.envs import EnvConfig
from pl_rl.runs import trust
from tests import doors, places
from tests.test_structure import MODULES


def test_every_verb_is_a_door():
    named = {name.split()[0] for name in (*doors.DOORS_OF_A_RUN, *doors.DOORS_OF_PROCESSES)}
    assert named >= doors.VERBS


def test_the_published_table_has_every_door():
    text = Path(__file__).parents[1].joinpath(".github/SECURITY.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]
    names = [*doors.DOORS_OF_A_RUN, *doors.DOORS_OF_A_HUB_FOLDER, *doors.DOORS_OF_WEIGHTS]
    assert [row[0] for row in rows[1:]] == names
    for row in rows[1:]:
        assert sum(map(int, row[1:4])) == len(doors.places_of(row[0])) and row[4:] == ["0", "0", "0"]


READING = {
    "_read", "check_content", "load_module", "load_sound", "load_sound_from", "open_weights", "read_checkpoint",
    "read_trained", "read_weights", "read_yaml", "safe_load",
}  # fmt: skip
# Modules that read what may be a stranger's, and the doors, or functions behind doors, that lead to them.
MODULES_THAT_READ = {
    "pl_rl.callbacks.pretrained": "fit --pretrained.path",
    "pl_rl.checkpoints.saving": "compares a file with what was written",
    "pl_rl.checkpoints.compatibility": "compares what Lightning has read, by all of its doors",
    "pl_rl.checkpoints.format": "read_checkpoint, by all others",
    "pl_rl.cli.parsing": "--config, which the user gives",
    "pl_rl.cli.training": "fit, validate, test, predict",
    "pl_rl.cli.trust": "--config, which the user gives",
    "pl_rl.deploy.export": "export",
    "pl_rl.deploy.hub": "HubPolicy.from_checkpoint",
    "pl_rl.tools.aggregation": "plot",
    "pl_rl.tools.inspection": "inspect",
    "pl_rl.resume.loading": "PPO.load_from_checkpoint",
    "pl_rl.deploy.loading": "TrainedPolicy, HubPolicy.from_pretrained",
    "pl_rl.deploy.policy": "TrainedPolicy",
    "pl_rl.resume.resumable": "PPO.load_from_checkpoint",
    "pl_rl.resume.start": "pl_rl.Trainer.fit",
    "pl_rl.runs.directory": "counters of checkpoints, the command that began a run",
    "pl_rl.tools.verification": "verify",
    "pl_rl.pretrained.reading": "read_weights",
    "pl_rl.pretrained.files": "read_weights",
    "pl_rl.pretrained.formats.own_checkpoint": "read_weights",
    "pl_rl.pretrained.formats.vec_normalize": "fit --pretrained.normalizer",
}
# What imports by name, and modules that ask whether an optional package is there.
IMPORTING = {"import_module", "__import__", "find_spec", "load_env_creator"}
LOOKING_FOR_PACKAGES = {
    *("pl_rl.algorithm.drawing", "pl_rl.cli.completion", "pl_rl.deploy.export", "pl_rl.runs.trust"),
    "pl_rl.trackers.words",
}


def calls_in(module):
    tree = ast.parse(MODULES[module].read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [(getattr(call.func, "id", getattr(call.func, "attr", "")), call) for call in calls]


@pytest.mark.slow
def test_every_module_that_reads_files_is_behind_a_door():
    reading = {module for module in MODULES if any(name in READING for name, _ in calls_in(module))}
    assert reading <= set(MODULES_THAT_READ)


@pytest.mark.slow
def test_what_makes_things_of_plain_data_asks_the_guard():
    importing = {module for module in MODULES if any(name in IMPORTING for name, _ in calls_in(module))}
    # What pl_rl imports by name is its own.
    assert importing == {"pl_rl", "pl_rl.networks.description", "pl_rl.envs.make", *LOOKING_FOR_PACKAGES}
    for module in MODULES:
        for name, call in calls_in(module):
            unpacks = any(keyword.arg is None for keyword in call.keywords)
            if name == "network_from_description" or (name == "EnvConfig" and unpacks):
                assert "checked" in MODULES[module].read_text(), f"{module} calls {name}"


def test_every_setting_that_can_name_something_is_a_place():
    named = " ".join(places.IN_SETTINGS)
    plain = {int, float, bool, float | None, bool | None}
    for name, parameter in inspect.signature(pl_rl.PPO).parameters.items():
        assert parameter.annotation in plain or f"{name} as text" in named, name
    fields = {field.name: field.type for field in dataclasses.fields(EnvConfig)}
    assert set(fields) == trust.ENV_SETTINGS
    for name, annotation in fields.items():
        assert annotation in plain or f"env.{name}" in named, name


def test_wrappers_that_are_allowed_take_numbers_and_words():
    for module, names in trust.WRAPPERS.items():
        if module == "minigrid.wrappers":
            pytest.importorskip("minigrid")
        __import__(module)
        for name in names.split():
            cls = vars(sys.modules[module])[name]
            assert issubclass(cls, gym.Wrapper)
            for parameter in list(inspect.signature(cls).parameters.values())[1:]:
                said = f"{parameter.name}: {parameter.annotation}"
                assert not re.search("Callable|func|path|folder|file|Space", said), (name, said)


WRITING = {
    "plot": ["plot", str(places.RUN)],
    "export --to state_dict": ["export", str(places.CHECKPOINT), "--to", "state_dict"],
    "export --to safetensors": ["export", str(places.CHECKPOINT), "--to", "safetensors"],
    "predict --video": [
        *("predict", "--ckpt_path", str(places.CHECKPOINT), "--video", str(places.RUN), "--model.eval_episodes", "2"),
        *("--trainer.enable_progress_bar", "false"),
    ],
    "fit": [
        *("fit", "--ckpt_path", str(places.CHECKPOINT), "--trainer.max_epochs", "2"),
        *("--trainer.enable_progress_bar", "false"),
    ],
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_no_verb_writes_through_a_link_in_a_strangers_run(tmp_path, monkeypatch):
    def fresh(name):
        shutil.copytree("prepared", name)
        monkeypatch.chdir(tmp_path / name)

    (tmp_path / "prepared").mkdir()
    monkeypatch.chdir(tmp_path / "prepared")
    doors.prepare()
    for verb, args in WRITING.items():
        monkeypatch.chdir(tmp_path)
        fresh(verb.replace("/", "-"))
        before = {path: path.read_bytes() for path in places.RUN.rglob("*") if path.is_file()}
        assert doors.enter(lambda args=args: cli.main(args)) == "done", verb
        after = [path for path in places.RUN.rglob("*") if path.is_file()]
        written = [path for path in after if before.get(path) != path.read_bytes()]
        assert written, verb
        for plant in (os.symlink, os.link):
            monkeypatch.chdir(tmp_path)
            fresh(f"{verb} {plant.__name__}")
            planted = []
            for path in written:
                for name in (path, path.with_name(f".{path.name}.partial")):
                    if not name.exists() and name.parent.is_dir():
                        planted.append(Path(f"precious-{len(planted)}").absolute())
                        planted[-1].write_text("mine")
                        plant(planted[-1], name)
            assert doors.enter(lambda args=args: cli.main(args)) in ("done", "refused"), verb
            assert planted and all(path.read_text() == "mine" for path in planted), (verb, plant)
