"""``python -m tests.chaos [--seed N]``: the table of what runs survive; exit status 1 if anything was lost."""

import argparse
import random
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from tests.chaos.code_cache import code_cache
from tests.chaos.loggers import loggers
from tests.chaos.ranks import distributed
from tests.chaos.scenarios import Outcome
from tests.chaos.strangers import Chaos

SCENARIOS = {
    "kills": Chaos.kills,
    "signals": Chaos.signals,
    "full_disk": Chaos.full_disk,
    "read_only": Chaos.read_only,
    "cut_and_flipped": Chaos.cut_and_flipped,
    "nothing_sound": Chaos.nothing_sound,
    "two_processes": Chaos.two_processes,
    "clock": Chaos.clock,
    "workers": Chaos.workers,
    "hidden_state": Chaos.hidden_state,
    "code_cache": code_cache,
    "links": Chaos.links,
    "foreign_folders": Chaos.foreign_folders,
    "flipped_events": Chaos.flipped_events,
}


def main() -> None:
    """Do it all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="Of the random moments.")
    parser.add_argument("--only", choices=[*SCENARIOS, "distributed", "loggers"], help="Name of a single scenario.")
    parser.add_argument("--kills", type=int, default=5, help="SIGKILLs of the run with each kind of logger.")
    parser.add_argument("--rank_kills", type=int, default=2, help="SIGKILLs of processes of a run of several.")
    args = parser.parse_args()
    scenarios = {
        **SCENARIOS,
        "distributed": partial(distributed, kills=args.rank_kills),
        "loggers": partial(loggers, kills=args.kills),
    }
    torch.set_num_threads(1)
    print(f"seed {args.seed}", flush=True)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="pl_rl-chaos-") as folder:
        chaos = Chaos(Path(folder), args.seed)
        for name in scenarios if args.only is None else [args.only]:
            started = time.monotonic()
            outcome = scenarios[name](chaos)
            outcomes += outcome if isinstance(outcome, list) else [outcome]
            print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    print("| what happened | tried | survived exactly | refused clearly | lost |\n|---|---|---|---|---|")
    for outcome in outcomes:
        print(f"| {outcome.what} | {outcome.tried:,} | {outcome.exact:,} | {outcome.refused:,} | {len(outcome.lost)} |")
    for outcome in outcomes:
        for loss in outcome.lost:
            print(f"lost: {outcome.what}: {loss}")
    short = [outcome.what for outcome in outcomes if outcome.tried != outcome.exact + outcome.refused]
    sys.exit(1 if short or any(outcome.lost for outcome in outcomes) else 0)


if __name__ == "__main__":
    main()
