"""Which weights of a file go where in a network."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import Tensor

from pl_rl.errors import UsageError
from pl_rl.networks.actor_critic import ActorCritic, MLPActorCritic
from pl_rl.networks.description import shape_in_words
from pl_rl.pretrained.conversion import listed
from pl_rl.pretrained.policy_weights import PolicyWeights

OtherShapes = Literal["error", "skip", "overlap"]


@dataclass(frozen=True)
class Match:
    """What a network takes from a file.

    Attributes:
        tensors: The network's new weights by name, each of the shape that the network has.
        groups: Names and shapes, in words, by what becomes of them: ``loaded``, ``reshaped`` (in part, see
            :func:`match`), ``skipped``, ``missing`` in the file, ``unexpected`` by the network.
        notes: What the user should know, in sentences.
    """

    tensors: dict[str, Tensor]
    groups: dict[str, dict[str, str]]
    notes: list[str]


@dataclass(frozen=True)
class Rules:
    """What to take.

    Attributes:
        strict: Whether every selected weight must be in the file and in the network.
        include: Patterns of the weights to load; ``None`` means all.
        exclude: Patterns of those to leave.
        shapes: What to do where a weight has another shape in the file.
    """

    strict: bool = True
    include: list[str] | None = None
    exclude: list[str] | None = None
    shapes: OtherShapes = "error"

    def select(self, name: str) -> bool:
        """Whether a weight is one to load."""
        return (self.include is None or matches(name, self.include)) and not matches(name, self.exclude or [])


def match(path: str, weights: PolicyWeights, network: ActorCritic, rules: Rules) -> Match:
    """Compare a file with a network.

    With ``shapes="overlap"``, for observations or actions that became more or fewer, the part that both have is taken
    over. Weights of inputs that the file does not know become zero, so that the outputs are as they were; the network
    keeps its own initial weights of outputs that the file does not know.

    Args:
        path: Of the file, as the user named it.
        weights: What is in it.
        network: As it was initialized.
        rules: What to take.

    Raises:
        UsageError: If they do not fit as the rules demand, or nothing would be loaded.
    """
    model = network.state_dict()
    for option, patterns in [("include", rules.include), ("exclude", rules.exclude)]:
        check_patterns(option, patterns or [], {**model, **weights.tensors})
    tensors, groups, misfits = _compare(model, weights.tensors, rules)
    if misfits:
        name, more = misfits[0], len(misfits) - 1
        others = f" ({more} more differ)" if more else ""
        raise UsageError(
            f"{name} is {_shape(weights.tensors.get(name))} in {path!r} and {_shape(model.get(name))} in the "
            f"model{others}; {_remedy(network, weights, misfits)}"
        )
    notes = _check_function(path, weights, network, rules)
    if not tensors:
        raise UsageError(
            f"{path!r} has nothing to load: of its tensors {listed(weights.tensors)}, none that is selected has the "
            f"name and shape of one of the model's {listed(model)}; use a policy of this network"
        )
    return Match(tensors, groups, notes)


def _compare(
    model: Mapping[str, Tensor], given: Mapping[str, Tensor], rules: Rules
) -> tuple[dict[str, Tensor], dict[str, dict[str, str]], list[str]]:
    """Tensors and groups as in :class:`Match`, and the names of weights that break a rule."""
    tensors: dict[str, Tensor] = {}
    groups: dict[str, dict[str, str]] = {
        name: {} for name in ("loaded", "reshaped", "skipped", "missing", "unexpected")
    }
    misfits: list[str] = []
    for name in {**model, **given}:
        here, there = model.get(name), given.get(name)
        if not rules.select(name):
            groups["skipped"][name] = _shape(there if here is None else here)
        elif here is None or there is None:
            groups["unexpected" if here is None else "missing"][name] = _shape(there if here is None else here)
            if rules.strict:
                misfits.append(name)
        elif here.shape == there.shape:
            groups["loaded"][name] = _shape(here)
            tensors[name] = there
        elif rules.shapes == "overlap" and here.ndim == there.ndim > 0:
            groups["reshaped"][name] = f"{_shape(here)} ({_shape(there)} in the file)"
            tensors[name] = _overlap(here, there)
        else:
            groups["skipped"][name] = f"{_shape(here)} ({_shape(there)} in the file)"
            if rules.shapes != "skip":
                misfits.append(name)
    return tensors, groups, misfits


def matches(name: str, patterns: list[str]) -> bool:
    """Whether a name matches any of these shell-style patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def check_patterns(option: str, patterns: list[str], names: Mapping[str, Any]) -> None:
    """Refuse a pattern that selects nothing, which is a slip.

    Raises:
        UsageError: With the first such pattern.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(f"--pretrained.{option} has {pattern!r}, which matches none of {listed(names)}")


def fitting_settings(weights: PolicyWeights) -> dict[str, Any]:
    """The settings of the ``MLPActorCritic`` that a file's weights are of, as far as the file tells them."""
    return {name: value for name, value in (weights.network or {}).items() if value is not None}


