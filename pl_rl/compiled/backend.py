"""When to compile a run's updates and action selection, and the audit that they compute what PyTorch does."""

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.func import functional_call
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from pl_rl.algorithm.loss import Coefficients, Minibatch, PPOLoss
from pl_rl.compiled.acting import CompiledActionSelector
from pl_rl.compiled.flops import count_flops
from pl_rl.compiled.function import Compiled
from pl_rl.compiled.module_state import ModuleWatch, find_hook
from pl_rl.compiled.rounding import MOST_ROUNDING, excess_difference, perturbed, relative_error
from pl_rl.compiled.tracing import first_line
from pl_rl.compiled.updates import CompiledUpdater
from pl_rl.errors import CompilationError, RunFailure
from pl_rl.networks.actor_critic import ActorCritic
from pl_rl.networks.modes import evaluation_mode, training_mode
from pl_rl.networks.records import Memory, Observations, leaves, rows, space_tree, tree_map, with_memory
from pl_rl.seeding.random_state import restore_random_state, save_random_state

# Compiling takes a few seconds, once per network and machine. It saves about 1 ms per update of a small network, and
# about 1 ms per 2**27 FLOP of a large one; so it pays from a saving of about a second on.
COMPILE_FROM = 1000
FLOPS_OF_A_MILLISECOND = 2**27

# An audit costs about as much as two eager updates.
ITERATIONS_BETWEEN_AUDITS = 100


def is_worth_compiling(loss: PPOLoss, num_updates: int, obs_dtype: Any, minibatch_size: int) -> bool:
    """By a run's number of updates and the FLOPs of one, neither of which changes when the run is repeated.

    Args:
        loss: With the network in it.
        num_updates: Of the whole run.
        obs_dtype: Of observations in a rollout, or a dictionary of their types.
        minibatch_size: Samples of an update.
    """
    if num_updates >= COMPILE_FROM or next(loss.parameters()).device.type != "cpu":
        return num_updates >= COMPILE_FROM
    return num_updates * flops_of(loss, obs_dtype, minibatch_size) >= COMPILE_FROM * FLOPS_OF_A_MILLISECOND


def flops_of(loss: PPOLoss, obs_dtype: Any, minibatch_size: int) -> int:
    """Of a minibatch's gradient; 0 if they cannot be counted."""
    try:
        return count_flops(loss.network, make_example(loss.network, obs_dtype, minibatch_size).obs)
    except Exception:  # a custom distribution may need other outputs
        return 0


