"""Trains small policies with Stable-Baselines3 and notes what it answers for fixed observations.

Run as ``python make_stable_baselines3.py``; needs::

    pip install stable-baselines3==2.9.2 gymnasium==1.4.0 torch==2.13.0

``system_info.txt``, which describes the machine, is taken out of the archives.
"""

import tempfile
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import stable_baselines3
import torch
from reference import HERE, adam_pairs, observations, write_reference
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

FOLDER = HERE / "stable_baselines3"
MADE_WITH = f"stable_baselines3 {stable_baselines3.__version__}, torch {torch.__version__}"


def save(model, name):
    path = FOLDER / f"{name}.zip"
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model.zip")
        with zipfile.ZipFile(Path(folder) / "model.zip") as source, zipfile.ZipFile(path, "w") as target:
            for member in source.infolist():
                if member.filename != "system_info.txt":
                    target.writestr(member, source.read(member))
    policy, obs = model.policy, torch.from_numpy(observations(model.observation_space.shape[0]))
    with torch.no_grad():
        distribution = policy.get_distribution(obs).distribution
        if isinstance(distribution, torch.distributions.Categorical):
            answers = {"logits": policy.action_net(policy.mlp_extractor.forward_actor(obs))}
        else:
            answers = {"mean": distribution.mean, "log_std": policy.log_std}
        answers["value"] = policy.predict_values(obs).squeeze(-1)
    if isinstance(policy.optimizer, torch.optim.Adam):
        answers["adam"] = adam_pairs(policy.optimizer)
        answers["optimizer_step"] = float(policy.optimizer.state_dict()["state"][0]["step"])
    write_reference(path, MADE_WITH, obs=obs, **answers)


def train(algorithm, env, steps, **settings):
    return algorithm("MlpPolicy", env, seed=1, device="cpu", **settings).learn(steps)


def main():
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    save(train(PPO, "CartPole-v1", 4096, n_steps=512, policy_kwargs={"net_arch": [32, 32]}), "ppo_cartpole")

    uneven = {"net_arch": {"pi": [32], "vf": [48, 24, 16]}, "activation_fn": nn.ReLU}
    save(train(PPO, "Pendulum-v1", 4096, n_steps=512, policy_kwargs=uneven), "ppo_pendulum")

    linear = {"net_arch": {"pi": [], "vf": [32]}, "activation_fn": nn.ELU}
    save(train(A2C, "CartPole-v1", 4000, policy_kwargs=linear), "a2c_cartpole")

    env = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]), clip_obs=2.0)
    save(train(PPO, env, 4096, n_steps=512, policy_kwargs={"net_arch": [32, 32]}), "ppo_pendulum_normalized")
    path = FOLDER / "vec_normalize_pendulum.pkl"
    env.save(path)
    obs = observations(3)
    write_reference(path, MADE_WITH, obs=obs, normalized_obs=env.normalize_obs(obs), count=env.obs_rms.count)
    assert np.abs(env.normalize_obs(obs)).max() == 2.0, "no observation was clipped"


if __name__ == "__main__":
    main()
