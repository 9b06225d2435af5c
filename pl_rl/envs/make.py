"""Making a single environment: importing and wrapping it; every failure becomes a sentence."""

import difflib
import inspect
import os
import re
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import find_highest_version, get_env_id, parse_env_id
from lightning.pytorch.utilities import rank_zero_info

from pl_rl.envs.config import ClassPath, EnvConfig
from pl_rl.envs.entries import by_path
from pl_rl.envs.faults import STOPS, close_each, error_in_words
from pl_rl.envs.masks import MaskedActions
from pl_rl.errors import RunFailure, UsageError, missing_package

AnyEnv = gym.Env[Any, Any]


def make_env(config: EnvConfig, training: bool = False, render_mode: str | None = None) -> AnyEnv:
    """A single environment with its wrappers.

    Args:
        config: The environment.
        training: Whether it also has ``train_wrappers``.
        render_mode: As gymnasium's.

    Raises:
        UsageError: If it or a wrapper cannot be imported or made.
    """
    import_modules(config)
    env = _make_unwrapped(config, render_mode)
    for wrapper in config.wrapped(training):
        env = wrap(env, wrapper)
    env = by_path(env)
    return env if config.action_mask is None else MaskedActions(env, config.action_mask)


def with_version(config: EnvConfig) -> EnvConfig:
    """The environment by its whole name, where its newest version is meant; says which that is.

    Gymnasium would choose the same, and warn of it each time that the environment is made.

    Raises:
        UsageError: If a module that registers environments cannot be imported.
    """
    module, colon, name = config.id.rpartition(":")
    try:
        namespace, short, version = parse_env_id(name)
    except gym.error.Error:  # no name, which making it will say
        return config
    if version is not None or name in gym.registry:
        return config
    import_modules(replace(config, imports=[*config.imports, module]) if colon else config)
    newest = find_highest_version(namespace, short)
    if newest is None or name in gym.registry:
        return config
    whole = f"{module}{colon}{get_env_id(namespace, short, newest)}"
    rank_zero_info(f"Environment {config.id} is {whole}, the newest version that is installed.")
    return replace(config, id=whole)


def import_modules(config: EnvConfig) -> None:
    """Import the modules that register environments.

    Raises:
        UsageError: If a module cannot be imported.
    """
    for name in config.imports:
        try:
            import_module(name)
        except STOPS:
            raise
        except BaseException as error:  # whatever the module does
            missing = missing_package(error)
            reason = (
                f"{missing}, or correct the name" if missing else f"{_in_words(error)}; mend it, or correct the name"
            )
            raise UsageError(f"imports: the module {name!r} cannot be imported: {reason}") from error


def _make_unwrapped(config: EnvConfig, render_mode: str | None) -> AnyEnv:
    try:
        # Not every environment takes a render mode, so None is not passed on.
        render: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
        return _made(partial(gym.make, config.id, **render), config.kwargs)
    except gym.error.DependencyNotInstalled as error:
        missing = missing_package(error) or str(error)
        raise UsageError(f"environment {config.id!r} needs one more package: {missing}") from error
    except (gym.error.UnregisteredEnv, gym.error.DeprecatedEnv, ModuleNotFoundError) as error:
        nearest = difflib.get_close_matches(config.id, gym.registry, n=3, cutoff=0.4)
        hint = f"; the nearest names are {', '.join(nearest)}" if nearest else ""
        raise UsageError(
            f"there is no environment {config.id!r}{hint}; a module that registers it is named by env.imports"
        ) from error
    except STOPS:
        raise
    except BaseException as error:  # whatever its constructor does
        raise UsageError(
            f"environment {config.id!r} with kwargs={config.kwargs} cannot be made: "
            f"{_in_words(error)}{_of_drawing(error)}"
        ) from error


def _of_drawing(error: BaseException) -> str:
    """The remedy if MuJoCo fails on import because it cannot load the renderer that ``MUJOCO_GL`` names."""
    library = os.environ.get("MUJOCO_GL")
    modules = {frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(error.__traceback__)}
    if library is None or "mujoco" not in modules:
        return ""
    return f"; MuJoCo is to draw with MUJOCO_GL={library}, which does not work here: unset it, or try MUJOCO_GL=egl"


def wrap(env: AnyEnv, wrapper: ClassPath) -> AnyEnv:
    """The environment in a wrapper.

    Raises:
        UsageError: If the wrapper cannot be imported or made.
    """
    path, init_args = wrapper_parts(wrapper)
    cls = _wrapper_class(path)
    try:
        inspect.signature(cls).bind(env, **init_args)
    except TypeError as error:
        raise UsageError(f"the wrapper {path} with init_args={init_args} cannot be made: {error}") from error
    try:
        return _made(partial(cls, env), init_args)
    except STOPS:
        raise
    except BaseException as error:  # whatever its constructor does
        raise UsageError(
            f"the wrapper {path} with init_args={init_args} does not go round {env}: {_in_words(error)}"
        ) from error


