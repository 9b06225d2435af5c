"""Action selection during a rollout, network and sampling as one compiled function.

Shapes: ``T`` steps of a rollout, ``N`` environments, ``P`` outputs of the policy.
"""

from typing import cast

import torch
from torch import Tensor, nn

from pl_rl.algorithm.acting import ActionSelector
from pl_rl.compiled.function import Compiled
from pl_rl.compiled.module_state import call_with, places_of
from pl_rl.errors import CompilationError
from pl_rl.networks.actor_critic import ActorCritic
from pl_rl.networks.modes import evaluation_mode


class _Decision(nn.Module):
    """A network and its distribution as one module; a compiled function takes its parameters as arguments."""

    def __init__(self, network: ActorCritic) -> None:
        super().__init__()
        self.network = network

    def forward(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs of the policy, values and actions."""
        outputs, values = self.network(obs)
        return outputs, values, self.network.distribution.sample(outputs, noise)


class CompiledActionSelector(ActionSelector):
    """Network and sampling as one compiled function for a fixed ``N``; reads and writes the rollout's memory in place.

    Args:
        network: The policy and the value function.
        obs: Observations ``[N, ...]``, for their shape and type.

    Raises:
        CompilationError: If this network or this machine does not allow it.
    """

    def __init__(self, network: ActorCritic, obs: Tensor) -> None:
        super().__init__(network)
        noise = network.distribution.noise((len(obs),), torch.Generator())
        self._decision = _Decision(network)
        self._places = places_of(self._decision)
        with evaluation_mode(network):
            self._compiled = Compiled(self._act, [obs, noise, *self._tensors()])

    def load(self) -> None:
        """Wait for the compiler.

        Raises:
            CompilationError: If it fails.
        """
        self._compiled.load()

    def _tensors(self) -> list[Tensor]:
        """The network's current parameters and buffers.

        Raises:
            CompilationError: If one has another shape or type.
        """
        return [place.current() for place in self._places]

    def _act(self, obs: Tensor, noise: Tensor, *state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The function that is compiled."""
        names = [place.name for place in self._places]
        decided = call_with(self._decision, dict(zip(names, state, strict=True)), (obs, noise))
        return cast(tuple[Tensor, Tensor, Tensor], decided)

    def begin(self, obs: Tensor, noise: Tensor) -> None:
        """Prepare the call of the first step; those of the other steps differ in their addresses alone."""
        steps = len(obs)
        self._decided = tuple(torch.empty(steps, *like.shape, dtype=like.dtype) for like in self._compiled.results)
        if not (obs.is_contiguous() and noise.is_contiguous()):  # machine code would read other elements
            raise CompilationError("observations or noise are not contiguous")
        rows = [tensor[0] for tensor in self._decided]
        self._call = self._compiled.bind([obs[0], noise[0], *self._tensors()], rows)
        self._moving = [(tensor.data_ptr(), tensor[0].nbytes) for tensor in (obs, noise, *self._decided)]
        self._actions = self._decided[2].unbind()

    def act(self, t: int) -> Tensor:
        """One call."""
        call = self._call
        (obs, obs_bytes), (noise, noise_bytes), *written = self._moving
        call.arguments[0], call.arguments[1] = obs + t * obs_bytes, noise + t * noise_bytes
        for i, (address, size) in enumerate(written):
            call.results[i] = address + t * size
        call()
        return self._actions[t]

    def decisions(self) -> tuple[Tensor, Tensor, Tensor]:
        """The tensors that the calls wrote into."""
        outputs, values, actions = self._decided
        return outputs, values, actions
