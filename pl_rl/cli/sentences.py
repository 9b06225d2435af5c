"""What an argument parser or Lightning says of a mistake, as one sentence in plain words."""

import difflib
import re
import traceback
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple, get_args

from pl_rl.trackers import LoggerName

# By other libraries' names, which are looked for in the last part of an unknown one.
ALIASES = {
    "model.learning_rate": "lr alpha actor_lr learning_rate_actor optimizer_lr",
    "model.total_env_steps": "total_timesteps timesteps n_timesteps total_steps num_timesteps env_steps frames",
    "model.num_envs": "n_envs env_num collector_env_num num_workers n_env envs",
    "model.num_steps": "n_steps n_sample rollout_steps rollout_length horizon num_steps_per_env unroll_length",
    "model.update_epochs": "n_epochs num_epochs epoch_per_collect k_epochs ppo_epochs num_learning_epochs epochs",
    "model.minibatch_size": "batch_size mini_batch_size num_minibatches minibatches num_mini_batches",
    "model.gamma": "discount discount_factor",
    "model.gae_lambda": "lam lambda gae_lam tau",
    "model.clip_coef": "clip_range clip_ratio clip_param eps_clip clip epsilon",
    "model.clip_vloss": "clip_range_vf value_clip use_clipped_value_loss",
    "model.vf_clip_coef": "vf_clip_param value_clip_coef clip_range_vf_coef",
    "model.adam_eps": "eps adam_epsilon optimizer_eps",
    "model.final_learning_rate": "final_lr min_lr end_learning_rate",
    "model.ent_coef": "entropy_weight entropy_coef entropy_coeff ent_coeff entropy",
    "model.vf_coef": "value_weight value_loss_coef vf_coeff value_coef vf_loss_coeff",
    "model.max_grad_norm": "grad_clip_value grad_clip grad_norm",
    "model.target_kl": "desired_kl kl kl_target",
    "model.norm_adv": "normalize_advantage adv_norm",
    "model.norm_obs": "normalize normalize_obs norm_observations",
    "model.norm_reward": "normalize_reward",
    "model.eval_freq": "eval_interval evaluation_freq eval_every eval_frequency",
    "model.eval_episodes": "episodes n_eval_episodes n_evaluator_episode n_episodes num_episodes eval_ep",
    "model.eval_num_envs": "evaluator_env_num n_eval_envs",
    "model.env": "env_id gym_id env_name task environment",
    "model.network": "policy net policy_class net_arch policy_kwargs",
    "model.network.init_args.activation": "activation activation_fn",
    "seed_everything": "seed random_seed",
    "ckpt_path": "resume checkpoint_path resume_from load load_path ckpt resume_from_checkpoint",
    "pretrained.path": "weights init_from load_pretrained pretrained_model",
    "trainer.default_root_dir": "log_dir logdir output_dir tensorboard_log save_dir exp_dir out",
    "trainer.logger": "track wandb use_wandb",
    "trainer.accelerator": "device cuda gpu",
    "video": "capture_video record_video record videos",
}
_BY_ALIAS = {alias: name for name, aliases in ALIASES.items() for alias in aliases.split()}

_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "NoneType": "null",
    "list": "a list",
    "dict": "settings by name",
    "collections.abc.Iterable": "a list",
}
# By which a library's own code fails, rather than refuses.
_FAULTS = (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, OSError)
_UNKNOWN = re.compile(r"(?:does not accept option|[Uu]nrecognized arguments:|Unknown option) '?-*([\w.]+)")
_REQUIRED = re.compile(r"the following arguments are required: (\S+)")
_NOT_ACCEPTED = re.compile(r"Option '([\w.]+)' is not accepted")
_OF_KEY = re.compile(
    r'(?:Parser key "([\w.]+)"(?: element \d+)?|argument (?:-\w/)?--([\w.+]+)): (?:- )?(.*)', re.DOTALL
)
_EXPECTED = re.compile(r"Expected an? (<class '([\w.]+)'>|typing\.Literal\[(.*?)\](?=[.\s]|$))")
_VALUE = re.compile(r"[.\s]*(?:Got|Given) value: (.*)$", re.DOTALL)
# What a parser tries on the way, which says nothing.
_TRIED = re.compile(
    r"- Expected a path but .*? either not accessible or invalid|- Expected a dot import path string: \S+|"
    r"- Expected an? (?:<class '[\w.]+'>|typing\.Literal\[.*?\])|"
    r"Does not validate against any of the Union subtypes|Subtypes: \[.*?\](?= Errors:)|Errors:|"
    r"Given value type: <class '[\w.]+'>"
)


