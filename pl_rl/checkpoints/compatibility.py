"""Whether a checkpoint fits the agent that is to go on from it."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from pl_rl.agent import STATISTICS, Agent
from pl_rl.checkpoints.format import STATE_KEY, check_content
from pl_rl.checkpoints.restoring import check_restorable
from pl_rl.checkpoints.schema import check_checkpoint
from pl_rl.errors import RunFailure, UsageError
from pl_rl.files.schema import Misfit
from pl_rl.networks.changes import changed_network, changed_structure, structure_of
from pl_rl.networks.description import shape_in_words


def check_saved(checkpoint: Mapping[str, Any]) -> None:
    """Look at a checkpoint, which callbacks have added their parts to, as a resume will.

    Raises:
        RunFailure: If nobody could continue it.
    """
    try:
        check_checkpoint(checkpoint)
    except Misfit as error:
        raise RunFailure(
            f"no checkpoint of this run could be continued: {error}; keep what the model and callbacks save "
            "to what each entry is for, own ones to plain data"
        ) from error


def check_loaded(agent: Agent, checkpoint: dict[str, Any]) -> None:
    """Bring what Lightning has read to the present format, and refuse what does not fit the agent.

    Raises:
        UsageError: Before Lightning fails over the tensors of another network one by one.
    """
    if STATE_KEY in checkpoint:  # a file of weights alone has no format of ours
        check_content("the checkpoint", checkpoint)
        if agent._trainer is not None:
            check_restorable(checkpoint, agent.trainer)
    check_fit(agent, checkpoint, branch=agent.branching)


def check_fit(agent: Agent, checkpoint: Mapping[str, Any], branch: bool = False, fitting: bool = False) -> None:
    """Whether a checkpoint's weights are weights of an agent's network, learnt from what it would learn from here.

    Args:
        agent: Whose network it is to be.
        checkpoint: Its content.
        branch: Whether a run of its own begins at it, whose network may compute something else from the weights.
        fitting: Whether one could begin, which is then named as a way out.

    Raises:
        UsageError: With the first setting or tensor that does not fit.
    """
    _check_tensors(agent.state_dict(), checkpoint["state_dict"])
    if not branch:
        _check_network(agent, checkpoint, fitting)


def _check_tensors(here: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    for setting, prefix in STATISTICS.items():
        before, after = (any(name.startswith(prefix) for name in tensors) for tensors in (there, here))
        if before != after:
            raise UsageError(
                f"{setting} is {str(before).lower()} in the checkpoint and {str(after).lower()} in the model; what "
                f"the network has learnt depends on it, so leave {setting} as it was"
            )
    for name in sorted(here.keys() | there.keys()):
        shapes = [tuple(tensors[name].shape) if name in tensors else None for tensors in (there, here)]
        if shapes[0] != shapes[1]:
            there_shape, here_shape = map(shape_in_words, shapes)
            raise UsageError(
                f"{name} is {there_shape} in the checkpoint and {here_shape} in the model; a run's "
                "spaces and network cannot change when it is continued, so leave env and network as they were"
            )


def _check_network(agent: Agent, checkpoint: Mapping[str, Any], fitting: bool) -> None:
    there_network, here_network = checkpoint.get("hyper_parameters", {}).get("network"), agent.hparams.get("network")
    # load_from_checkpoint has put there what it was given, if it was.
    if not isinstance(there_network, Mapping) or not isinstance(here_network, Mapping):
        return
    change = changed_network(there_network, here_network, type(agent.network))
    state = checkpoint.get(STATE_KEY, {})
    # A script may edit what load_from_checkpoint gives. Other versions may say the same in other words.
    resumes = fitting or agent._trainer is not None
    if change is None and resumes and state.get("platform", {}).get("torch") == version("torch"):
        change = changed_structure(state.get("network") or [], structure_of(agent.network))
    if change is not None:
        own = ", or begin a run of its own with --branch" if fitting else ""
        raise UsageError(
            f"network.{change[0]} is {change[1]!r} in the checkpoint and {change[2]!r} in the model; what the "
            f"network has learnt depends on it, so leave it as it was{own}"
        )
