"""How much work a gradient is, and in how many parts it is done."""

import math

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from pl_rl.algorithm.loss import Coefficients, Minibatch, PPOLoss
from pl_rl.compiled.module_state import ModuleWatch

# Parts of a minibatch whose intermediate results fit a processor's cache, and that threads share among themselves: of
# expensive samples as many as make a thread worth its while, but not so few that averaging gradients costs as much.
CHUNK_SIZE = 512
LEAST_CHUNK_SIZE = 64
CHUNK_FLOPS = 2**28


def count_flops(loss: PPOLoss, minibatch: Minibatch) -> int:
    """Floating-point operations of matrix products and convolutions in a gradient; 0 where they cannot be told.

    It is a measure of time that does not change from run to run, and is found without computing or changing anything.
    """
    watch = ModuleWatch(loss)
    try:
        with FakeTensorMode() as mode, FlopCounterMode(display=False) as counter:
            tensors = [*loss.named_parameters(), *loss.named_buffers()]
            state: dict[str, Tensor] = {name: mode.from_tensor(tensor) for name, tensor in tensors}
            example = Minibatch(*map(mode.from_tensor, minibatch))
            value, _ = functional_call(
                loss, state, (example, Coefficients(mode.from_tensor(torch.tensor(0.2)), 0.5, 0.01))
            )
            trained = [tensor for tensor in state.values() if tensor.requires_grad]
            torch.autograd.grad(value, trained, allow_unused=True)
    except Exception:  # of a network that does more than operations on tensors
        return 0
    finally:
        watch.undo()
    return int(counter.get_total_flops())


def number_of_chunks(minibatch_size: int, flops: int) -> int:
    """As many equal chunks as leave each with ``CHUNK_FLOPS``, and with the least number of samples or more."""
    least = min(CHUNK_SIZE, max(LEAST_CHUNK_SIZE, math.ceil(CHUNK_FLOPS * minibatch_size / max(1, flops))))
    most = max(1, minibatch_size // least)
    return next(number for number in range(most, 0, -1) if minibatch_size % number == 0)
