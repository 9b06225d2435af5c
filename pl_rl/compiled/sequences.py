"""The gradient of a network with a memory: step by step through its sequences, forth and back.

Traced as a whole, a sequence would be as many times the graph of a step as it has steps. So a step alone is compiled,
forth and back; the way back computes each step anew rather than remember what was inside of it (gradient checkpointing,
https://arxiv.org/abs/1604.06174).

Shapes: ``B`` sequences of a chunk, ``L`` steps of each, ``P`` outputs of the policy, ``S`` numbers of a memory's state.
"""

import ctypes
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from pl_rl.algorithm.loss import Coefficients, Minibatch, PPOLoss
from pl_rl.compiled.function import Compiled, StepCalls
from pl_rl.compiled.module_state import call_with
from pl_rl.networks.actor_critic import ActorCritic
from pl_rl.networks.records import Remembered, leaves, tree_map


class _Step(nn.Module):
    """One step of a network, with its parameters named as in the loss."""

    def __init__(self, network: ActorCritic) -> None:
        super().__init__()
        self.network = network

    def forward(self, seen: Remembered) -> Any:
        return self.network.step(seen)


class SequenceGradient:
    """As :class:`~pl_rl.compiled.function.Compiled`, of the gradient of a minibatch of sequences.

    Its arguments are the fields of the minibatch, the coefficients, the trained parameters, then all other parameters
    and buffers; its results the gradient of each parameter, and the metrics.

    Args:
        loss: With the network in it.
        example: A minibatch ``[B, L, ...]`` of the shapes and types of all that will come.
        coefficients: Of the loss.
        trained: The trained parameters by name.
        others: All other parameters and buffers.
        instances: How many threads will call it at once.

    Raises:
        CompilationError: If it cannot be compiled.
    """

    def __init__(
        self,
        loss: PPOLoss,
        example: Minibatch,
        coefficients: Sequence[Tensor],
        trained: Mapping[str, Tensor],
        others: Mapping[str, Tensor],
        instances: int,
    ) -> None:
        self._loss, self._step = loss, _Step(loss.network)
        self._seen: Remembered = tree_map(lambda _: None, example.obs)
        self._names, self._num_trained = [*trained, *others], len(trained)
        self._num_seen, self._length = len(leaves(self._seen)), example.actions.shape[1]
        parameters, state = list(trained.values()), [*trained.values(), *others.values()]
        seen = leaves(example.obs)
        now = [field[:, 0] for field in seen]
        self._by_step = Compiled(self._steps_first, seen, instances)
        self._forth = Compiled(self._step_forth, [*now, *state], instances)
        said = [torch.zeros(self._length, *each.shape) for each in self._forth.results[:2]]
        self._end = Compiled(self._loss_of, [*said, *example[1:], *coefficients, *state], instances)
        self._back = Compiled(self._step_back, [*now, *self._forth.results, *parameters, *state], instances)

    def load(self) -> None:
        """Wait for the compiler.

        Raises:
            CompilationError: If it fails.
        """
        for part in (self._by_step, self._forth, self._end, self._back):
            part.load()

    def _steps_first(self, *seen: Tensor) -> tuple[Tensor, ...]:
        """What is seen ``[B, L, ...]`` as ``[L, B, ...]``; of the states ``[B, L, S]`` the first ``[B, S]``."""
        *obs, states, begins = seen
        return *(entry.transpose(0, 1).contiguous() for entry in obs), states[:, 0].clone(), begins.t().contiguous()

    def _step_forth(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Policy outputs, values and the next state, of what is seen at a step, and all parameters and buffers."""
        given = iter(tensors)
        seen = tree_map(lambda _: next(given), self._seen)
        said: tuple[Tensor, ...] = call_with(self._step, dict(zip(self._names, given, strict=True)), (seen,))
        return said

    def _loss_of(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The gradient of the loss by outputs ``[L, B, P]``, values ``[L, B]`` and each parameter, and the metrics."""
        given = iter(tensors)
        outputs, values = (next(given).detach().requires_grad_() for _ in range(2))
        minibatch = Minibatch(None, *islice(given, len(Minibatch._fields) - 1))
        coefficients = Coefficients(*islice(given, len(Coefficients._fields)))
        parameters, state = self._requiring_gradient(given)
        said = outputs.transpose(0, 1), values.transpose(0, 1)
        loss, metrics = call_with(self._loss, state, (minibatch, coefficients, said))
        of_said = torch.autograd.grad(loss, [outputs, values, *parameters], materialize_grads=True)
        return *of_said, metrics

    def _step_back(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The gradient by the state before a step, and what it adds to that by each parameter.

        Args:
            tensors: What is seen at the step, the gradients by what it gives, those by each parameter so far, and all
                parameters and buffers.
        """
        given = iter(tensors)
        seen = tree_map(lambda _: next(given), self._seen)
        before = seen.memory.state.detach().requires_grad_()
        seen = seen._replace(memory=seen.memory._replace(state=before))
        by_said = [next(given) for _ in self._forth.results]
        so_far = list(islice(given, self._num_trained))
        parameters, state = self._requiring_gradient(given)
        said = call_with(self._step, state, (seen,))
        by_state, *added = torch.autograd.grad(said, [before, *parameters], by_said, materialize_grads=True)
        return by_state, *(sum_so_far + more for sum_so_far, more in zip(so_far, added, strict=True))

    def _requiring_gradient(self, given: Any) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The trained parameters, and all parameters and buffers by name."""
        parameters = [next(given).detach().requires_grad_() for _ in range(self._num_trained)]
        return parameters, dict(zip(self._names, [*parameters, *given], strict=True))

    def bind(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], instance: int = 0) -> "SequenceCall":
        """As :meth:`Compiled.bind <pl_rl.compiled.function.Compiled.bind>`; gradients stay where they are bound to."""
        seen, others = inputs[: self._num_seen], inputs[self._num_seen :]
        state, (*gradients, metrics) = inputs[-len(self._names) :], outputs
        length, of_step = self._length, self._forth.results
        *obs, _, begins = map(torch.empty_like, self._by_step.results)
        said = [torch.empty(length, *each.shape) for each in of_step[:2]]
        by_said = [torch.empty(length, *each.shape) for each in of_step[:2]]
        states = torch.empty(length + 1, *of_step[2].shape)
        by_states = torch.zeros_like(states)  # nothing follows on the last
        steps = [*obs, states[:-1], begins]
        # The way back adds to the gradients where they lie: each element is read just before it is written.
        back = [*gradients, *state], [by_states[:-1]], gradients, instance
        return SequenceCall(
            self._by_step.bind(seen, [*obs, states[0], begins], instance),
            StepCalls(self._forth, steps, state, [*said, states[1:]], [], instance),
            self._end.bind([*said, *others], [*by_said, *gradients, metrics], instance),
            StepCalls(self._back, [*steps, *by_said, by_states[1:]], *back),
            (inputs, outputs),
            len(state),
        )


class SequenceCall:
    """A gradient of sequences, bound to addresses as a :class:`~pl_rl.compiled.function.Call` is.

    Attributes:
        arguments: Addresses of the inputs; assign those of other tensors of the same shape, type and strides.
        results: Addresses of the outputs, of which the last alone, that of the metrics, may be another.
    """

    def __init__(
        self,
        by_step: Any,
        forth: StepCalls,
        end: Any,
        back: StepCalls,
        tensors: tuple[Sequence[Tensor], Sequence[Tensor]],
        num_state: int,
    ) -> None:
        self._by_step, self._forth, self._end, self._back = by_step, forth, end, back
        inputs, outputs = ([tensor.data_ptr() for tensor in part] for part in tensors)
        self.arguments = (ctypes.c_void_p * len(inputs))(*inputs)
        self.results = (ctypes.c_void_p * len(outputs))(*outputs)
        self._tensors, self._num_state = tensors, num_state  # kept alive

    def __call__(self) -> None:
        """Forth, the loss, and back."""
        given: list[Any] = self.arguments[:]
        num_seen = len(self._by_step.arguments)
        self._by_step.arguments[:] = given[:num_seen]
        self._end.arguments[2:] = given[num_seen:]
        self._end.results[len(self._end.results) - 1] = self.results[len(self.results) - 1]
        for steps in (self._forth, self._back):
            steps.call.arguments[-self._num_state :] = given[-self._num_state :]
        self._by_step()
        for t in range(self._forth.count):
            self._forth(t)
        self._end()
        for t in reversed(range(self._back.count)):
            self._back(t)
