"""Run directories: where they are, what is in them.

A run is a ``version_N`` folder under the log root, with its event files, ``config.yaml`` and ``checkpoints/``.
"""

import re
from pathlib import Path

from pl_rl.errors import UsageError

LOG_ROOT = Path("lightning_logs")


def packaged_configs() -> dict[str, Path]:
    """The configs that come with the package, by file name."""
    package = Path(__file__).parent
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


def find_checkpoint(name: str, log_root: Path = LOG_ROOT) -> Path:
    """A checkpoint by path, or by the bare name (``last``, ``best``, ``iteration_40``) of one in the newest run.

    Args:
        name: Path, or file name with or without ``.ckpt``.
        log_root: Folder of the ``version_N`` folders that are searched, the highest number first.

    Raises:
        UsageError: If there is none.
    """
    path = Path(name)
    if path.is_file():
        return path.absolute()
    if path.name != name:
        raise UsageError(f"checkpoint {name!r} does not exist")
    file_name = path.name if path.suffix == ".ckpt" else f"{path.name}.ckpt"
    for run in sorted(log_root.glob("version_*"), key=_version, reverse=True):
        candidate = run / "checkpoints" / file_name
        if candidate.is_file():
            return candidate.absolute()
    raise UsageError(f"there is no file {name!r} here, and no run under {str(log_root)!r} has a {file_name}")


def run_of_checkpoint(checkpoint: Path) -> Path | None:
    """The run directory whose ``checkpoints/`` folder a checkpoint lies in, ``None`` for one that was put elsewhere."""
    folder = checkpoint.absolute().parent
    return folder.parent if folder.name == "checkpoints" else None


def config_of_run(run: Path) -> Path | None:
    """The configuration that a run was last trained with: of its latest resume that changed it, or of its start."""
    resumes = sorted(run.glob("config_resume*.yaml"), key=lambda path: int(re.sub(r"\D", "", path.stem)))
    start = run / "config.yaml"
    return resumes[-1] if resumes else start if start.is_file() else None


def shown(path: Path | str) -> str:
    """A path as a person would type it: relative where it lies below the working directory."""
    absolute = Path(path).absolute()
    here = Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)


def _version(run: Path) -> int:
    match = re.fullmatch(r"version_(\d+)", run.name)
    return int(match[1]) if match else -1