class WithinClass(NamedTuple):
    """What the parser of a class's arguments says, before another adds what it tried besides."""

    message: str
    options: list[str]
    """All that it has, such as ``--monitor``."""


class Places(NamedTuple):
    """What there is, and where something was given."""

    options: list[str]
    """All that there are, such as ``--model.gamma``."""
    args: list[str]
    """What was typed."""
    lines: dict[str, int]
    """The line of each setting of the configuration file, by its dotted name."""
    config: Path | None
    """The file."""
    configs: Collection[str] = ()
    """Names of the configurations shipped."""


def sentence_of(message: str, places: Places, within: WithinClass | None = None) -> str:
    """A parser's message in one sentence, with the place in the file and the nearest option.

    Args:
        message: The parser's.
        places: What there is.
        within: What the parser of a class's arguments has said, if that is the reason.
    """
    sentence = " ".join(message.split())
    if within is not None:
        return _within(sentence, within, places)
    if "arguments are required" in sentence and "model.env" in sentence:
        return "no environment is named; add --model.env ID or --config FILE"
    if sentence.endswith("arguments are required: id"):
        return "an environment with settings of its own is named by --model.env.id ID, not by --model.env ID"
    # The first value that is named is that in a list.
    logger = re.match(r"Parser key \"trainer\.logger\": .*?Given value: ([\w.]+)(?: |$)", sentence)
    if logger is not None:
        words = ", ".join(get_args(LoggerName))
        return f"there is no logger {logger[1]!r}; use {words}, a list of them, or the class of one with its settings"
    unknown = _UNKNOWN.search(sentence)
    if unknown is not None:
        return _unknown(unknown[1], sentence, places)
    required = _REQUIRED.fullmatch(sentence)
    if required is not None:
        needed = f"--{required[1]}" if f"--{required[1]}" in places.options else required[1]
        return f"{needed} is missing; --help says what it is"
    of_key = _OF_KEY.match(sentence)
    if of_key is None:
        return sentence
    return _of_value(_where(of_key[1] or of_key[2], places), of_key[3])


def _within(sentence: str, within: WithinClass, places: Places) -> str:
    """Of an argument of a class, by its whole name."""
    of_key = _OF_KEY.match(sentence)
    group = "" if of_key is None else of_key[1] or of_key[2]
    required, unknown = _REQUIRED.fullmatch(within.message), _NOT_ACCEPTED.fullmatch(within.message)
    if required is not None and required[1] != "id":
        return f"--{group}.init_args.{required[1]} is missing; give it after --{group}"
    if unknown is None:
        return sentence_of(within.message, places)
    typed = {arg.partition("=")[0].removeprefix("--") for arg in places.args}
    names = [f"{group}.init_args.{unknown[1]}", f"{group}.{unknown[1]}"]
    name = next((name for name in names if name in typed or name in places.lines), names[0])
    prefix = name.removesuffix(unknown[1])
    options = [f"--{prefix}{option.removeprefix('--')}" for option in within.options if option.startswith("--")]
    places = places._replace(options=options)
    return _unknown(name, f"unrecognized arguments: --{name}" if name in typed else sentence, places)


def _unknown(name: str, sentence: str, places: Places) -> str:
    """Of a name that no setting has: where it stands, and which one was meant."""
    typed = "nrecognized arguments" in sentence
    if typed and name in places.configs:
        return f"{sentence}; did you mean --config {name}?"
    if typed and not sentence.partition("arguments: ")[2].startswith("-"):
        return f"{sentence}; a value stands after its option, as in --model.gamma 0.9"
    if not typed and places.config is not None and name in places.lines:
        said = f"there is no setting {name!r}, in line {places.lines[name]} of {str(places.config)!r}"
    else:
        said = f"{sentence}" if typed else f"there is no setting {name!r}"
    meant = nearest_option(name, places.options)
    if meant is None:
        return f"{said}; --help lists what there is"
    return f"{said}; did you mean {meant if typed else meant.removeprefix('--')}?"


