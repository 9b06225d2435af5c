"""Trains with Stable-Baselines3; see worker.py."""

import itertools
from functools import partial

import gymnasium
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import SubprocVecEnv
from torch import nn
from worker import Clock, parse_arguments

task = parse_arguments()
workload = task.workload
clock = Clock(task, "sb3", "stable_baselines3")
if task.threads:
    torch.set_num_threads(task.threads)
activation = {"relu": nn.ReLU, "tanh": nn.Tanh}[workload.activation]


class Encoder(BaseFeaturesExtractor):
    """The layers that policy and value function share."""

    def __init__(self, observation_space, sizes):
        super().__init__(observation_space, sizes[-1])
        pairs = itertools.pairwise([observation_space.shape[0], *sizes])
        self.layers = nn.Sequential(*itertools.chain(*((nn.Linear(*pair), activation()) for pair in pairs)))

    def forward(self, observations):
        return self.layers(observations)


class Joined(BaseFeaturesExtractor):
    """All entries of a dictionary as one vector."""

    def __init__(self, observation_space):
        super().__init__(observation_space, sum(map(gymnasium.spaces.flatdim, observation_space.values())))

    def forward(self, observations):
        return torch.cat([entry.flatten(1) for entry in observations.values()], 1)


def make():
    """One environment, with what of it is seen."""
    if workload.env_id.startswith("MiniGrid"):
        import minigrid  # noqa: F401 it registers them
    env = gymnasium.make(workload.env_id)
    if workload.components:
        space, kept = env.observation_space, list(workload.components)
        seen = gymnasium.spaces.Box(space.low[kept], space.high[kept], dtype=space.dtype)
        env = gymnasium.wrappers.TransformObservation(env, lambda obs: obs[kept], seen)
    if workload.keys:
        env = gymnasium.wrappers.FilterObservation(env, workload.keys)
    if workload.masked:
        from sb3_contrib.common.wrappers import ActionMasker

        env = ActionMasker(env, lambda env: env.unwrapped.action_mask(env.unwrapped.s))
    return env


algorithm, policy_name = PPO, "CnnPolicy" if workload.atari else "MultiInputPolicy" if workload.keys else "MlpPolicy"
if workload.memory_size:
    from sb3_contrib import RecurrentPPO

    algorithm, policy_name = RecurrentPPO, "MlpLstmPolicy"
elif workload.masked:
    from sb3_contrib import MaskablePPO

    algorithm = MaskablePPO


class TimedPPO(algorithm):
    """Tells the clock of each iteration."""

    def train(self):
        super().train()
        clock.mark(self.num_timesteps)


if workload.atari:
    import atari

    # Games are slow enough for processes of their own to pay.
    env = make_vec_env(
        partial(atari.make, workload.env_id),
        workload.num_envs,
        seed=task.seed,
        vec_env_cls=SubprocVecEnv,
        vec_env_kwargs={"start_method": "fork"},
    )
    policy = {}
else:
    env = make_vec_env(make, workload.num_envs, seed=task.seed)
    sizes = list(workload.head_sizes)
    policy = {"net_arch": {"pi": sizes, "vf": sizes}, "activation_fn": activation}
    if workload.encoder_sizes:
        policy |= {"features_extractor_class": Encoder, "features_extractor_kwargs": {"sizes": workload.encoder_sizes}}
    if workload.keys:  # two networks that share nothing, as pl_rl's
        policy |= {"features_extractor_class": Joined, "normalize_images": False}
    if workload.memory_size:
        policy["lstm_hidden_size"] = workload.memory_size
model = TimedPPO(
    policy_name,
    env,
    n_steps=workload.num_steps,
    n_epochs=workload.update_epochs,
    batch_size=workload.minibatch_size,
    learning_rate=(lambda remaining: workload.learning_rate * remaining)
    if workload.anneal_lr
    else workload.learning_rate,
    gamma=workload.gamma,
    gae_lambda=workload.gae_lambda,
    clip_range=workload.clip_coef,
    clip_range_vf=workload.clip_coef if workload.clip_vloss else None,
    ent_coef=workload.ent_coef,
    vf_coef=workload.vf_coef,
    max_grad_norm=workload.max_grad_norm,
    policy_kwargs=policy,
    seed=task.seed,
    device="cpu",
)
clock.begin()
model.learn(task.env_steps)
clock.report()
