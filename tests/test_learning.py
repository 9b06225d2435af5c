"""Policies get better, and as good as they should."""

from functools import partial

import lightning as L
import pytest
import yaml

from pl_rl import PPO, EnvConfig, MLPActorCritic
from pl_rl.cli.configs import packaged_configs
from tests.support import MemoryLogger, fit, quiet_trainer, small_ppo

pytestmark = pytest.mark.slow


GOOD_IN_BOX = -0.2 * 16  # a mean distance of 0.2; always staying in the middle costs 1 + 0.125


@pytest.mark.parametrize(
    ("env", "kind", "good_return", "network"),
    [
        ("Identity", "discrete", 15.5, {}),  # of 16 targets; chance earns 4
        ("Identity", "multi_discrete", 15.5, {}),  # chance earns 16 * (1/3 + 1/2) / 2 = 6.7
        ("Identity", "box", GOOD_IN_BOX, {}),
        ("Identity", "box", GOOD_IN_BOX, {"distribution": "state_dependent_gaussian"}),
        ("Identity", "box", GOOD_IN_BOX, {"distribution": "squashed_gaussian"}),
        ("Identity", "box", GOOD_IN_BOX, {"distribution": "beta"}),
        ("Identity", "box", GOOD_IN_BOX, {"distribution": "gsde", "log_std_init": -2.0, "sde_sample_freq": 4}),
        ("Echo", "discrete", 15.5, {}),
        ("Echo", "multi_discrete", 15.5, {}),
        ("Echo", "multi_binary", 15.5, {}),  # chance earns 8
    ],
)
def test_the_identity_is_learnt(env, kind, good_return, network):
    model = small_ppo(
        env=EnvConfig(f"PlRlTest/{env}-v0", kwargs={"kind": kind}),
        network=partial(MLPActorCritic, **network),
        total_env_steps=60_000,
        num_envs=8,
        num_steps=64,
        minibatch_size=128,
        update_epochs=4,
        learning_rate=1e-3,
        gamma=0.5,
        eval_freq=320,
        eval_episodes=20,
        stop_value=good_return,
    )
    logger = MemoryLogger()
    fit(model, logger=logger)
    returns = logger.values("evaluator_iter/return_mean")
    assert returns[0] < good_return <= max(returns), returns


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_seeds_experiment_reaches_its_stop_value(seed):
    settings = yaml.safe_load(packaged_configs()["cartpole.yaml"].read_text())["model"]
    settings["env"] = EnvConfig(**settings["env"])
    L.seed_everything(seed, verbose=False)
    model = PPO(**settings)
    trainer = fit(model)
    assert model.env_steps <= 100_000
    assert "reached stop_value=195" in model.stop_reason
    (result,) = trainer.validate(model, verbose=False)
    assert result["evaluator/return_mean"] >= 195
    # And not only on the evaluation's own episodes.
    (tested,) = quiet_trainer().test(model, verbose=False)
    assert tested["test/return_mean"] >= 150
