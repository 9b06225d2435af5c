"""The configs that come with the package."""

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
    raise UsageError(f"there is no config file {name!r} here, and the configs shipped are {', '.join(packaged)}")