def nearest_option(name: str, options: list[str]) -> str | None:
    """The option that an unknown name stands for: by other libraries' name for it, or by how it is written."""
    settings = [option for option in options if option.startswith("--") and not option.endswith(("+", ".help"))]
    leaves = [option for option in settings if not any(other.startswith(f"{option}.") for other in settings)]
    first, dot, rest = name.partition(".")
    groups = {option[2:].partition(".")[0] for option in settings if "." in option}
    if dot and first not in groups:
        group = difflib.get_close_matches(first, groups, n=1, cutoff=0.7)
        return None if not group else nearest_option(f"{group[0]}.{rest}", options)
    if f"--{name}" in settings:
        return f"--{name}"
    whole = difflib.get_close_matches(f"--{name}", leaves, n=1, cutoff=0.9)
    last = name.rpartition(".")[2].replace("-", "_").lower()
    alias = f"--{_BY_ALIAS.get(last, '')}"
    same = sorted((option for option in settings if _last(option) == last), key=_rank)
    if whole or same or alias in settings:
        return (whole or same or [alias])[0]
    if any(f"--{name}".startswith(f"{option}.init_args.") for option in settings):
        return None  # of a class that the parser does not know
    nearest = difflib.get_close_matches(f"--{name}", leaves, n=1, cutoff=0.75)
    # Long names of the same group are alike, whatever comes then.
    beginning = f"--{name}".rpartition(".")[0]
    others = [option for option in nearest if option.rpartition(".")[0] != beginning]
    nearest = others or [option for option in nearest if difflib.get_close_matches(last, [_last(option)], cutoff=0.5)]
    by_last = {_last(option): option for option in sorted(leaves, key=_rank)[::-1]}
    nearest += [by_last[name] for name in difflib.get_close_matches(last, by_last, n=1, cutoff=0.8)]
    return nearest[0] if nearest else None


def _last(option: str) -> str:
    return option.rpartition(".")[2].removeprefix("--")


def _rank(option: str) -> int:
    """The model's options before all others."""
    return 0 if option.startswith("--model.") else 1


def _where(key: str, places: Places) -> str:
    """The name of a setting, and where it was given; ``key`` may be its last part."""
    typed = [arg.partition("=")[0].removesuffix("+") for arg in places.args if arg.startswith("--")]
    for option in reversed(typed):
        if option == f"--{key}" or option.endswith(f".{key}"):
            return option
    for name, line in places.lines.items():
        if name == key or name.endswith(f".{key}"):
            return f"{name}, in line {line} of {str(places.config)!r},"
    # A whole group was given, of which this is a part.
    groups = [option for option in typed if f"--{key}".startswith(f"{option}.")]
    return groups[-1] if groups else key


def _of_value(where: str, text: str) -> str:
    """What is wrong with a value, and what it may be."""
    if "Does not validate against any of the Union" in text:  # of which the first says most
        text = text.partition("- Not a valid subclass")[0]
    given = _VALUE.search(text)
    value = None if given is None else re.sub(r"Namespace\(class_path='(.+?)'.*\)", r"\1", given[1].strip())
    text = _VALUE.sub("", text)
    wanted = dict.fromkeys(_in_words(match) for match in _EXPECTED.finditer(text))
    if "dot import path" in text:
        wanted = {"the name of a class, as in package.module.Class": None, **wanted}
    # The type of a network factory, spelled out, helps nobody.
    text = re.sub(r"Type collections\.abc\.Callable\S.* expects a function or", "expects", text)
    reason = " ".join(_TRIED.sub(" ", f"- {text}").split()).strip(" -.")
    if reason or not wanted:
        return f"{where}: {reason}" + ("" if value is None or value in reason else f"; given is {value!r}")
    return f"{where}{'' if value is None else f' is {value!r} and'} must be {' or '.join(wanted)}"


def _in_words(expected: re.Match[str]) -> str:
    if expected[3] is not None:
        return f"one of {expected[3]}"
    name = expected[2]
    return _TYPES.get(name) or f"a {name.rpartition('.')[2]}, named by its class"


def said_by_library(error: BaseException) -> str | None:
    """A sentence for an exception by which Lightning or the parser refuse what they are asked for, else ``None``.

    A mistake of a user is raised by their own code; what is raised elsewhere is a fault, and its traceback is needed.
    """
    for cause in reversed(list(_causes(error))):
        if isinstance(cause, ImportError) and not (cause.name or "").startswith("pl_rl"):
            return f"a package is missing: {_one_line(cause)}"
        frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(cause.__traceback__)]
        library = frames[-1].partition(".")[0] if frames else ""
        if library in ("lightning", "jsonargparse") and not isinstance(cause, _FAULTS):
            text = _one_line(cause)
            return _of_value("a class's arguments", text) if text.startswith("Does not validate") else text
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
