"""Every shipped configuration names real settings, and they make a model."""

from pathlib import Path

import pytest
import yaml
from lightning.pytorch.cli import LightningArgumentParser

from pl_rl import PPO
from pl_rl.algorithm.schedule import in_all_units
from pl_rl.callbacks import RunCheckpoint
from pl_rl.cli.configs import packaged_configs

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def test_the_seeds_experiment_is_shipped():
    assert "cartpole.yaml" in [path.name for path in CONFIGS]


def test_every_config_of_the_repository_is_shipped():
    assert sorted(packaged_configs()) == [path.name for path in CONFIGS]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_config_parses_against_the_real_signatures_and_makes_the_model(path):
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(PPO, "model")
    parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
    stated = yaml.safe_load(path.read_text())
    parser.add_argument("--seed_everything", type=bool | int, default=True)
    config = parser.parse_object({key: value for key, value in stated.items() if key != "trainer"})
    model = parser.instantiate_classes(config).model
    assert isinstance(model, PPO)
    for name, value in stated["model"].items():
        if name not in ("env", "network"):
            assert getattr(model, name) == value
    assert model.env_config.id == stated["model"]["env"]["id"]


def test_the_seeds_experiment_has_the_seeds_numbers():
    model = yaml.safe_load(packaged_configs()["cartpole.yaml"].read_text())["model"]
    assert (model["num_envs"], model["num_envs"] * model["num_steps"]) == (8, 256)
    assert (model["update_epochs"], model["minibatch_size"], model["learning_rate"]) == (2, 64, 1e-3)
    assert (model["vf_coef"], model["ent_coef"], model["clip_coef"]) == (0.5, 0.01, 0.2)
    assert (model["gamma"], model["gae_lambda"]) == (0.9, 0.95)
    assert (model["eval_num_envs"], model["eval_episodes"], model["eval_freq"], model["stop_value"]) == (5, 5, 100, 195)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_comment_of_eval_freq_has_it_in_all_units(path):
    model = yaml.safe_load(path.read_text())["model"]
    batch_size = model["num_envs"] * model["num_steps"]
    updates = model["update_epochs"] * batch_size // model["minibatch_size"]
    comment = in_all_units(model["eval_freq"], updates, batch_size)
    assert f"  eval_freq: {model['eval_freq']}  # {comment}\n" in path.read_text()
