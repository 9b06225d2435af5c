"""Action selection during a rollout, network and sampling as one compiled function, on several threads if that pays.

Shapes: ``T`` steps of a rollout, ``N`` environments, ``P`` outputs of the policy.
"""

from functools import partial
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pl_rl.algorithm.acting import ActionSelector
from pl_rl.compiled.function import Compiled, StepCalls
from pl_rl.compiled.generator import takes_dot_products
from pl_rl.compiled.generator.graphs import LONG
from pl_rl.compiled.module_state import Place, call_with, places_of
from pl_rl.compiled.threads import Threads
from pl_rl.envs.processors import cores
from pl_rl.errors import CompilationError, CompilerFailure
from pl_rl.networks.actor_critic import ActorCritic
from pl_rl.networks.modes import evaluation_mode
from pl_rl.networks.records import Observations, leaves, leaves_as, tree_map

# Layers that read their weights by nothing but the product with the transpose.
LAYERS = (nn.Linear, nn.LSTMCell, nn.GRUCell)
PART_FLOPS = 2**25
"""FLOPs that make a part of the environments worth a thread: of a gradient, so that it acts for some 130 us."""


def number_of_parts(num_envs: int, flops: int, most: int) -> int:
    """How many equal parts of the environments are acted for at once; their number changes no bit.

    Args:
        num_envs: ``N``.
        flops: Of a gradient over as many samples, see :func:`pl_rl.compiled.flops.count_flops`.
        most: Threads that there may be.
    """
    most = min(most, num_envs // 2, flops // PART_FLOPS)
    return next((parts for parts in range(most, 1, -1) if num_envs % parts == 0 and _alike(num_envs, parts)), 1)


def _alike(num_envs: int, parts: int) -> bool:
    """Whether products of few rows, which are computed otherwise, are so for a part and the whole.

    Those of a single row are, too: a part has two at least.
    """
    return takes_dot_products(num_envs // parts, LONG) == takes_dot_products(num_envs, LONG)


class _Decision(nn.Module):
    """A network and its distribution as one module; a compiled function takes its parameters as arguments."""

    def __init__(self, network: ActorCritic) -> None:
        super().__init__()
        self.network = network

    def forward(self, seen: Observations, noise: Tensor) -> tuple[Tensor, ...]:
        """Outputs of the policy, values and actions, and the state of a memory if there is one."""
        outputs, values, state = self.network.step(seen)
        decided = outputs, values, self.network.distribution.sample(outputs, noise)
        return decided if state is None else (*decided, state)


class CompiledActionSelector(ActionSelector):
    """Network and sampling as one compiled function for a fixed ``N``; reads and writes the rollout's memory in place.

    Args:
        network: The policy and the value function.
        seen: What the network takes ``[N, ...]``, for its shapes and types.
        back_end: Compiles.
        flops: Of a gradient over ``N`` samples; where they are many, several threads act.

    Raises:
        CompilationError: If this network or this machine does not allow it.
    """

    def __init__(
        self, network: ActorCritic, seen: Observations, back_end: type[Compiled] = Compiled, flops: int = 0
    ) -> None:
        super().__init__(network)
        self._seen = tree_map(lambda rows: None, seen)
        self._num_envs = len(leaves(seen)[0])
        # One step of a memory is little work, and Inductor may round a part otherwise.
        in_parts = back_end is Compiled and network.sequence_length is None
        self._parts = number_of_parts(self._num_envs, flops, cores()) if in_parts else 1
        self._at_once = Threads(self._parts)
        inputs = [entry[: self._num_envs // self._parts].contiguous() for entry in leaves(seen)]
        noise = network.distribution.noise((len(inputs[0]),), torch.Generator())
        self._decision = _Decision(network)
        self._places = places_of(self._decision)
        self._weights = {
            f"{name}.{weight}"
            for name, layer in self._decision.named_modules()
            if type(layer) in LAYERS
            for weight, parameter in layer.named_parameters()
            if parameter.dim() == 2 and not takes_dot_products(len(inputs[0]), parameter.shape[1])
        }
        with evaluation_mode(network):
            try:
                self._compiled = back_end(self._act, [*inputs, noise, *self._tensors()], self._parts)
            except CompilationError as error:  # the network may do more with a weight, such as view it otherwise
                if isinstance(error, CompilerFailure) or not self._weights:
                    raise
                self._weights.clear()
                self._compiled = back_end(self._act, [*inputs, noise, *self._tensors()], self._parts)

    def load(self) -> None:
        """Wait for the compiler.

        Raises:
            CompilationError: If it fails.
        """
        self._compiled.load()

    def close(self) -> None:
        """End the threads."""
        self._at_once.close()

    def _tensors(self) -> list[Tensor]:
        """The network's current parameters and buffers.

        Raises:
            CompilationError: If one has another shape or type.
        """
        return [self._as_read(place) for place in self._places]

    def _as_read(self, place: Place) -> Tensor:
        """A weight of a layer by columns, once a rollout: to transpose it in each step would take most of the step."""
        tensor = place.current()
        return tensor.t().contiguous().t() if place.name in self._weights else tensor

    def _act(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The function that is compiled, of what the network takes, the noise, and parameters and buffers."""
        given = iter(tensors)
        seen, noise = tree_map(lambda _: next(given), self._seen), next(given)
        state = {place.name: next(given) for place in self._places}
        return cast(tuple[Tensor, ...], call_with(self._decision, state, (seen, noise)))

    def begin(self, obs: Observations, noise: Tensor) -> None:
        """Bind the calls of all steps."""
        self._decided = [
            torch.empty(len(noise), self._num_envs, *like.shape[1:], dtype=like.dtype)
            for like in self._compiled.results
        ]
        read, state, size = [*leaves_as(self._seen, obs), noise], self._tensors(), self._num_envs // self._parts
        self._calls = []
        for part in range(self._parts):
            envs = slice(part * size, (part + 1) * size)
            given, decided = ([steps[:, envs] for steps in tensors] for tensors in (read, self._decided))
            self._calls.append(StepCalls(self._compiled, given, state, decided, [], part))
        actions, *states = self._decided[2:]
        self._actions: npt.NDArray[np.generic] = actions.numpy()
        self._states = states[0].unbind() if states else None

    def act(self, t: int) -> npt.NDArray[np.generic]:
        """One call, or one for each part."""
        if self._parts == 1:
            self._calls[0](t)
        else:
            self._at_once.run([partial(call, t) for call in self._calls])
        if self._states is not None:
            self.state = self._states[t]
        actions: npt.NDArray[np.generic] = self._actions[t]
        return actions

    def decisions(self) -> tuple[Tensor, Tensor, Tensor]:
        """The tensors that the calls wrote into."""
        outputs, values, actions = self._decided[:3]
        return outputs, values, actions
