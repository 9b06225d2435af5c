"""A trained policy from wherever it lies."""

import re
from collections.abc import Iterable
from pathlib import Path

from pl_rl.deploy.policy import TrainedPolicy, checked_settings, load_weights, read_trained
from pl_rl.errors import UsageError
from pl_rl.runs.directory import find_checkpoint

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def load_policy(source: str | Path = "last", trust: Iterable[str] = ()) -> TrainedPolicy:
    """A policy that acts.

    Example::

        policy = pl_rl.load_policy("last")
        env = policy.make_env()
        obs, info = env.reset(seed=0)
        obs, reward, terminated, truncated, info = env.step(policy.act(obs))

    Args:
        source: A checkpoint: its path, or the name of one in the newest run under ``lightning_logs`` (``last``,
            ``best``). Or a folder that ``export --to hub`` wrote, or ``OWNER/NAME`` on the model hub; both need
            ``pip install "pl-rl[hub]"``.
        trust: Names in a file from elsewhere that may be imported and called, beyond those that
            :mod:`pl_rl.runs.trust` allows; that of a package allows all in it.

    Returns:
        The policy, on the CPU and in evaluation mode.

    Raises:
        UsageError: If there is none, it cannot be made from the file alone, or it names what is not trusted.
    """
    folder = Path(source)
    is_hub_name = _HUB_NAME.fullmatch(str(source)) and folder.suffix != ".ckpt" and not folder.parent.exists()
    if folder.is_dir() or is_hub_name:
        return _of_hub(source, trust)
    path = find_checkpoint(str(source))
    trained = read_trained(path)
    settings = checked_settings(trained.settings, trained.spaces, path, trust)
    policy = TrainedPolicy(settings, trained.spaces, trust)
    load_weights(policy, trained.tensors)
    return policy


def _of_hub(source: str | Path, trust: Iterable[str]) -> TrainedPolicy:
    """The policy in a folder or a repository of the hub.

    Raises:
        UsageError: If there is none, or a package is missing.
    """
    try:
        from pl_rl.deploy.hub import HubPolicy
    except ImportError as error:
        raise UsageError(f"{str(source)!r} is read by huggingface_hub: {error}") from error
    try:
        return HubPolicy.from_pretrained(source, trust=trust)
    except OSError as error:  # the hub's errors, and the network's
        reason = " ".join(str(error).split())[:300]
        raise UsageError(
            f"{str(source)!r} is no file or folder here, and not to be had from the model hub ({type(error).__name__}: "
            f"{reason}); give the path of a checkpoint, or a name as on the hub"
        ) from error
