"""Trains with a checkout of CleanRL; see worker.py.

Its script ``cleanrl/ppo.py`` is run as it is, but for the network, which is the workload's.
"""

import ast
import functools
import itertools
import sys

import layers
import torch
from torch import nn
from torch.distributions.categorical import Categorical
from worker import Clock, parse_arguments

task = parse_arguments()
workload = task.workload
clock = Clock(task, "cleanrl", "torch")
if task.threads:
    torch.set_num_threads(task.threads)
mlp = functools.partial(layers.mlp, activation=workload.activation)


class Agent(nn.Module):
    """Policy and value function, with the layers that they share."""

    def __init__(self, envs):
        super().__init__()
        inputs = envs.single_observation_space.shape[0]
        features = [inputs, *workload.encoder_sizes][-1]
        self.encoder = mlp(inputs, workload.encoder_sizes)
        self.actor = mlp(features, workload.head_sizes, int(envs.single_action_space.n))
        self.critic = mlp(features, workload.head_sizes, 1)

    def get_value(self, x):
        return self.critic(self.encoder(x))

    def get_action_and_value(self, x, action=None):
        clock.begin()
        features = self.encoder(x)
        distribution = Categorical(logits=self.actor(features))
        action = distribution.sample() if action is None else action
        return action, distribution.log_prob(action), distribution.entropy(), self.critic(features)


iterations = itertools.count(1)


def note(*words):
    """In the place of ``print``: the script tells its speed after each iteration."""
    if words[0] == "SPS:":
        clock.mark(next(iterations) * workload.env_steps_per_iteration)


def switch(name, on):
    return f"--{name}" if on else f"--no-{name}"


path = task.source / "cleanrl" / "ppo.py"
script = ast.parse(path.read_text(), str(path))
script.body = [part for part in script.body if not (isinstance(part, ast.ClassDef) and part.name == "Agent")]
sys.argv = [
    str(path),
    *(f"--env-id={workload.env_id}", f"--seed={task.seed}", f"--total-timesteps={task.env_steps}"),
    *(f"--num-envs={workload.num_envs}", f"--num-steps={workload.num_steps}"),
    *(f"--update-epochs={workload.update_epochs}", f"--learning-rate={workload.learning_rate}"),
    f"--num-minibatches={workload.env_steps_per_iteration // workload.minibatch_size}",
    *(f"--gamma={workload.gamma}", f"--gae-lambda={workload.gae_lambda}", f"--clip-coef={workload.clip_coef}"),
    *(f"--ent-coef={workload.ent_coef}", f"--max-grad-norm={workload.max_grad_norm}"),
    f"--vf-coef={2 * workload.vf_coef}",  # of half the mean squared error
    *(switch("anneal-lr", workload.anneal_lr), switch("clip-vloss", workload.clip_vloss), "--no-cuda"),
]
exec(compile(script, str(path), "exec"), {"__name__": "__main__", "__file__": str(path), "Agent": Agent, "print": note})
clock.report()
