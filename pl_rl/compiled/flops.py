"""FLOPs of a gradient, and the number of chunks it is computed in."""

import math

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from pl_rl.compiled.module_state import ModuleWatch
from pl_rl.networks.actor_critic import ActorCritic
from pl_rl.networks.records import Observations, rows, tree_map
from pl_rl.signals import held_back

# Minibatches are split into chunks, for cache blocking and as the unit of threading: of CHUNK_SIZE samples, or of fewer
# if these cost CHUNK_FLOPS already, but of LEAST_CHUNK_SIZE at least, as gradients of chunks have to be averaged.
CHUNK_SIZE = 512
LEAST_CHUNK_SIZE = 64
CHUNK_FLOPS = 2**28


def count_flops(network: ActorCritic, obs: Observations) -> int:
    """FLOPs of the matrix products and convolutions in a gradient; 0 if the network cannot be traced.

    A measure of cost that is the same in each run. It is counted on fake tensors: nothing is computed or changed. The
    loss is left out: it has most of the operations and no products.

    Args:
        network: The policy and the value function.
        obs: Of a minibatch.
    """
    watch, length = ModuleWatch(network), network.sequence_length or 1
    if length > 1:  # of one step, as all cost the same
        obs = rows(obs, (slice(None), slice(1)))
    try:
        with held_back(), FakeTensorMode() as mode, FlopCounterMode(display=False) as counter:
            tensors = [*network.named_parameters(), *network.named_buffers()]
            state: dict[str, Tensor] = {name: mode.from_tensor(tensor) for name, tensor in tensors}
            outputs = functional_call(network, state, (tree_map(mode.from_tensor, obs),))
            learnt_by = [output for output in outputs if output.requires_grad]
            trained = [tensor for tensor in state.values() if tensor.requires_grad]
            torch.autograd.grad(learnt_by, trained, grad_outputs=learnt_by, allow_unused=True)
    except Exception:  # of a network that does more than operations on tensors
        return 0
    finally:
        watch.undo()
    return length * int(counter.get_total_flops())


def number_of_chunks(minibatch_size: int, flops: int) -> int:
    """The most equal chunks that are not smaller than the constants above allow.

    Args:
        minibatch_size: ``B``.
        flops: Of the whole minibatch.
    """
    least = min(CHUNK_SIZE, max(LEAST_CHUNK_SIZE, math.ceil(CHUNK_FLOPS * minibatch_size / max(1, flops))))
    most = max(1, minibatch_size // least)
    return next(number for number in range(most, 0, -1) if minibatch_size % number == 0)
