"""What the README says can be done is done here, as it stands there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"<!-- executed by tests/test_readme.py -->\n```python\n(.*?)```", README, re.DOTALL)
SHELL = [line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]


@pytest.mark.parametrize("code", PYTHON)
def test_python_examples_run(code):
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


def test_the_script_has_six_lines():
    assert len([line for line in PYTHON[0].splitlines() if line and not line.startswith("import ")]) <= 6


def test_the_test_command_is_the_one_that_ci_runs():
    test = next(line for line in SHELL if line.endswith("-m pytest -n auto"))
    ci = (ROOT / ".ci" / "run").read_text()
    assert '-m pip install -e ".[test]"' in test or 'pip install -e ".[test]"' in test
    assert 'pip" install --quiet -e ".[test]"' in ci
    assert ci.rstrip().endswith("-m pytest -n auto")


def test_pictures_exist():
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert len(pictures) >= 5
    assert all((ROOT / picture).is_file() for picture in pictures)


@pytest.mark.slow
def test_the_commands_run_one_after_another(tmp_path):
    commands = [line.partition("#")[0] for line in SHELL if "python -m pl_rl" in line]
    commands = [command.partition("&& .venv/bin/python ")[2] or command.partition("python ")[2] for command in commands]
    assert len(commands) == 8
    for command in commands:
        process = subprocess.run(
            [sys.executable, *shlex.split(command)], cwd=tmp_path, env={**os.environ}, capture_output=True, text=True
        )
        assert process.returncode == 0, f"{command}\n{process.stdout}\n{process.stderr}"
    for picture in ("iter_pretrain", "step_pretrain", "iter_resume", "step_resume"):
        assert (tmp_path / "lightning_logs" / "version_1" / f"evaluator_{picture}.png").is_file()
    assert list((tmp_path / "videos").glob("*.mp4"))
