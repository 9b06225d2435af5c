"""Trains a config with several seeds, tests what was trained, and writes the row and the picture of a table of results.

Run it with ``python -m tests.benchmarks.results --config acrobot.yaml --seeds 11-30``. A study that was stopped goes on
with the same command: what is trained is not trained again, and what was being trained is continued. With ``--peer``
Stable-Baselines3 and sb3-contrib train the same config, which begins a stopped seed afresh.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from pl_rl.cli.configs import find_config
from pl_rl.tools.aggregation import bootstrap_interval, interquartile_mean
from tests.benchmarks.peers import find_python
from tests.benchmarks.processes import num_cores

WORKER = Path(__file__).parent / "workers" / "policies_with_sb3.py"
ROOT = Path("lightning_logs") / "results"
RESULT = "result.json"
EPISODES = 100
# Of tests; a function of no number that varies, so that the same policy gives the same result anywhere.
EVAL_NUM_ENVS = 20


class Result(NamedTuple):
    """What one seed came to."""

    seed: int
    mean: float
    """Return of the final policy over all test episodes."""
    worst: float
    """Return of its worst episode."""
    env_steps: int
    seconds: float
    """Of training, over all resumes."""


def seeds_of(text: str) -> list[int]:
    """``1,2,11-20`` as numbers, each once.

    Raises:
        ArgumentTypeError: If it is no such list.
    """
    seeds: dict[int, None] = {}
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            span = range(int(first), int(last if dash else first) + 1)
        except ValueError:
            span = range(0)
        if not span:
            raise argparse.ArgumentTypeError(f"{text!r} names no seeds; write them like 1,2,11-20")
        seeds.update(dict.fromkeys(span))
    return list(seeds)


def train_and_test(config: str, seed: int, folder: Path, overrides: Sequence[str]) -> Result:
    """What a seed comes to, found in its folder or worked out there by a process.

    Args:
        config: The config's name or file.
        seed: Of everything.
        folder: For the seed's run.
        overrides: Further arguments of ``fit``.

    Raises:
        CalledProcessError: If the process fails.
    """
    asked = {"config": config, "seed": seed, "overrides": list(overrides)}
    path = folder / RESULT
    if not path.exists() or json.loads(path.read_text())["asked"] != asked:
        folder.mkdir(parents=True, exist_ok=True)
        # One thread in each process: seeds are what runs side by side.
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}
        command = [sys.executable, "-m", "tests.benchmarks.results", "--one", json.dumps(asked)]
        with (folder / "output.txt").open("ab") as output:
            subprocess.run(command, cwd=folder, env=variables, stdout=output, stderr=output, check=True)
    return Result(**json.loads(path.read_text())["result"])


def train_and_test_peer(config: str, seed: int, folder: Path, _: Sequence[str]) -> Result:
    """As :func:`train_and_test`, by Stable-Baselines3 or sb3-contrib and as the config has it.

    Raises:
        CalledProcessError: If the process fails.
    """
    model = yaml.safe_load(find_config(config).read_text())["model"]
    asked = {"model": model, "seed": seed, "episodes": EPISODES, "eval_num_envs": EVAL_NUM_ENVS}
    kept = folder / RESULT
    if not kept.exists() or json.loads(kept.read_text())["asked"] != asked:
        folder.mkdir(parents=True, exist_ok=True)
        command = [find_python("sb3"), str(WORKER), json.dumps(asked)]
        with (folder / "output.txt").open("ab") as output:
            said = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=output, check=True).stdout
        kept.write_text(json.dumps({"asked": asked, "result": json.loads(said.splitlines()[-1])}))
    return Result(**json.loads(kept.read_text())["result"])


def train_and_test_here(asked: dict[str, Any]) -> None:
    """Train a seed in the working directory, or continue, test the final policy and write the result there."""
    import pl_rl
    from pl_rl import cli
    from tests.support import counters_in

    arguments = ["fit", "--config", asked["config"], "--seed_everything", str(asked["seed"]), "--auto_resume"]
    cli.main([*arguments, "--trainer.enable_progress_bar", "false", *asked["overrides"]])
    checkpoint = newest_run(Path()) / "checkpoints/last.ckpt"
    trainer = pl_rl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    model = pl_rl.PPO.load_from_checkpoint(checkpoint, eval_episodes=EPISODES, eval_num_envs=EVAL_NUM_ENVS)
    (statistics,) = trainer.test(model, ckpt_path=checkpoint, verbose=False)
    counters = counters_in(checkpoint)
    result = Result(
        asked["seed"],
        statistics["test/return_mean"],
        statistics["test/return_min"],
        counters["env_steps"],
        counters["elapsed_seconds"],
    )
    partial = Path(f"{RESULT}.partial")
    partial.write_text(json.dumps({"asked": asked, "result": result._asdict()}))
    partial.replace(RESULT)


def newest_run(folder: Path) -> Path:
    """The run directory in a seed's folder that was trained last."""
    return max((folder / "lightning_logs").glob("version_*"), key=lambda run: (run / "checkpoints").stat().st_mtime)


