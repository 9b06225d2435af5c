"""The configs that come with the package."""

import difflib
from pathlib import Path

from pl_rl.errors import UsageError


def packaged_configs() -> dict[str, Path]:
    """The configs that come with the package, by file name."""
    package = Path(__file__).parents[1]
    # A wheel carries them inside the package; a checkout has them beside it.
    folder = package / "configs" if (package / "configs").is_dir() else package.parent / "configs"
    return {path.name: path for path in sorted(folder.glob("*.yaml"))}


def find_config(name: str) -> Path:
    """A config file by path, or by the name (with or without ``.yaml``) of one that comes with the package.

    Raises:
        UsageError: If there is none.
    """
    if Path(name).is_file():
        return Path(name)
    packaged = packaged_configs()
    for candidate in (name, f"{name}.yaml"):
        if candidate in packaged:
            return packaged[candidate]
    if Path(name).is_dir():
        inside = sorted(str(path) for path in Path(name).glob("*.yaml"))
        raise UsageError(f"config {name!r} is a folder; name a file{f' in it, as {inside[0]}' if inside else ''}")
    nearest = difflib.get_close_matches(Path(name).stem, [Path(config).stem for config in packaged], n=1, cutoff=0.7)
    hint = f" (did you mean {nearest[0]}.yaml?)" if nearest else ""
    raise UsageError(f"there is no config file {name!r} here{hint}, and the configs shipped are {', '.join(packaged)}")