def make_example(network: ActorCritic, obs_dtype: Any, minibatch_size: int) -> Minibatch:
    """A minibatch of random numbers in the shapes and types of a run's, whose gradient is not zero."""
    generator, length = torch.Generator().manual_seed(0), network.sequence_length
    batch = (minibatch_size,) if length is None else (minibatch_size // length, length)

    def random(like: Any, dtype: torch.dtype) -> Tensor:
        # Black images, or switches that are all off, would give no gradient.
        largest = 1 if dtype.is_floating_point else 256 if dtype == torch.uint8 else 2
        return (largest * torch.rand(*batch, *like.shape, generator=generator)).to(dtype)

    obs = tree_map(random, space_tree(network.observation_space), obs_dtype)
    memory = network.first_memory(1)
    if memory is not None:
        memory = Memory(*(random(of_one, of_one.dtype) for of_one in rows(memory, 0)))
    distribution = network.distribution
    with torch.no_grad():
        outputs = network.masked(torch.zeros(*batch, distribution.num_outputs), obs)
        actions = distribution.sample(outputs, distribution.noise(batch, generator))
        log_probs = distribution.log_prob(outputs, actions)
    others = torch.randn(3, *batch, generator=generator).unbind()
    return Minibatch(with_memory(obs, memory), actions, log_probs, *others)


class CompiledLearner:
    """Compiled updates and action selection of a network, and the audit of both.

    Args:
        loss: With the network in it.
        optimizer: Takes the steps.
        obs_dtype: Of observations in a rollout, or a dictionary of their types.
        minibatch_size: Samples of an update.
        num_envs: ``N``, environments that are stepped together.
        back_end: Compiles both.

    Attributes:
        updates: Compiled in training mode.
        acting: Compiled in evaluation mode, in which rollouts are collected.

    Raises:
        CompilationError: If this network, this optimizer or this machine does not allow it, for whatever reason.
    """

    def __init__(
        self,
        loss: PPOLoss,
        optimizer: torch.optim.Optimizer,
        obs_dtype: Any,
        minibatch_size: int,
        num_envs: int,
        back_end: type[Compiled] = Compiled,
    ) -> None:
        self._loss, self._network, self._back_end = loss, loss.network, back_end
        random_state = save_random_state()
        try:
            with training_mode(self._network):
                self._watch = ModuleWatch(loss)
                try:
                    self._compile(optimizer, make_example(self._network, obs_dtype, minibatch_size), num_envs)
                    change = self._watch.change()
                finally:
                    self._watch.undo()  # a trace may leave fake tensors in attributes
                    restore_random_state(random_state)
        except (CompilationError, RunFailure):
            raise
        except Exception as error:  # a network is a user's code
            raise CompilationError(first_line(error)) from error
        if change is not None:
            raise CompilationError(f"each time that the network runs, {change}")
        self._iteration: int | None = None

    def _compile(self, optimizer: torch.optim.Optimizer, example: Minibatch, num_envs: int) -> None:
        hook = find_hook(self._loss) or _find_step_hook(optimizer)
        if hook is not None:
            raise CompilationError(f"{hook}, which would not run")
        numbers = torch.arange(num_envs) % len(example.actions)
        obs = rows(example.obs, numbers if self._network.sequence_length is None else (numbers, 0))
        # Both are compiled in parallel.
        flops = count_flops(self._network, example.obs)
        for_all = flops * num_envs // len(example.actions)
        self.acting = CompiledActionSelector(self._network, obs, self._back_end, for_all)
        try:
            self.updates = CompiledUpdater(self._loss, optimizer, example, self._back_end, flops)
        except Exception:
            self.acting.load()  # or its compiler would go on running
            raise
        self.acting.load()
        fault = self._audit_acting(obs)
        if fault is not None:
            raise CompilationError(fault)

    def close(self) -> None:
        """End the threads of both."""
        self.updates.close()
        self.acting.close()

    def change(self, optimizer: torch.optim.Optimizer) -> str | None:
        """A change that the compiled functions would miss, in words; ``None`` if there is none."""
        if optimizer is not self.updates.optimizer:
            return "the optimizer is another one"
        with training_mode(self._network):
            change = self._watch.change()
        return change or _find_step_hook(optimizer) or self.updates.change()

    def audit_is_due(self, iteration: int) -> bool:
        """Whether the last audit was ``ITERATIONS_BETWEEN_AUDITS`` ago, or there was none."""
        return self._iteration is None or iteration - self._iteration >= ITERATIONS_BETWEEN_AUDITS

    def audit(
        self, minibatch: Minibatch | None, obs: Observations, coefficients: Coefficients, iteration: int
    ) -> str | None:
        """Compare a gradient, policy outputs, values and actions with PyTorch's; it changes nothing in training.

        Args:
            minibatch: A real one, of which the first chunk is compared; ``None`` if updates are eager for now.
            obs: Real observations ``[N, ...]``.
            coefficients: Of the loss.
            iteration: The run's count.

        Returns:
            What differs by more than rounding, in words; ``None`` if nothing.
        """
        fault = None if minibatch is None else self._audit_gradient(minibatch, coefficients)
        fault = fault or self._audit_acting(obs)
        if fault is not None:
            before = "" if self._iteration is None else f" (they agreed in iteration {self._iteration:,})"
            return fault + before
        self._iteration = iteration
        return None

    def _audit_gradient(self, minibatch: Minibatch, coefficients: Coefficients) -> str | None:
        chunk, gradient = self.updates.chunk_gradient(minibatch, coefficients)
        with training_mode(self._network):
            expected = self.updates.eager_gradient(chunk, coefficients)
            difference = excess_difference(
                gradient, expected, lambda: self.updates.gradient_nearby(chunk, coefficients)
            )
        return None if difference is None else f"the gradient differs from PyTorch's by {difference:.1e} of its length"

    @torch.no_grad()
    def _audit_acting(self, obs: Observations, repeats: int = 4) -> str | None:
        distribution, generator = self._network.distribution, torch.Generator().manual_seed(0)
        noise = distribution.noise((repeats, len(leaves(obs)[0])), generator)
        self.acting.begin(tree_map(lambda now: now.expand(repeats, *now.shape).contiguous(), obs), noise)
        for step in range(repeats):
            self.acting.act(step)
        outputs, values, actions = self.acting.decisions()
        with evaluation_mode(self._network):
            expected_outputs, expected_values = self._network(obs)
            nearby = partial(self._decide_nearby, obs)
            for name, ours, expected, moved in [
                ("policy's outputs differ", outputs[-1], expected_outputs, lambda: nearby()[0]),
                ("values differ", values[-1], expected_values, lambda: nearby()[1]),
            ]:
                difference = excess_difference(ours, expected, moved)
                if difference is not None:
                    return f"the {name} from PyTorch's by {difference:.1e} of their length"
        sampled = distribution.sample(outputs, noise)
        if actions.is_floating_point():
            wrong = not relative_error(actions, sampled) < MOST_ROUNDING
        else:  # rounding may decide between two equally probable choices, once
            wrong = int((actions != sampled).sum()) > 1
        return "the actions differ from those that PyTorch samples" if wrong else None

    def _decide_nearby(self, obs: Observations) -> tuple[Tensor, Tensor]:
        """Policy outputs and values at slightly perturbed parameters."""
        parameters = dict(self._network.named_parameters())
        moved = dict(zip(parameters, perturbed(list(parameters.values())), strict=True))
        return cast(tuple[Tensor, Tensor], functional_call(self._network, moved, (obs,)))


def _find_step_hook(optimizer: torch.optim.Optimizer) -> str | None:
    """The hook on the optimizer's steps, in words; ``None`` if there is none."""
    hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    if any((*hooks, _global_optimizer_pre_hooks, _global_optimizer_post_hooks)):
        return "the optimizer has a hook"
    return None
