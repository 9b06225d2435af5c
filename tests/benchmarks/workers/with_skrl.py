"""Trains with skrl; see worker.py.

Its environments come from ``gymnasium.make_vec``, so CartPole is gymnasium's native vectorized one. They reset in a
step of their own after an episode's end, and skrl counts these as transitions.
"""

import functools

import gymnasium
import layers
import torch
from skrl.agents.torch.ppo import PPO
from skrl.envs.wrappers.torch import wrap_env
from skrl.memories.torch import RandomMemory
from skrl.models.torch import CategoricalMixin, DeterministicMixin, GaussianMixin, Model
from skrl.trainers.torch import SequentialTrainer
from skrl.utils import set_seed
from torch import nn
from worker import Clock, parse_arguments

task = parse_arguments()
workload = task.workload
clock = Clock(task, "skrl", "skrl")
if task.threads:
    torch.set_num_threads(task.threads)
set_seed(task.seed)
env = wrap_env(gymnasium.make_vec(workload.env_id, workload.num_envs), verbose=False)
discrete = isinstance(env.action_space, gymnasium.spaces.Discrete)
num_actions = int(env.action_space.n) if discrete else env.action_space.shape[0]
mlp = functools.partial(layers.mlp, activation=workload.activation)
Policy = CategoricalMixin if discrete else GaussianMixin


class Network(Policy, DeterministicMixin, Model):
    """Policy and value function; what they share is computed once for both."""

    def __init__(self):
        spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
        Model.__init__(self, **spaces, device="cpu")
        Policy.__init__(self, role="policy")
        DeterministicMixin.__init__(self, role="value")
        inputs = env.observation_space.shape[0]
        features = [inputs, *workload.encoder_sizes][-1]
        self.encoder = mlp(inputs, workload.encoder_sizes)
        self.actor = mlp(features, workload.head_sizes, num_actions)
        self.critic = mlp(features, workload.head_sizes, 1)
        self.log_std = nn.Parameter(torch.zeros(num_actions), requires_grad=not discrete)
        self.features = None

    def act(self, inputs, *, role):
        return (Policy if role == "policy" else DeterministicMixin).act(self, inputs, role=role)

    def compute(self, inputs, role):
        if role == "policy":
            self.features = self.encoder(inputs["observations"])
            return self.actor(self.features), {} if discrete else {"log_std": self.log_std}
        features = self.encoder(inputs["observations"]) if self.features is None else self.features
        self.features = None
        return self.critic(features), {}


class TimedPPO(PPO):
    """Tells the clock of each iteration."""

    def update(self, *, timestep, timesteps):
        super().update(timestep=timestep, timesteps=timesteps)
        clock.mark((timestep + 1) * workload.num_envs)


network = Network()
agent = TimedPPO(
    models={"policy": network, "value": network},
    memory=RandomMemory(memory_size=workload.num_steps, num_envs=workload.num_envs, device="cpu"),
    observation_space=env.observation_space,
    action_space=env.action_space,
    device="cpu",
    cfg={
        "rollouts": workload.num_steps,
        "learning_epochs": workload.update_epochs,
        "mini_batches": workload.env_steps_per_iteration // workload.minibatch_size,
        "discount_factor": workload.gamma,
        "gae_lambda": workload.gae_lambda,
        "learning_rate": workload.learning_rate,
        "grad_norm_clip": workload.max_grad_norm,
        "ratio_clip": workload.clip_coef,
        "value_clip": 0.0,
        "entropy_loss_scale": workload.ent_coef,
        "value_loss_scale": workload.vf_coef,
        "time_limit_bootstrap": True,
        "experiment": {"write_interval": 0, "checkpoint_interval": 0},
    },
)
timesteps = task.env_steps // workload.num_envs
trainer = SequentialTrainer(
    env=env, agents=agent, cfg={"timesteps": timesteps, "headless": True, "disable_progressbar": True}
)
clock.begin()
trainer.train()
clock.report()