def _made(make: Callable[..., AnyEnv], arguments: dict[str, Any]) -> AnyEnv:
    """An environment from a config's arguments; if that fails, with tuples for lists, as YAML has no tuples.

    Raises:
        BaseException: Whatever the first of the two attempts raised, if both fail.
    """
    arguments = {name: _as_annotated(value, make, name) for name, value in arguments.items()}
    with_tuples = _tuples(arguments)
    try:
        return make(**arguments)
    except Exception:
        if with_tuples == arguments:
            raise
        with suppress(Exception):
            return make(**with_tuples)
        raise


def _as_annotated(value: Any, make: Callable[..., AnyEnv], name: str) -> Any:
    """With tuples for lists if the argument is annotated with tuples."""
    parameter = inspect.signature(make).parameters.get(name)
    annotation = "" if parameter is None else str(parameter.annotation)
    return _tuples(value) if re.search(r"\btuple\b", annotation, re.IGNORECASE) else value


def _tuples(value: Any) -> Any:
    """Plain data with tuples for lists."""
    if isinstance(value, dict):
        return {name: _tuples(item) for name, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def make_single(config: EnvConfig) -> AnyEnv:
    """A training environment, for its spaces.

    Raises:
        UsageError: If the wrappers for training alone change the spaces, so that the network would not fit elsewhere.
    """
    evaluated = make_env(config)
    if not config.train_wrappers:
        return evaluated
    trained = make_env(config, training=True)
    for name in ("observation_space", "action_space"):
        there, here = getattr(evaluated, name), getattr(trained, name)
        if there != here:
            change = " ".join(f"{name} from {there} to {here}".split())
            raise UsageError(
                f"train_wrappers change the {change}, but evaluations go without them; name the wrapper that does so "
                "under wrappers"
            )
    close_single(evaluated, config.id)
    return trained


def close_single(env: AnyEnv, env_id: str) -> None:
    """Close an environment that was made for inspection.

    Raises:
        RunFailure: If it raises an exception.
    """
    fault = close_each([(0, env)])
    if fault is not None:
        raise RunFailure(f"environment {env_id!r} {fault[1]}")


def wrapper_parts(wrapper: ClassPath) -> tuple[str, dict[str, Any]]:
    """Class path and arguments.

    Raises:
        UsageError: If it is neither a path nor such a mapping.
    """
    if isinstance(wrapper, str):
        return wrapper, {}
    if isinstance(wrapper, dict) and isinstance(wrapper.get("class_path"), str):
        init_args = wrapper.get("init_args") or {}
        if wrapper.keys() <= {"class_path", "init_args"} and isinstance(init_args, dict):
            return wrapper["class_path"], init_args
    raise UsageError(
        f"{wrapper!r} is not a wrapper; it must be the path of a class, or a mapping with class_path and init_args"
    )


def _wrapper_class(path: str) -> type[gym.Wrapper[Any, Any, Any, Any]]:
    module_name, _, name = path.rpartition(".")
    if not module_name:
        known = f"gymnasium.wrappers.{name}" if hasattr(gym.wrappers, name) else "package.module.Class"
        raise UsageError(f"the wrapper {path!r} has no module before its name; give it as {known}")
    try:
        module = import_module(module_name)
    except STOPS:
        raise
    except BaseException as error:  # whatever the module does
        raise UsageError(f"the wrapper {path!r} cannot be imported: {_in_words(error)}") from error
    try:
        cls = getattr(module, name)
    except AttributeError as error:
        nearest = difflib.get_close_matches(name, dir(module), n=1)
        hint = f"; did you mean {module_name}.{nearest[0]}?" if nearest else ""
        raise UsageError(f"the wrapper {path!r} cannot be imported: {module_name} has no {name}{hint}") from error
    if not (isinstance(cls, type) and issubclass(cls, gym.Wrapper)):
        raise UsageError(f"{path!r} is not a wrapper; it must be a subclass of gymnasium.Wrapper")
    return cls


def _in_words(error: BaseException) -> str:
    """The message of an exception, on one line, with its type where that adds something."""
    if isinstance(error, SystemExit):
        return f"it {error_in_words(error)}"
    text = " ".join(str(error).split())
    plain = isinstance(error, TypeError | ValueError | ImportError | gym.error.Error) and text
    return text if plain else f"{type(error).__name__}: {text}"
