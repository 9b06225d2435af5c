"""Learning curves of the Atari configs beside those of CleanRL and Stable-Baselines3.

Run it with ``python -m tests.benchmarks.atari_curves PNG RUN [RUN ...]``, run directories of Pong and of Breakout.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import numpy as np
import yaml
from matplotlib import pyplot as plt
from matplotlib.ticker import EngFormatter

from pl_rl.tools.plotting import read_segments

GAMES = {"ALE/Pong-v5": "Pong", "ALE/Breakout-v5": "Breakout"}
# Both have no sticky actions (NoFrameskip-v4) and train to 10 million env steps. Returns of games in training:
# CleanRL's are means of three seeds, read from the pictures at
# https://docs.cleanrl.dev/rl-algorithms/ppo/#experiment-results_1. Stable-Baselines3's are RL Zoo's single runs: means
# of the games that ended within 100,000 env steps, by the monitor.csv (which count frames, four an env step) in the
# folders ppo/*NoFrameskip-v4_1 of https://github.com/DLR-RM/rl-trained-agents.
PUBLISHED_ENV_STEPS = 1e6 * np.array([0.05, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0])
PUBLISHED_RETURNS = {
    "Pong": {
        "CleanRL": [-20.6, -20.4, -19.5, -14.8, -8.8, -3.1, 5.1, 9.7, 12.8, 16.1, 17.1],
        "Stable-Baselines3": [-20.1, -20.3, -17.2, -12.7, -8.4, -3.1, -0.4, 10.7, 17.5, 19.7, 20.5],
    },
    "Breakout": {
        "CleanRL": [2.7, 6.2, 10.3, 14.2, 19.1, 25.4, 32.0, 40.6, 48.8, 68.4, 101.8],
        "Stable-Baselines3": [2.3, 10.3, 15.2, 20.7, 25.1, 32.7, 41.7, 48.6, 61.6, 76.6, 132.9],
    },
}
DASHES = {"CleanRL": "--", "Stable-Baselines3": ":"}


class Learning(NamedTuple):
    """A run's evaluations."""

    game: str
    label: str
    env_steps: np.ndarray
    returns: np.ndarray
    """Mean of each evaluation's games; below, the least and the largest."""
    low: np.ndarray
    high: np.ndarray


def read(run: Path) -> Learning:
    """A run's evaluations, and which game it plays."""
    env = yaml.safe_load((run / "hparams.yaml").read_text())["env"]
    sticky = env["kwargs"].get("repeat_action_probability", 0.25)
    label = f"pl_rl, {'sticky actions' if sticky else 'actions not sticky'}, evaluations"
    segments = read_segments(run, "evaluator_step")
    return Learning(GAMES[env["id"]], label, *(np.concatenate(parts) for parts in zip(*segments, strict=True)))


def main() -> None:
    """Draw the games side by side, as far as the runs reach, and print what is compared."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("png", type=Path)
    parser.add_argument("runs", type=Path, nargs="+", metavar="run")
    arguments = parser.parse_args()
    learnings = [read(run) for run in arguments.runs]
    figure, axes = plt.subplots(1, len(GAMES), figsize=(9.6, 3.6), dpi=150, layout="constrained")
    for axis, game in zip(axes, GAMES.values(), strict=True):
        ours = [learning for learning in learnings if learning.game == game]
        for learning in ours:
            axis.fill_between(learning.env_steps, learning.low, learning.high, alpha=0.18, linewidth=0)
            axis.plot(learning.env_steps, learning.returns, marker=".", markersize=4, label=learning.label)
        last = max((learning.env_steps[-1] for learning in ours), default=0)
        until = np.searchsorted(PUBLISHED_ENV_STEPS, last) + 1
        for library, returns in PUBLISHED_RETURNS[game].items():
            axis.plot(PUBLISHED_ENV_STEPS[:until], returns[:until], DASHES[library], color="0.4", label=library)
        axis.set(title=game, xlabel="env steps", ylabel="return of a game")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.grid(alpha=0.3, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, loc="upper left", fontsize="small")
        for learning in ours:
            at = learning.env_steps[-1]
            there = {
                library: round(float(np.interp(at, PUBLISHED_ENV_STEPS, returns)), 1)
                for library, returns in PUBLISHED_RETURNS[game].items()
            }
            print(f"{game}, {learning.label}: {learning.returns[-1]:.1f} at {at:,} env steps; {there}")
    figure.savefig(arguments.png)
    print(arguments.png)


if __name__ == "__main__":
    main()
