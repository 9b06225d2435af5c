"""What a file that comes from elsewhere may name.

To read a checkpoint runs no code, but its settings name an environment, modules, wrappers and a network, and to use
such a name is to import and call what somebody else chose. So whatever makes something of settings from a file asks
here first. What lies under the log root is the user's own. A file from elsewhere may name the classes that only compute
(:data:`WRAPPERS`, pl_rl's networks), environments in gymnasium's registry, and classes that the program has imported
by itself; anything else the user has to say.
"""

import json
import re
import shlex
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym

from pl_rl.errors import UsageError
from pl_rl.networks.actor_critic import ActorCritic
from pl_rl.runs.directory import LOG_ROOT, display_path

# Modules that register environments and do nothing else when they are imported.
MODULES = ("ale_py", "minigrid")

# Wrappers that turn numbers into numbers: none takes a function, names a module or writes a file.
WRAPPERS = {
    "gymnasium.wrappers": """AddRenderObservation AddWhiteNoise AtariPreprocessing Autoreset ClipAction ClipReward
        DelayObservation DiscretizeAction DiscretizeObservation DtypeObservation FilterObservation FlattenObservation
        FrameStackObservation GrayscaleObservation MaxAndSkipObservation NormalizeObservation NormalizeReward
        ObstructView OrderEnforcing PassiveEnvChecker RecordEpisodeStatistics RepeatAction RescaleAction
        RescaleObservation ReshapeObservation ResizeObservation StickyAction TimeAwareObservation TimeLimit""",
    "minigrid.wrappers": """ActionBonus DictObservationSpaceWrapper DirectionObsWrapper FlatObsWrapper FullyObsWrapper
        ImgObsWrapper NoDeath OneHotPartialObsWrapper PositionBonus RGBImgObsWrapper RGBImgPartialObsWrapper
        ReseedWrapper StochasticActionWrapper SymbolicObsWrapper ViewSizeWrapper""",
    "pl_rl.envs.atari": "EpisodicLife FireOnReset",
    "pl_rl.envs.partial": "KeepComponents SplitComponents",
}

# What an environment or wrapper of these may import when it is made. A stranger's folder of the same name must not
# come before, or instead of, what is installed.
IMPORTED_LATER = ("Box2D", "ale_py", "cv2", "imageio", "jax", "minigrid", "mujoco", "pygame", "shimmy")

ENV_SETTINGS = {
    *("id", "vectorization", "kwargs", "imports", "wrappers", "train_wrappers", "info_keys", "timeout"),
    "action_mask",
}
PLAIN_TEXT = re.compile(r"[\w +-]*")
# A method of an environment would be called.
MASK_SOURCE = re.compile(r"(info|obs)\.[\w /-]+")
# Settings that names of entries are compared with, and nothing else.
PATTERNS = {"norm_obs", "cnn_keys", "critic_keys", "encoder_sizes"}
OWN_NETWORKS = "pl_rl.networks."
DEEPEST = 16


class Name(NamedTuple):
    """Something in settings that would be imported, called or opened."""

    setting: str
    """Dotted, such as ``env.wrappers``."""
    kind: str
    value: str
    whole: Any
    """What the setting is, with all its names."""


class Checked(dict[str, Any]):
    """The part of settings, ``env`` or ``network``, all of whose names may be used."""


def in_python(names: list[Name]) -> str:
    """How a script says that it trusts names."""
    return f"pass trust={[name.value for name in names]}"


def by_loading(names: list[Name]) -> str:
    """How a script says so that makes a model of a file's settings."""
    return f"use load_from_checkpoint with trust={[name.value for name in names]}, or pass objects"


def by_trust_option(names: list[Name]) -> str:
    """How the option ``--trust`` says so."""
    return f"add --trust {' '.join(shlex.quote(name.value) for name in names)}"


def by_settings(names: list[Name]) -> str:
    """How options of the model say so: each names the same again."""
    said = {name.setting: name.whole for name in names}
    values = {key: whole if isinstance(whole, str) else json.dumps(whole) for key, whole in said.items()}
    return "add " + " ".join(f"--model.{key} {shlex.quote(value)}" for key, value in values.items())


WayOut = Callable[[list[Name]], str]


def is_own(path: Path, log_root: Path = LOG_ROOT) -> bool:
    """Whether a file lies under the log root, links followed."""
    return path.resolve().is_relative_to(log_root.resolve())


