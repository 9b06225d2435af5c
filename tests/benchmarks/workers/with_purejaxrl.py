"""Trains with a checkout of purejaxrl, environment and learning as one compiled function; see worker.py.

Its ``ppo.py`` is used as it is, but for the network, which is the workload's. It always clips the value loss. Compiling
counts for the start alone: the training that is timed is the second.
"""

import os
import sys
import types

from worker import Clock, parse_arguments

task = parse_arguments()
workload = task.workload
if task.threads == 1:
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import distrax  # noqa: E402 after the flags
import flax.linen as nn  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
from flax.linen.initializers import orthogonal  # noqa: E402

clock = Clock(task, "purejaxrl", "jax")

# Its wrappers import simulators that CartPole does without.
for name, members in {"brax": ["envs"], "brax.envs.wrappers.training": ["EpisodeWrapper", "AutoResetWrapper"]}.items():
    sys.modules[name] = types.ModuleType(name)
    for member in members:
        setattr(sys.modules[name], member, None)
sys.modules["navix"] = types.ModuleType("navix")
sys.path.insert(0, str(task.source / "purejaxrl"))
import ppo  # noqa: E402


class ActorCritic(nn.Module):
    """Policy and value function, with the layers that they share."""

    action_dim: int
    activation: str

    @nn.compact
    def __call__(self, x):
        def layers(x, sizes):
            for size in sizes:
                x = getattr(nn, self.activation)(nn.Dense(size, kernel_init=orthogonal(np.sqrt(2)))(x))
            return x

        features = layers(x, workload.encoder_sizes)
        logits = nn.Dense(self.action_dim, kernel_init=orthogonal(0.01))(layers(features, workload.head_sizes))
        value = nn.Dense(1, kernel_init=orthogonal(1.0))(layers(features, workload.head_sizes))
        return distrax.Categorical(logits=logits), value.squeeze(-1)


ppo.ActorCritic = ActorCritic
train = ppo.make_train(
    {
        "ENV_NAME": workload.env_id,
        "TOTAL_TIMESTEPS": task.env_steps,
        "NUM_ENVS": workload.num_envs,
        "NUM_STEPS": workload.num_steps,
        "UPDATE_EPOCHS": workload.update_epochs,
        "NUM_MINIBATCHES": workload.env_steps_per_iteration // workload.minibatch_size,
        "LR": workload.learning_rate,
        "ANNEAL_LR": workload.anneal_lr,
        "GAMMA": workload.gamma,
        "GAE_LAMBDA": workload.gae_lambda,
        "CLIP_EPS": workload.clip_coef,
        "ENT_COEF": workload.ent_coef,
        "VF_COEF": 2 * workload.vf_coef,  # of half the mean squared error
        "MAX_GRAD_NORM": workload.max_grad_norm,
        "ACTIVATION": workload.activation,
    }
)
key = jax.random.PRNGKey(task.seed)
compiled = jax.jit(train).lower(key).compile()
jax.block_until_ready(compiled(key))
clock.begin()
jax.block_until_ready(compiled(key))
clock.mark(task.env_steps)
clock.report()