def row(config: str, results: Sequence[Result]) -> str:
    """A table's row: the interquartile mean with its 95 % interval over seeds, the worst seed, env steps, seconds."""
    means, steps = np.array([result.mean for result in results]), np.array([result.env_steps for result in results])
    low, high = bootstrap_interval(means[None], interquartile_mean)
    worst = min(results, key=lambda result: result.mean)
    span = f"{steps[0]:,}"
    if len(set(steps)) > 1:
        span = f"{interquartile_mean(steps):,.0f} ({steps.min():,} to {steps.max():,})"
    cells = [
        f"`{Path(config).stem}`",
        ", ".join(spans(sorted(result.seed for result in results))),
        f"{interquartile_mean(means):,.1f} ({low[0]:,.1f} to {high[0]:,.1f})",
        f"{worst.mean:,.1f} (seed {worst.seed})",
        span,
        f"{np.median([result.seconds for result in results]):,.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def spans(seeds: Sequence[int]) -> list[str]:
    """Ascending numbers, neighbours as "11 to 30"."""
    starts = [i for i, seed in enumerate(seeds) if i == 0 or seed != seeds[i - 1] + 1]
    parts = [seeds[start:end] for start, end in zip(starts, [*starts[1:], len(seeds)], strict=True)]
    return [str(part[0]) if len(part) == 1 else f"{part[0]} to {part[-1]}" for part in parts]


def main() -> None:
    """Train what is missing, side by side, and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", help="name or file of the config")
    parser.add_argument("--seeds", type=seeds_of, help="such as 1,2,11-20")
    parser.add_argument("--processes", type=int, default=num_cores(), help="seeds that are trained side by side")
    parser.add_argument("--folder", type=Path, help=f"for the runs; {ROOT}/CONFIG by default")
    parser.add_argument("--peer", action="store_true", help="train with Stable-Baselines3 or sb3-contrib")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    arguments, overrides = parser.parse_known_args()
    if arguments.one is not None:
        train_and_test_here(arguments.one)
        return
    if not arguments.config or not arguments.seeds:
        parser.error("give --config and --seeds")
    if arguments.peer and overrides:
        parser.error(f"--peer trains a config as it is: leave out {' '.join(overrides)}")
    config = str(Path(arguments.config).resolve()) if Path(arguments.config).exists() else arguments.config
    folder = arguments.folder or ROOT / f"{Path(config).stem}{'_peer' if arguments.peer else ''}"
    train = train_and_test_peer if arguments.peer else train_and_test
    folders = {seed: folder / f"seed_{seed}" for seed in arguments.seeds}
    with ThreadPoolExecutor(arguments.processes) as pool:
        started = {seed: pool.submit(train, config, seed, folders[seed], overrides) for seed in folders}
    failed = [seed for seed, future in started.items() if future.exception()]
    for seed in failed:
        print(f"seed {seed} failed: {folders[seed]}/output.txt says why", file=sys.stderr)
    results = [future.result() for seed, future in started.items() if seed not in failed]
    if results:
        from pl_rl.tools.plotting import Drawing, plot_runs

        for result in results:
            print(f"seed {result.seed}: {result.mean:,.1f}, its worst episode {result.worst:,.1f}")
        print("\n| config | seeds | return, IQM (95 %) | worst seed | env steps | seconds |\n|---|---|---|---|---|---|")
        print(row(config, results))
        if not arguments.peer:
            plot_runs([newest_run(folders[result.seed]) for result in results], folder, Drawing(aggregate="iqm"))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
