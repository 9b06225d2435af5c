"""What a page says can be done is done here, as it stands there.

The fenced blocks of a page are executed from its top to its end in one folder, in which ``tests`` is the repository's:
``python`` in this process, ``bash`` line by line, ``yaml`` as a configuration file that has to parse. A comment before
a block can say otherwise::

    <!-- not executed: REASON -->
    <!-- executed with ARGUMENTS -->    (a shorter run: they are added to its commands)

Blocks of ``text``, or of no language, are output and drawings.
"""

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

from pl_rl import cli
from tests import reference

ROOT = Path(__file__).parents[1]
FOLDERS = [".github", "configs", "pl_rl", "tests"]
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
README = ROOT / "README.md"
LANGUAGES = {"python", "bash", "yaml", "text", ""}
REASON, ADDED = "not executed: ", "executed with "
# What commands of blocks and of sentences begin with.
COMMAND = re.compile(r"(\.venv/bin/)?(python3?|pip|ruff|mypy|pytest|cp|git|pl-rl)\b")


class Block(NamedTuple):
    """A fenced block."""

    language: str
    code: str
    remark: str
    """What the comment before it says."""

    @property
    def is_executed(self):
        return self.language in ("python", "bash", "yaml") and not self.remark.startswith(REASON)

    @property
    def added(self):
        return self.remark.removeprefix(ADDED) if self.remark.startswith(ADDED) else ""

    @property
    def commands(self):
        """Lines of shell without comments, those that are continued as one."""
        lines = self.code.replace("\\\n", " ").splitlines()
        return [line for line in lines if line.strip() and not line.startswith("#")]


