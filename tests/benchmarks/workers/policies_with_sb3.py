"""Trains a config with Stable-Baselines3 or sb3-contrib and tests the final policy; see ``results.py``.

Takes the model's settings, a seed and the number of test episodes as JSON, and prints a result as JSON. Networks,
initialization (but for memories, whose weights are PyTorch's), hyperparameters and budget are the config's; the value
function sees what the policy sees.
"""

import json
import sys
import time

import gymnasium as gym
import numpy as np
import torch
from sb3_contrib import MaskablePPO, RecurrentPPO
from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_masked
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

asked = json.loads(sys.argv[1])
model, seed = asked["model"], asked["seed"]
network = model["network"]["init_args"]
masked, recurrent = "action_mask" in model["env"], "memory" in network
torch.set_num_threads(1)
for module in model["env"].get("imports", []):
    __import__(module)


class Vector(gym.ObservationWrapper):
    """Some components of a vector."""

    def __init__(self, env, components):
        super().__init__(env)
        self.components, space = components, env.observation_space
        self.observation_space = gym.spaces.Box(space.low[components], space.high[components])

    def observation(self, observation):
        return observation[self.components]


class WithoutImages(gym.ObservationWrapper):
    """A dictionary whose images are vectors of their numbers."""

    def __init__(self, env):
        super().__init__(env)
        spaces = env.observation_space.spaces.items()
        self.images = {name: space for name, space in spaces if isinstance(space, gym.spaces.Box)}
        vectors = {name: gym.spaces.Box(0, 255, space.shape, np.float32) for name, space in self.images.items()}
        self.observation_space = gym.spaces.Dict({**env.observation_space.spaces, **vectors})

    def observation(self, observation):
        return {**observation, **{name: observation[name].astype(np.float32) for name in self.images}}


def make():
    """The environment, as the policy sees it."""
    env = gym.make(model["env"]["id"])
    for wrapper in model["env"].get("wrappers", []):
        name, arguments = wrapper["class_path"].rpartition(".")[2], wrapper["init_args"]
        if name == "SplitComponents":
            hidden, entries = network["critic_keys"], arguments["entries"].items()
            env = Vector(env, [position for key, part in entries if key not in hidden for position in part])
        elif name == "KeepComponents":
            env = Vector(env, **arguments)
        else:
            env = getattr(gym.wrappers, name)(env, **arguments)
    if isinstance(env.observation_space, gym.spaces.Dict):
        env = WithoutImages(env)
    return ActionMasker(env, lambda env: env.unwrapped.action_mask(env.unwrapped.s)) if masked else env


env = make_vec_env(make, model["num_envs"], seed=seed)
kind = "MultiInput" if isinstance(env.observation_space, gym.spaces.Dict) else "Mlp"
if model.get("norm_reward"):
    env = VecNormalize(env, norm_obs=False, gamma=model["gamma"])
policy = {"net_arch": {"pi": network["actor_sizes"], "vf": network["critic_sizes"]}}
if recurrent:
    policy["lstm_hidden_size"] = network["memory_size"]
algorithm = RecurrentPPO if recurrent else MaskablePPO if masked else PPO
learner = algorithm(
    f"{kind}LstmPolicy" if recurrent else f"{kind}Policy",
    env,
    n_steps=model["num_steps"],
    n_epochs=model["update_epochs"],
    batch_size=model["minibatch_size"],
    learning_rate=lambda remaining: model["learning_rate"] * (remaining if model["anneal_lr"] else 1),
    gamma=model["gamma"],
    gae_lambda=model["gae_lambda"],
    clip_range=model["clip_coef"],
    ent_coef=model["ent_coef"],
    vf_coef=model["vf_coef"] / 2,  # of a mean squared error, not of half of one
    policy_kwargs=policy,
    seed=seed,
    device="cpu",
)
began = time.monotonic()
learner.learn(model["total_env_steps"])
seconds = time.monotonic() - began
evaluate = evaluate_masked if masked else evaluate_policy
# Seeds of tests are far from those of training.
test_env = make_vec_env(make, asked["eval_num_envs"], seed=1_000_000 + seed)
returns, _ = evaluate(learner, test_env, asked["episodes"], deterministic=True, return_episode_rewards=True)
result = {"seed": seed, "mean": float(np.mean(returns)), "worst": float(np.min(returns))}
print(json.dumps({**result, "env_steps": learner.num_timesteps, "seconds": seconds}))
