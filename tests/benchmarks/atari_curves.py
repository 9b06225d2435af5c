"""Learning curves of the Atari configs beside CleanRL's.

Run it with ``python -m tests.benchmarks.atari_curves PNG PONG_RUN BREAKOUT_RUN``, run directories.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import EngFormatter

from pl_rl.tools.plotting import read_segments

# Read from the pictures at https://docs.cleanrl.dev/rl-algorithms/ppo/#experiment-results_1: mean returns of three
# seeds of ppo_atari.py in training, on NoFrameskip-v4, whose actions are not sticky.
CLEANRL_ENV_STEPS = 1e6 * np.array([0.05, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0])
CLEANRL_RETURNS = {
    "Pong": [-20.6, -20.4, -19.5, -14.8, -8.8, -3.1, 5.1, 9.7, 12.8, 16.1, 17.1],
    "Breakout": [2.7, 6.2, 10.3, 14.2, 19.1, 25.4, 32.0, 40.6, 48.8, 68.4, 101.8],
}


def main() -> None:
    """Draw both games side by side, as far as the runs reach, and print what is compared."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("png", type=Path)
    parser.add_argument("runs", type=Path, nargs=len(CLEANRL_RETURNS), metavar="run")
    arguments = parser.parse_args()
    figure, axes = plt.subplots(1, len(CLEANRL_RETURNS), figsize=(9.6, 3.6), dpi=150, layout="constrained")
    for axis, (game, published), run in zip(axes, CLEANRL_RETURNS.items(), arguments.runs, strict=True):
        segments = read_segments(run, "evaluator_step")
        steps, mean, low, high = (np.concatenate(parts) for parts in zip(*segments, strict=True))
        axis.fill_between(steps, low, high, alpha=0.18, linewidth=0)
        axis.plot(steps, mean, marker=".", label="pl_rl, sticky actions, evaluations")
        until = np.searchsorted(CLEANRL_ENV_STEPS, steps[-1]) + 1
        axis.plot(CLEANRL_ENV_STEPS[:until], published[:until], "--", color="0.4", label="CleanRL, published")
        axis.set(title=game, xlabel="env steps", ylabel="return of a game")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.grid(alpha=0.3, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, loc="upper left")
        there = np.interp(steps[-1], CLEANRL_ENV_STEPS, published)
        print(f"{game}: {mean[-1]:.1f} at {steps[-1]:,} env steps, CleanRL's {there:.1f}")
    figure.savefig(arguments.png)
    print(arguments.png)


if __name__ == "__main__":
    main()
