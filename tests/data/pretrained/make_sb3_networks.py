"""Makes policies of Stable-Baselines3 and sb3-contrib with encoders, masks, memories and gSDE, and notes their answers.

Run as ``python make_sb3_networks.py``; needs::

    pip install stable-baselines3==2.9.2 sb3-contrib==2.9.2 gymnasium==1.4.0 torch==2.13.0

Those with images are not trained: their weights are random numbers of few digits, so that the files stay small.
"""

import tempfile
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import sb3_contrib
import torch
from reference import HERE, adam_pairs, observations, write_reference
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import PPO

FOLDER = HERE / "sb3_networks"
MADE_WITH = f"stable_baselines3 and sb3_contrib {sb3_contrib.__version__}, torch {torch.__version__}"
IMAGE = gym.spaces.Box(0, 255, (36, 36, 1), np.uint8)
SHORT = {"n_steps": 64, "batch_size": 64, "n_epochs": 2, "seed": 1, "device": "cpu"}


class Observed(gym.Env):
    """Gives random observations of a space; one action of three is rewarded, and another one forbidden."""

    action_space = gym.spaces.Discrete(3)

    def __init__(self, space):
        self.observation_space = space
        space.seed(0)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        return self.observation_space.sample(), float(action == 1), self.steps >= 10, False, {}

    def action_masks(self):
        return np.array([True, True, False])


def save(model, name, given, seen, **more):
    """The archive, and what the policy answers; ``given`` are the observations as an environment gives them."""
    path = FOLDER / f"{name}.zip"
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model.zip")
        with (
            zipfile.ZipFile(Path(folder) / "model.zip") as source,
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target,
        ):
            for member in source.infolist():
                if member.filename != "system_info.txt":
                    target.writestr(member.filename, source.read(member))
    policy = model.policy
    with torch.no_grad():
        if isinstance(model, RecurrentPPO):
            shape = 1, 1, policy.lstm_actor.hidden_size  # one sequence of all observations
            zeros, begins = (torch.zeros(shape), torch.zeros(shape)), torch.zeros(len(seen))
            distribution, _ = policy.get_distribution(seen, zeros, begins)
            values = policy.predict_values(seen, zeros, begins)
        else:
            distribution, values = policy.get_distribution(seen), policy.predict_values(seen)
    told = distribution.distribution
    answers = {"logits": told.logits} if hasattr(told, "logits") else {"mean": told.mean, "log_std": told.stddev.log()}
    given = {key: np.asarray(value).tolist() for key, value in given.items()} if isinstance(given, dict) else given
    if model.policy.optimizer.state:
        more |= {"adam": adam_pairs(model.policy.optimizer)}
    write_reference(path, MADE_WITH, obs=given, **answers, value=values.squeeze(-1), **more)


def with_random_weights(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            fan_in = max(parameter[0].numel(), 16)
            parameter.copy_((noise * 2).round().clamp(-3, 3) / 2 / 2 ** round(np.log2(fan_in) / 2))
    return model


def main():
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    images = np.random.default_rng(0).integers(0, 256, (4, 36, 36, 1), dtype=np.uint8)
    channels_first = torch.from_numpy(images).permute(0, 3, 1, 2)
    save(with_random_weights(PPO("CnnPolicy", Observed(IMAGE), **SHORT)), "cnn", images, channels_first)

    space = gym.spaces.Dict(
        {"camera": IMAGE, "arm": gym.spaces.Box(-1, 1, (2,), np.float32), "mode": gym.spaces.Discrete(3)}
    )
    small = {"features_extractor_kwargs": {"cnn_output_dim": 8}, "net_arch": {"pi": [16], "vf": [8, 8]}}
    given = {"camera": images, "arm": observations(2)[:4], "mode": np.array([0, 2, 1, 1])}
    seen = {name: torch.from_numpy(array) for name, array in given.items()} | {"camera": channels_first}
    model = PPO("MultiInputPolicy", Observed(space), policy_kwargs=small, **SHORT)
    save(with_random_weights(model), "multi_input", given, seen)

    sizes = {"policy_kwargs": {"net_arch": [16]}}
    numbers = np.arange(16)
    model = PPO("MlpPolicy", "FrozenLake-v1", **sizes, **SHORT).learn(256)
    save(model, "frozen_lake", numbers, torch.from_numpy(numbers))

    obs = observations(4)
    vectors = Observed(gym.spaces.Box(-np.inf, np.inf, (4,), np.float32))
    save(MaskablePPO("MlpPolicy", vectors, **sizes, **SHORT).learn(256), "maskable", obs, torch.from_numpy(obs))

    sizes["policy_kwargs"] |= {"lstm_hidden_size": 8}
    save(
        RecurrentPPO("MlpLstmPolicy", "CartPole-v1", **sizes, **SHORT).learn(256),
        "recurrent",
        obs,
        torch.from_numpy(obs),
    )
    save_explorers()


def save_explorers():
    """Policies with gSDE."""
    given = observations(3)
    sizes = {"net_arch": [16], "log_std_init": -1.0}
    model = PPO("MlpPolicy", "Pendulum-v1", use_sde=True, policy_kwargs=sizes, **SHORT)
    save(model.learn(256), "gsde", given, torch.from_numpy(given))
    sizes["lstm_hidden_size"] = 8
    model = RecurrentPPO("MlpLstmPolicy", "Pendulum-v1", use_sde=True, policy_kwargs=sizes, **SHORT)
    save(model.learn(256), "gsde_recurrent", given, torch.from_numpy(given))


if __name__ == "__main__":
    main()