def checked(
    settings: Mapping[str, Any],
    trust: Iterable[str] = (),
    source: str = "a file",
    way_out: WayOut = in_python,
) -> dict[str, Any]:
    """Settings whose names may all be used.

    Args:
        settings: Of a model, all or some: a checkpoint's ``hyper_parameters``.
        trust: Names that the user trusts; one of a module trusts all that is in it.
        source: Where they come from, in words.
        way_out: Says how to trust names.

    Returns:
        The same, with ``env`` as a mapping, and ``env`` and ``network`` marked as :class:`Checked`.

    Raises:
        UsageError: If a name is not trusted, or the settings are not what settings are.
    """
    if isinstance(trust, str):
        raise UsageError(f"trust={trust!r} must be a list of names; use trust=[{trust!r}]")
    trusted = tuple(trust)
    settings = dict(_uniform(settings))
    names = [name for name in _names(settings, source) if not _is_trusted(name.value, trusted)]
    refused = [name for name in names if not _ALLOWED[name.kind](name.value)]
    if refused:
        first = refused[0]
        raise UsageError(
            f"{source} names the {first.kind} {first.value!r} ({first.setting}), and using it may run code or write "
            f"files; if you trust it, {way_out(refused)}"
        )
    for part, needed in (("env", {"id"}), ("network", {"class_path", "init_args"})):
        if part in settings and not needed <= settings[part].keys():
            raise _malformed(source, part, settings[part])
    if "env" in settings and not isinstance(settings["env"], Checked):
        imports = [*(settings["env"].get("imports") or [])]
        _check_what_is_imported_later(trusted, source, way_out, imports)
    return {key: Checked(value) if key in ("env", "network") else value for key, value in settings.items()}


def checked_of_file(
    settings: Mapping[str, Any],
    path: Path,
    trust: Iterable[str] = (),
    way_out: WayOut = in_python,
    log_root: Path = LOG_ROOT,
) -> dict[str, Any]:
    """As :func:`checked`; all that a file under the log root names may be used."""
    if is_own(path, log_root):
        return {key: Checked(value) if isinstance(value, Mapping) else value for key, value in _uniform(settings)}
    return checked(settings, trust, f"{display_path(path)} lies outside of {display_path(log_root)} and", way_out)


