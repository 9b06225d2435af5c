"""A checkpoint in words."""

from pathlib import Path
from typing import Any

from torch import Tensor

from pl_rl.agent import STATISTICS
from pl_rl.algorithm.evaluation import format_return
from pl_rl.callbacks.pretrained import lineage_rows
from pl_rl.checkpoints.format import STATE_KEY, read_checkpoint
from pl_rl.checkpoints.schema import shards_of
from pl_rl.runs.directory import age_of, display_path, run_of_checkpoint


def describe_checkpoint(path: Path) -> list[tuple[str, str]]:
    """What a checkpoint holds, as rows of a name and a value.

    Raises:
        UsageError: If it cannot be read or is none of ours.
    """
    checkpoint = read_checkpoint(path)
    state, settings = checkpoint[STATE_KEY], checkpoint["hyper_parameters"]
    counters, shards = state["counters"], shards_of(state["collector"])
    episodes = sum(shard["episodes"]["total"] for shard in shards)
    tensors = checkpoint["state_dict"]
    weights = [
        tensor
        for name, tensor in tensors.items()
        if isinstance(tensor, Tensor) and not name.startswith(tuple(STATISTICS.values()))
    ]
    run = run_of_checkpoint(path)
    rows = [
        ("file", f"{display_path(path)}, {path.stat().st_size:,} bytes, sound, format {state['format_version']}"),
        ("saved", f"{age_of(path)} ago"),
        ("run", "none, it lies outside of one" if run is None else display_path(run)),
        (
            "at",
            f"iteration {counters['iteration']:,}, train_iter {counters['train_iter']:,}, "
            f"env_steps {counters['env_steps']:,} of {_setting(settings, 'total_env_steps')}",
        ),
        ("trained", f"{counters['elapsed_seconds']:,.1f} s, {episodes:,} episodes"),
        ("seed", str(counters["run_seed"])),
        ("environment", f"{_setting(settings, 'num_envs')} x {settings['env']['id']}"),
        ("environment state", _environment_state([shard["environments"] for shard in shards])),
        *([("shards", str(len(shards)))] if len(shards) > 1 else []),
        ("network", f"{settings['network']['class_path']}, {sum(t.numel() for t in weights):,} parameters"),
        *_statistics_rows(tensors),
        ("evaluation", _evaluation(checkpoint["callbacks"])),
        ("saved on", ", ".join(f"{name} {value}" for name, value in state["platform"].items())),
    ]
    if not state["between_iterations"]:
        rows.append(("caution", "saved in the middle of an iteration: a resume is not exact"))
    if state["parent"] is not None:
        parent = state["parent"]
        rows.append(("branched from", f"{parent['checkpoint']} at train_iter {parent['train_iter']:,}"))
    lineage = checkpoint["callbacks"].get("PretrainedCheckpoint")
    return rows + (lineage_rows(lineage) if lineage else [])


def _setting(settings: dict[str, Any], name: str) -> str:
    """A number of the settings, which those of a subclass may lack."""
    return f"{settings[name]:,}" if name in settings else "?"


def _environment_state(shards: list[dict[str, Any] | None]) -> str:
    saved = [shard for shard in shards if shard is not None]
    if len(saved) < len(shards):
        return "none: a resume begins fresh episodes"
    if isinstance(saved[0]["state"], list):
        longest = max((len(replay["actions"]) for shard in saved for replay in shard["state"]), default=0)
        return f"seeds and actions to replay, {longest:,} steps at most ({saved[0]['class']})"
    return f"saved whole ({saved[0]['class']})"


def _statistics_rows(tensors: dict[str, Tensor]) -> list[tuple[str, str]]:
    observations, rewards, values = (f"{prefix}count" for prefix in STATISTICS.values())
    rows = []
    if observations in tensors:
        rows.append(("observations", f"normalized by statistics of {int(tensors[observations]):,}"))
    if rewards in tensors:
        deviation = float(tensors[f"{STATISTICS['norm_reward']}var"]) ** 0.5
        rows.append(("rewards", f"divided by {deviation:.4g} in training, learnt from {int(tensors[rewards]):,}"))
    if values in tensors:
        rows.append(("values", f"normalized by statistics of {int(tensors[values]):,} returns"))
    return rows


def _evaluation(callbacks: dict[str, Any]) -> str:
    state = callbacks.get("PeriodicEvaluation", {})
    if not state.get("latest"):
        return "none yet"
    latest = f"{format_return(state['latest']['return_mean'])} at train_iter {state['train_iter']:,}"
    return f"best return {format_return(state['best_return'])}, latest {latest}"
