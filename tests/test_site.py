"""The documentation site leaves out no page and no public name; ``mkdocs build --strict`` (.ci/run) checks the rest."""

import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SITE = ROOT / ".github" / "site"
ROOMS = {
    "index": "pl_rl",
    **{room: f"pl_rl.{room}" for room in ("callbacks", "deploy", "envs", "networks", "pretrained")},
}


@pytest.mark.parametrize("page", ROOMS)
def test_the_api_page_of_a_room_has_all_its_public_names(page):
    described = re.findall(r"^::: ([\w.]+)$", (SITE / "docs" / "api" / f"{page}.md").read_text(), re.MULTILINE)
    room = import_module(ROOMS[page])
    assert described and {f"{ROOMS[page]}.{name}" for name in getattr(room, "__all__", [])} <= set(described)


def test_every_api_page_belongs_to_a_room():
    assert {path.stem for path in (SITE / "docs" / "api").iterdir()} == set(ROOMS)


def test_a_warning_of_the_site_fails_the_build():
    """With ``--quiet``, ``--strict`` counts no warnings."""
    command = next(line for line in (ROOT / ".ci" / "run").read_text().splitlines() if "mkdocs" in line)
    assert "--strict" in command and not re.search(r" (-q|--quiet)\b", command)