def _uniform(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Settings with the environment as a mapping: a parser would take its text for the path of a file with more."""
    if not isinstance(settings, Mapping):
        raise _malformed("a file", "model", settings)
    for key, value in settings.items():
        yield str(key), {"id": value} if key == "env" and isinstance(value, str) else value


def names_in(settings: Mapping[str, Any]) -> set[str]:
    """All that settings name, for those that the user wrote."""
    return {name.value for name in _names(settings, "the command line")}


def _names(settings: Mapping[str, Any], source: str) -> Iterator[Name]:
    for key, value in settings.items():
        if isinstance(value, Checked):
            continue
        if key == "env":
            yield from _names_of_env(value, source)
        elif key == "network":
            yield from _names_of_class(value, "network", "class", source)
        elif key not in PATTERNS:
            yield from _texts(value, key, value, source)


def _names_of_env(env: Any, source: str) -> Iterator[Name]:
    if not isinstance(env, Mapping) or not env.keys() <= ENV_SETTINGS or not isinstance(env.get("id", ""), str):
        raise _malformed(source, "env", env)
    if "id" in env:
        yield Name("env.id", "environment", env["id"], env["id"])
    for key in ("imports", "wrappers", "train_wrappers"):
        listed = env.get(key) or []
        if not isinstance(listed, list | tuple):
            raise _malformed(source, f"env.{key}", listed)
        for item in listed:
            if key == "imports" and isinstance(item, str):
                yield Name("env.imports", "module", item, listed)
            elif key != "imports":
                parts = item if isinstance(item, Mapping) and "class_path" in item else {"class_path": item}
                for name in _names_of_class(parts, f"env.{key}", "wrapper", source):
                    yield name._replace(setting=f"env.{key}", whole=listed)
            else:
                raise _malformed(source, "env.imports", item)
    if env.get("action_mask") is not None:
        yield Name("env.action_mask", "source", str(env["action_mask"]), env["action_mask"])
    for key in ("kwargs", "vectorization", "timeout", "info_keys"):
        yield from _texts(env.get(key), f"env.{key}", env.get(key), source)


def _names_of_class(described: Any, setting: str, kind: str, source: str) -> Iterator[Name]:
    if (
        not isinstance(described, Mapping)
        or not described.keys() <= {"class_path", "init_args"}
        or not isinstance(described.get("class_path", ""), str)
        or not isinstance(described.get("init_args") or {}, Mapping)
        or not all(isinstance(key, str) for key in described.get("init_args") or {})
    ):
        raise _malformed(source, setting, described)
    if "class_path" in described:
        yield Name(f"{setting}.class_path", kind, described["class_path"], described["class_path"])
    is_own = str(described.get("class_path")).startswith(OWN_NETWORKS)
    for key, value in (described.get("init_args") or {}).items():
        if is_own and key in PATTERNS:
            continue
        yield from _texts(key, f"{setting}.init_args", described["init_args"], source)
        yield from _texts(value, f"{setting}.init_args.{key}", value, source)


def _texts(value: Any, setting: str, whole: Any, source: str, depth: int = 0) -> Iterator[Name]:
    """Each text that may be more than a word: a path, a class, YAML."""
    if depth > DEEPEST:
        raise _malformed(source, setting, "values too deep in one another")
    if isinstance(value, str):
        if not PLAIN_TEXT.fullmatch(value):
            yield Name(setting, "text", value, whole)
    elif isinstance(value, Mapping | list | tuple):
        items = [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
        for item in items:
            yield from _texts(item, setting, whole, source, depth + 1)
    elif value is not None and not isinstance(value, int | float):
        raise _malformed(source, setting, value)


def _malformed(source: str, setting: str, value: Any) -> UsageError:
    said = repr(value)
    return UsageError(
        f"{source} has {said[:80]}{'...' if len(said) > 80 else ''} as its setting {setting}, which is none; use "
        "another file"
    )


def _is_trusted(name: str, trusted: tuple[str, ...]) -> bool:
    return any(name == entry or name.startswith((f"{entry}.", f"{entry}:")) for entry in trusted if entry)


def _is_environment(name: str) -> bool:
    """Whether its name has no module to import, or one that has been."""
    module, colon, registered = name.rpartition(":")
    return not colon or (module in sys.modules and registered in gym.registry)


def _is_wrapper(path: str) -> bool:
    module, _, name = path.rpartition(".")
    return name in WRAPPERS.get(module, "").split() or _is_imported(path, gym.Wrapper)


def _is_imported(path: str, base: type) -> bool:
    """Whether a class of the right kind has been imported by now, and not by us from a library that has others too."""
    module, _, name = path.rpartition(".")
    loaded = sys.modules.get(module)
    # Not by getattr, which lets a module import more, as pl_rl does of its own.
    cls = getattr(loaded, name, None) if module == "pl_rl" else getattr(loaded, "__dict__", {}).get(name)
    libraries = {listed.partition(".")[0] for listed in WRAPPERS} - {"pl_rl"}
    return isinstance(cls, type) and issubclass(cls, base) and cls.__module__.partition(".")[0] not in libraries


_ALLOWED: dict[str, Callable[[str], bool]] = {
    "environment": _is_environment,
    "module": lambda name: name in MODULES or name in sys.modules,
    "wrapper": _is_wrapper,
    "class": lambda path: _is_imported(path, ActorCritic),
    "source": lambda source: MASK_SOURCE.fullmatch(source) is not None,
    "text": lambda text: False,
}


def _check_what_is_imported_later(trusted: tuple[str, ...], source: str, way_out: WayOut, imports: list[str]) -> None:
    """Refuse to import, in the course of making an environment, what lies where no packages are installed.

    Args:
        trusted: Names that the user trusts.
        source: Where the settings come from, in words.
        way_out: Says how to trust names.
        imports: Those of the settings, which an option for them replaces.

    Raises:
        UsageError: With the module's place.
    """
    places = [Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "purelib", "platlib")]
    places += [Path(gym.__file__).resolve().parents[1], *map(Path, _user_site())]
    for module in set(IMPORTED_LATER) - sys.modules.keys() - set(trusted):
        spec = find_spec(module)  # of a module that is in no package, which imports nothing
        # A folder without an __init__.py is a package, too, of parts that may lie anywhere.
        origins = [] if spec is None else [spec.origin] if spec.origin else spec.submodule_search_locations or []
        for origin in origins:
            if not any(Path(origin).resolve().is_relative_to(place) for place in places):
                name = Name("env.imports", "module", module, [*imports, module])
                raise UsageError(
                    f"{source} names an environment, for which {origin} could be imported as {module}; start Python in "
                    f"another folder, or, if you trust it, {way_out([name])}"
                )


def _user_site() -> list[str]:
    import site

    return [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