def _overlap(here: Tensor, there: Tensor) -> Tensor:
    common = tuple(slice(min(sizes)) for sizes in zip(here.shape, there.shape, strict=True))
    tensor = here.detach().clone()
    if tensor.ndim == 2:
        tensor[: there.shape[0], there.shape[1] :] = 0
    tensor[common] = there[common].to(tensor)
    return tensor


def _remedy(network: ActorCritic, weights: PolicyWeights, misfits: list[str]) -> str:
    """The network's settings that fit the file, if there are any."""
    if weights.fitting is not None:
        return f"use {weights.fitting}"
    settings = fitting_settings(weights)
    differing = any(name in weights.tensors and name in network.state_dict() for name in misfits)
    others = "--pretrained.shapes skip or overlap" if differing else "--pretrained.strict false to load what fits"
    if type(network) is not MLPActorCritic or not settings:
        return f"use --pretrained.exclude to leave such weights out, or {others}"
    fitting = MLPActorCritic(network.observation_space, network.action_space, **settings)
    expected = {name: tensor.shape for name, tensor in fitting.state_dict().items()}
    if any(expected.get(name) != tensor.shape for name, tensor in weights.tensors.items()):
        return (
            "no settings of the network fit the file to this environment's observations and actions; use a file that "
            f"was trained for them, or {others}"
        )
    if expected.keys() != weights.tensors.keys() and misfits[0] not in weights.tensors:
        return f"the file has no such part: leave it out with --pretrained.exclude, or use {others}"
    options = [f"--model.network.init_args.{name} {shlex.quote(str(value))}" for name, value in settings.items()]
    return f"use {' '.join(options)}"


def _check_function(path: str, weights: PolicyWeights, network: ActorCritic, rules: Rules) -> list[str]:
    """Compare what the weights alone do not tell, where both the file and the network do.

    Raises:
        UsageError: If it is not the same and the rules are strict; otherwise a note says so.
    """
    if weights.network is None or not isinstance(network, MLPActorCritic):
        return []
    notes = []
    settings = {name: getattr(network, name) for name in ("activation", "tanh_mean")}
    for name, ours in {**settings, "distribution": network.continuous}.items():
        theirs = weights.network.get(name)
        if theirs in (None, ours):
            continue
        theirs_in_words, ours_in_words = str(theirs).lower(), str(ours).lower()
        if rules.strict:
            raise UsageError(
                f"{path!r} was trained with {name}={theirs_in_words} and the model has {ours_in_words}, so that the "
                f"weights would mean another function; add --model.network.init_args.{name} {theirs_in_words}"
            )
        notes.append(
            f"The file's {name} is {theirs_in_words}, the model's {ours_in_words}: the weights mean another function."
        )
    return notes


def _shape(tensor: Tensor | None) -> str:
    return shape_in_words(None if tensor is None else tuple(tensor.shape))
