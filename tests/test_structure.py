"""How the package hangs together."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import pl_rl

PACKAGE = Path(pl_rl.__file__).parent


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(name):
    """The modules that a module's code names in its import statements, wherever they stand."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            # ``from package import name`` imports a module where there is one of this name.
            found |= {
                f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in MODULES else node.module
                for alias in node.names
                if alias.name != "__version__"  # which the package has before anything else
            }
    return found


@pytest.mark.slow
def test_imports_have_no_cycle():
    graph = {name: imports_of(name) & set(MODULES) for name in MODULES}
    assert len(graph["pl_rl.ppo"]) > 5
    # Raises CycleError, which names the modules.
    TopologicalSorter(graph).prepare()


# From the lowest up: a module imports from its own room and from those before it. Names of folders and modules.
ROOMS = [
    *(
        "errors",
        "imports",
        "signals",
        "files",
        "seeding",
        "networks",
        "envs",
        "algorithm",
        "distributed",
        "compiled",
        "agent",
        "checkpoints",
    ),
    *(
        "checkpoints",
        "runs",
        "trackers",
        "pretrained",
        "callbacks",
        "resume",
        "ppo",
        "trainer",
        "deploy",
        "tools",
        "cli",
    ),
    *("__init__", "__main__"),
]


def room_of(name):
    return name.split(".")[1] if "." in name else "__init__"


def test_rooms_import_from_lower_rooms_only():
    assert {room_of(name) for name in MODULES} == set(ROOMS)
    upwards = [
        (name, imported)
        for name in MODULES
        for imported in imports_of(name) & set(MODULES)
        if ROOMS.index(room_of(imported)) > ROOMS.index(room_of(name))
    ]
    assert not upwards


def test_each_room_says_what_belongs_there():
    for name, path in MODULES.items():
        if path.name == "__init__.py" and name not in ("pl_rl", "pl_rl.compiled.generator"):
            words = ast.get_docstring(ast.parse(path.read_text()))
            assert "What belongs here:" in words and "What does not:" in words, name


@pytest.mark.slow
def test_only_the_command_line_knows_the_argument_parser():
    knowing = {
        name for name in MODULES if any("jsonargparse" in i or i == "lightning.pytorch.cli" for i in imports_of(name))
    }
    assert knowing and all(name.split(".")[:2] == ["pl_rl", "cli"] for name in knowing)


def test_the_mathematics_depends_on_nothing_but_torch():
    assert {name.split(".")[0] for name in imports_of("pl_rl.algorithm.functional")} == {"torch"}


def test_the_map_names_every_module():
    text = (PACKAGE / "README.md").read_text()
    table = text.split("| module | holds |\n", 1)[1].split("\n\n", 1)[0]
    cells = [row.split("|")[1] for row in table.splitlines()]
    named = [name.rstrip("/") for cell in cells for name in re.findall("`(.+?)`", cell)]
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert sorted(named) == sorted(folders | modules)


GUARDS = [
    "algorithm.acting", "algorithm.rollout", "algorithm.updates", "compiled.acting", "compiled.adam",
    "compiled.backend", "compiled.function", "compiled.learner", "compiled.module_state", "compiled.updates",
    "envs.workers",
]  # fmt: skip


@pytest.mark.parametrize("name", GUARDS)
def test_what_guards_memory_is_no_assertion(name):
    """``python -O`` takes assertions out."""
    tree = ast.parse(MODULES[f"pl_rl.{name}"].read_text())
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
