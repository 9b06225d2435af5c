"""Trains small policies with rsl_rl and notes what it answers for fixed observations.

Run as ``python make_rsl_rl.py`` once for each release, as the layout of its files changed between them; needs::

    pip install rsl-rl-lib==5.5.1 torch==2.13.0     (or 4.0.1, 3.3.0, 2.3.3)
    pip install tensorboard==2.21.0
"""

import tempfile
from importlib.metadata import version

import torch
from reference import HERE, adam_pairs, observations, write_reference
from rsl_rl.runners import OnPolicyRunner
from tensordict import TensorDict

FOLDER, RECURRENT = HERE / "rsl_rl", HERE / "rsl_rl_recurrent"
VERSION = version("rsl-rl-lib")
MAJOR = int(VERSION.split(".")[0])
OBS, ACTIONS, ENVS, LENGTH = 5, 2, 32, 50


class Follow:
    """Actions move a point; the reward falls with its distance from a target. Observations have odd scales."""

    num_envs, num_actions, max_episode_length, device, cfg = ENVS, ACTIONS, LENGTH, "cpu", {}

    def __init__(self):
        self.episode_length_buf = torch.zeros(ENVS, dtype=torch.long)
        self._point, self._target = torch.zeros(ENVS, ACTIONS), torch.randn(ENVS, ACTIONS)

    def get_observations(self):
        obs = torch.cat([10 * self._point, self._target + 3, self.episode_length_buf[:, None].float()], -1)
        return (obs, {"observations": {}}) if MAJOR < 3 else TensorDict({"policy": obs}, [ENVS])

    def step(self, actions):
        self._point = self._point + 0.1 * actions.clamp(-1, 1)
        self.episode_length_buf = self.episode_length_buf + 1
        rewards = -(self._point - self._target).norm(dim=-1)
        dones = self.episode_length_buf >= LENGTH
        self.episode_length_buf[dones] = 0
        self._point[dones], self._target[dones] = 0.0, torch.randn(int(dones.sum()), ACTIONS)
        obs = self.get_observations()
        extras = {"time_outs": dones, "observations": {}}
        return obs[0] if MAJOR < 3 else obs, rewards, dones.long(), extras


def recurrent(settings, kind):
    """The same with a memory before the layers; of releases 3 and 5."""
    if MAJOR == 3:
        memory = {"class_name": "ActorCriticRecurrent", "rnn_type": kind, "rnn_hidden_dim": 6, "rnn_num_layers": 1}
        return settings | {"policy": settings["policy"] | memory}
    memory = {"class_name": "RNNModel", "rnn_type": kind, "rnn_hidden_dim": 6, "rnn_num_layers": 1}
    return settings | {part: settings[part] | memory for part in ("actor", "critic")}


def settings(normalize, activation, std_type):
    """The settings of a run, as this release wants them."""
    common = {
        "num_steps_per_env": 24,
        "save_interval": 1000,
        "algorithm": {"class_name": "PPO", "num_learning_epochs": 3, "num_mini_batches": 2, "entropy_coef": 0.0},
    }
    if MAJOR >= 4:
        shared = {"class_name": "MLPModel", "activation": activation, "obs_normalization": normalize}
        gaussian = {"stochastic": True, "init_noise_std": 0.8, "noise_std_type": std_type}
        if MAJOR >= 5:
            gaussian = {"class_name": "GaussianDistribution", "init_std": 0.8, "std_type": std_type}
            gaussian = {"distribution_cfg": gaussian}
        return common | {
            "obs_groups": {"actor": ["policy"], "critic": ["policy"]},
            "actor": shared | {"hidden_dims": [32, 16]} | gaussian,
            "critic": shared | {"hidden_dims": [24, 24]},
        }
    common["algorithm"] |= {"rnd_cfg": None, "symmetry_cfg": None}
    policy = {
        "class_name": "ActorCritic",
        "actor_hidden_dims": [32, 16],
        "critic_hidden_dims": [24, 24],
        "activation": activation,
        "init_noise_std": 0.8,
        "noise_std_type": std_type,
    }
    if MAJOR == 3:
        policy |= {"actor_obs_normalization": normalize, "critic_obs_normalization": normalize}
        return common | {"policy": policy, "obs_groups": {"policy": ["policy"], "critic": ["policy"]}}
    return common | {"policy": policy, "empirical_normalization": normalize}


def answers(runner, obs):
    """Mean, standard deviation and value ``[64, ...]`` for observations ``[64, OBS]``."""
    if MAJOR < 3:
        policy = runner.alg.policy.eval()
        if runner.empirical_normalization:
            obs = runner.obs_normalizer.eval()(obs)
        policy.update_distribution(obs)
        return policy.action_mean, policy.action_std, policy.evaluate(obs)
    batch = TensorDict({"policy": obs}, [len(obs)])
    if MAJOR == 3:
        policy = runner.alg.policy.eval()
        policy.act(batch)
        return policy.action_mean, policy.action_std, policy.evaluate(batch)
    actor, critic = runner.alg.actor.eval(), runner.alg.critic.eval()
    actor(batch, stochastic_output=True)
    return actor.output_mean, actor.output_std, critic(batch)


def make(name, normalize, activation, std_type, memory=None):
    torch.manual_seed(1)
    wanted = settings(normalize, activation, std_type)
    wanted = wanted if memory is None else recurrent(wanted, memory)
    with tempfile.TemporaryDirectory() as folder:
        runner = OnPolicyRunner(Follow(), wanted, log_dir=folder)
        runner.learn(8)
        path = (FOLDER if memory is None else RECURRENT) / f"rsl_rl_{VERSION}_{name}.pt"
        runner.save(str(path))
    obs = 3 * torch.from_numpy(observations(OBS))
    with torch.no_grad():
        if memory is None:
            mean, std, value = answers(runner, obs)
        else:  # an episode of all observations, step by step
            (runner.alg.policy if MAJOR == 3 else runner.alg.actor).reset()
            if MAJOR > 3:
                runner.alg.critic.reset()
            steps = [answers(runner, step.unsqueeze(0)) for step in obs]
            mean, std, value = (torch.cat(parts) for parts in zip(*steps, strict=True))
    step = next(iter(runner.alg.optimizer.state_dict()["state"].values()))["step"]
    made_with = f"rsl-rl-lib {VERSION}, torch {torch.__version__}"
    outputs = {
        "mean": mean,
        "log_std": std[0].log(),
        "value": value.squeeze(-1),
        "adam": adam_pairs(runner.alg.optimizer),
    }
    write_reference(path, made_with, obs=obs, activation=activation, optimizer_step=float(step), **outputs)


def main():
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    RECURRENT.mkdir(exist_ok=True)
    make("normalized", normalize=True, activation="elu", std_type="scalar")
    make("log_std", normalize=False, activation="relu", std_type="log")
    if MAJOR in (3, 5):
        make("recurrent", normalize=True, activation="elu", std_type="scalar", memory="gru" if MAJOR == 3 else "lstm")


if __name__ == "__main__":
    main()
