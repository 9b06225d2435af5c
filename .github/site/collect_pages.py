"""MkDocs hook: the pages and pictures of the tree become those of the site, under the same paths."""

import re
import subprocess
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[2]
OWN = ".github/site/"  # is docs_dir's
LINK = re.compile(r"\]\(([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every page that git knows, every picture, and the source files that a page links to."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    known = set(subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines())
    known = {path for path in known if (ROOT / path).is_file() and not path.startswith(OWN)}
    pages = {path for path in known if path.endswith(".md")}
    linked = {target for page in pages for target in _targets(page)}
    for path in sorted(pages | (linked & known)):
        file = File.generated(config, path, abs_src_path=str(ROOT / path), inclusion=InclusionLevel.INCLUDED)
        # Web servers and uploads leave out what begins with a point.
        file.dest_uri = file.dest_uri.removeprefix(".")
        files.append(file)
    return files


def _targets(page: str) -> set[str]:
    """What a page links to, as paths from the root."""
    folder = (ROOT / page).parent
    targets = {(folder / target).resolve() for target in LINK.findall((ROOT / page).read_text())}
    return {target.relative_to(ROOT).as_posix() for target in targets if target.is_relative_to(ROOT)}