def blocks_of(page):
    found = re.findall(r"(?:<!-- ([^\n]*) -->\n)?^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [Block(language, code, remark) for remark, language, code in found]


def prose_of(page):
    """A page without its blocks and comments."""
    return re.sub(r"^```.*?^```$|<!--.*?-->", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def name_of(page):
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a page's commands run: the files of the tests, which pages name, are there."""
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def run_in_shell(command):
    process = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert process.returncode == 0, f"{command}\n{process.stdout}\n{process.stderr}"


def run_here(arguments):
    """A command of pl_rl in this process, which has imported it already."""
    try:
        cli.main(arguments)
    except SystemExit as end:
        assert end.code in (None, 0), arguments


def execute(block, server):
    if block.language == "python":
        exec(compile(block.code, "page", "exec"), {"__name__": "page"})
        return
    if block.language == "yaml":
        Path("page.yaml").write_text(block.code)
        run_here(["fit", "--config", "page.yaml", "--print_config"])
        return
    for command in block.commands:
        execute_command(command, server, block.added)


def execute_command(command, server, added=""):
    command, words = command.partition(" #")[0], shlex.split(command, comments=True)
    number = next(number for number, word in enumerate(words) if "=" not in word)
    variables, words = dict(word.split("=", 1) for word in words[:number]), words[number:]
    if words[:2] != ["python", "-m"] or {"&&", "|", ">"} & set(words):
        run_in_shell(command)
    elif words[2] == "pl_rl" and not variables:
        run_here(words[3:] + (shlex.split(added) if words[3] == "fit" else []))
    else:
        words = [sys.executable, *words[1:], *shlex.split(added)]
        done = server.run(words, env={**os.environ, **variables})
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


OTHERS = [page for page in PAGES if page != README and any(block.is_executed for block in blocks_of(page))]


# Packages of extras that a page's commands need.
NEEDED = {
    "README.md": ["moviepy"],
    "configs/README.md": ["mujoco"],
    "pl_rl/deploy/README.md": ["huggingface_hub", "onnxruntime", "onnxscript", "safetensors"],
    "pl_rl/runs/README.md": ["mlflow", "trackio", "wandb"],
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", OTHERS, ids=name_of)
def test_what_a_page_shows_works(page, folder, warm, warm_server):
    for package in NEEDED.get(name_of(page), []):
        pytest.importorskip(package)
    for block in blocks_of(page):
        if block.is_executed:
            execute(block, warm_server)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_the_readme_shows_works(folder, warm, warm_server):
    for package in NEEDED["README.md"]:
        pytest.importorskip(package)
    for block in blocks_of(README):
        if block.language == "python":
            execute(block, warm_server)
        for command in block.commands if block.language == "bash" else []:
            set_up, _, command_after = command.rpartition("&& .venv/bin/")
            if not set_up:
                execute_command(command, warm_server)
            elif "pytest" not in command:
                run_in_shell(command_after)
    for picture in ("iter_pretrain", "step_pretrain", "iter_resume", "step_resume"):
        assert Path("lightning_logs", "version_1", f"evaluator_{picture}.png").is_file()
    assert list(Path("videos").glob("*.mp4"))


PYTHON = [block.code for block in blocks_of(README) if block.language == "python"]


@pytest.mark.slow
@pytest.mark.parametrize("code", [code for code in PYTHON if "load_policy" not in code])
def test_python_of_the_readme_that_needs_no_run_works(code):
    exec(compile(code, "README.md", "exec"), {"__name__": "page"})


def test_the_script_has_six_lines():
    assert len([line for line in PYTHON[0].splitlines() if line and not line.startswith("import ")]) <= 6


def test_the_set_up_commands_are_the_first_and_the_test_is_the_one_that_ci_runs():
    train, test = (block.commands[0] for block in blocks_of(README)[:2])
    venv = "python3 -m venv .venv && .venv/bin/pip install -e "
    assert train == f'{venv}".[video]" && .venv/bin/python -m pl_rl fit --config cartpole.yaml'
    assert test == f'{venv}".[test]" && .venv/bin/python -m pytest -n auto'
    ci = (ROOT / ".ci" / "run").read_text()
    assert 'pip" install --quiet -e ".[test]"' in ci
    assert ci.rstrip().endswith("-m pytest -n auto")


def test_the_readme_is_a_door():
    text = README.read_text()
    assert len(text.splitlines()) <= 150 and len(text.split()) <= 1500
    for page in PAGES:
        if page.is_relative_to(ROOT / "pl_rl") or page.parent in (ROOT / "configs", ROOT / "tests/benchmarks"):
            assert f"({name_of(page)}" in text, f"README.md does not lead to {name_of(page)}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_is_executed_or_says_why_not(page):
    for block in blocks_of(page):
        assert block.language in LANGUAGES, block
        assert not block.remark.startswith(REASON) or len(block.remark) > len(REASON), block
        assert not block.remark.startswith("executed") or block.added, block
        assert all((ROOT / test).is_file() for test in re.findall(r"tests/[\w/]+\.py", block.remark)), block
        if block.language in ("text", ""):
            assert not [line for line in block.code.splitlines() if COMMAND.match(line)], block
        for module in re.findall(r"python -m ([\w.]+)", block.code):
            assert find_spec(module), f"{name_of(page)} runs {module}"
    shown = {line.strip() for block in blocks_of(page) for line in block.code.splitlines()}
    for command in re.findall(r"`(python -m [\w.]+ [^`]+)`", prose_of(page)):
        assert any(line.startswith(command) for line in shown), f"{name_of(page)}: {command} is in no block"


def anchors_of(page):
    """The names of a page's headings in links, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_pictures_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.is_file() and there.is_relative_to(ROOT), f"{name_of(page)}: {target}"
        assert not anchor or anchor in anchors_of(there), f"{name_of(page)}: {target}"


def test_every_picture_is_shown_beside_it():
    shown = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text())
    }
    pictures = {path for folder in FOLDERS for path in (ROOT / folder).rglob("*.png")}
    assert len(pictures) >= 11 and shown == pictures
    assert all((picture.parent / "README.md").is_file() for picture in pictures)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name_of)
def test_lines_are_short(page):
    """But for rows of tables, which cannot be broken."""
    long = [line for line in page.read_text().splitlines() if len(line) > 120 and not line.startswith("|")]
    assert not long


def test_the_reference_is_that_of_the_signatures():
    assert reference.PAGE.read_text() == reference.render(), "run python -m tests.reference"
