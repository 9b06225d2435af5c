"""How long one update takes: by PyTorch, by the code generator, and by Inductor, PyTorch's own compiler.

Run it with ``python -m tests.benchmarks.updates``; it takes about ten minutes. An update is a minibatch's gradient,
clipping and a step of Adam. Inductor compiles the gradient alone, traced as the generator's is. Each is prepared twice,
in processes of their own: cold, with nothing in the caches of compilers, and then warm; and measured with one thread
and with as many as there are cores, of which the faster counts.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import gymnasium as gym
import torch

from pl_rl import CNNActorCritic, MLPActorCritic
from pl_rl.algorithm.loss import Coefficients, Minibatch, PPOLoss
from pl_rl.algorithm.updates import EagerUpdater, PartUpdater
from pl_rl.compiled.backend import make_example
from pl_rl.compiled.flops import count_flops
from pl_rl.compiled.inductor import InductorCompiled
from pl_rl.compiled.rounding import MOST_ROUNDING, relative_error
from pl_rl.compiled.updates import CompiledUpdater
from pl_rl.networks.actor_critic import ActorCritic
from tests.benchmarks.processes import last_line, num_cores
from tests.benchmarks.workers.workloads import WORKLOADS

MEASURED = ["cartpole", "cartpole-wide", "halfcheetah", "pong"]
NAMES = {"eager": "PyTorch", "generator": "generator", "inductor": "Inductor"}
COEFFICIENTS = Coefficients(torch.tensor(0.2), vf_coef=0.5, ent_coef=0.01, vf_clip_coef=0.2)
MAX_GRAD_NORM = 0.5
SECONDS, ROUNDS = 0.3, 7
"""Of a round of updates, of which the fastest counts."""


UPDATERS: dict[str, Callable[..., PartUpdater]] = {
    "eager": lambda loss, optimizer, _: EagerUpdater(loss, optimizer),
    "generator": CompiledUpdater,
    "inductor": lambda loss, optimizer, example: CompiledUpdater(loss, optimizer, example, InductorCompiled),
}


def make_loss(workload: str) -> tuple[PPOLoss, torch.optim.Optimizer, Minibatch]:
    """Of a workload, with its network, optimizer and a minibatch."""
    work = WORKLOADS[workload]
    if work.atari:
        images, presses = gym.spaces.Box(0, 255, (4, 84, 84), "uint8"), gym.spaces.Discrete(6)
        network: ActorCritic = CNNActorCritic(images, presses)
    else:
        env = gym.make(work.env_id)
        network = MLPActorCritic(
            env.observation_space,
            env.action_space,
            encoder_sizes=work.encoder_sizes,
            actor_sizes=work.head_sizes,
            critic_sizes=work.head_sizes,
            activation=work.activation,
        )
    optimizer = torch.optim.Adam(network.parameters(), lr=work.learning_rate, eps=work.adam_eps, fused=True)
    example = make_example(network, torch.uint8 if work.atari else torch.float32, work.minibatch_size)
    return PPOLoss(network, work.clip_vloss), optimizer, example


def measure(workload: str, backend: str, threads: int) -> dict[str, float]:
    """Seconds until the first update is done, seconds of an update, and the operations of its gradient.

    Raises:
        RuntimeError: If the gradient is not PyTorch's.
    """
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    loss, optimizer, minibatch = make_loss(workload)
    gradients = torch.autograd.grad(loss(minibatch, COEFFICIENTS)[0], list(loss.parameters()))
    began = time.perf_counter()
    updater = UPDATERS[backend](loss, optimizer, minibatch)
    with updater.iteration(COEFFICIENTS, MAX_GRAD_NORM):
        updater.gradient(minibatch)
        difference = relative_error(updater.flat_gradient(), torch.cat([part.flatten() for part in gradients]))
        updater.step()
        prepared = time.perf_counter() - began
        seconds = min(_seconds_of(updater, minibatch) for _ in range(ROUNDS))
    updater.close()
    if not difference < MOST_ROUNDING:
        raise RuntimeError(f"the gradient differs from PyTorch's by {difference:.1e}")
    return {"prepared": prepared, "seconds": seconds, "flops": count_flops(loss.network, minibatch.obs)}


def _seconds_of(updater: PartUpdater, minibatch: Minibatch) -> float:
    """Of one update, over a round of them."""
    began, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < SECONDS:
        updater.gradient(minibatch)
        updater.step()
        count += 1
    return passed / count


def in_process(workload: str, backend: str, threads: int, caches: str) -> dict[str, float]:
    """:func:`measure` in a process of its own.

    Raises:
        RuntimeError: If it fails, with what it said last.
    """
    task = json.dumps([workload, backend, threads])
    variables = {
        **os.environ,
        "XDG_CACHE_HOME": caches,
        "TMPDIR": caches,
        "OMP_NUM_THREADS": str(threads),
    }
    command = [sys.executable, "-m", "tests.benchmarks.updates", "--one", task]
    process = subprocess.run(command, env=variables, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"{workload} by {backend}: {last_line(process.stderr)}")
    result: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    return result


def row(workload: str, backend: str) -> str:
    """A table's row."""
    with tempfile.TemporaryDirectory() as caches:
        counts = sorted({1, num_cores()})
        cold, *_ = of_threads = [in_process(workload, backend, threads, caches) for threads in counts]
        warm = in_process(workload, backend, counts[0], caches)
    fastest = min([*of_threads, warm], key=lambda result: result["seconds"])
    cells = [
        f"`{workload}`, {WORKLOADS[workload].minibatch_size:,} samples",
        NAMES[backend],
        f"{1e3 * fastest['seconds']:.3g} ms",
        f"{fastest['flops'] / fastest['seconds'] / 1e9:.0f}",
        f"{cold['prepared']:.1f} s",
        f"{warm['prepared']:.1f} s",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure everything, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", nargs="+", choices=MEASURED, default=MEASURED)
    parser.add_argument("--backends", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        print(json.dumps(measure(*given.one)))
        return
    print("| minibatch | by | update | GFLOP/s | prepared, cold | prepared, warm |\n|---|---|---|---|---|---|")
    for workload in given.workloads:
        for backend in given.backends:
            print(row(workload, backend), flush=True)


if __name__ == "__main__":
    main()
