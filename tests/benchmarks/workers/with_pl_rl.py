"""Trains with pl_rl; see worker.py."""

import functools
import warnings
from pathlib import Path

import lightning as L
import yaml
from worker import Clock, parse_arguments

import pl_rl

task = parse_arguments()
workload = task.workload
clock = Clock(task, "pl_rl", "pl-rl")


class Marks(L.Callback):
    """Tells the clock of each iteration."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before the first rollout."""
        clock.begin()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: object) -> None:
        """After a rollout has been learnt from."""
        if clock.mark(pl_module.env_steps):
            trainer.should_stop = True


warnings.filterwarnings("ignore")
L.seed_everything(task.seed, verbose=False)
if workload.atari:
    config = yaml.safe_load((Path(__file__).parents[3] / "configs" / "pong.yaml").read_text())
    env = pl_rl.EnvConfig(**{**config["model"]["env"], "id": workload.env_id})
    network = pl_rl.CNNActorCritic
elif workload.memory_size or workload.masked or workload.keys:
    wrappers = []
    if workload.components:
        keep = {"components": list(workload.components)}
        wrappers = [{"class_path": "pl_rl.envs.partial.KeepComponents", "init_args": keep}]
    if workload.keys:
        keep = {"filter_keys": list(workload.keys)}
        wrappers = [{"class_path": "gymnasium.wrappers.FilterObservation", "init_args": keep}]
    env = pl_rl.EnvConfig(
        workload.env_id,
        imports=["minigrid"] if workload.env_id.startswith("MiniGrid") else [],
        wrappers=wrappers,
        action_mask="info.action_mask" if workload.masked else None,
    )
    sizes = {"actor_sizes": workload.head_sizes, "critic_sizes": workload.head_sizes, "activation": workload.activation}
    if workload.memory_size:
        memory = {"memory_size": workload.memory_size, "sequence_length": workload.sequence_length}
        network = functools.partial(pl_rl.RecurrentActorCritic, **memory, **sizes)
    else:
        network = functools.partial(pl_rl.MultiInputActorCritic, cnn_keys=(), **sizes)
else:
    env = pl_rl.EnvConfig(workload.env_id)
    network = functools.partial(
        pl_rl.MLPActorCritic,
        encoder_sizes=workload.encoder_sizes,
        actor_sizes=workload.head_sizes,
        critic_sizes=workload.head_sizes,
        activation=workload.activation,
    )
model = pl_rl.PPO(
    env,
    network,
    total_env_steps=task.env_steps,
    num_envs=workload.num_envs,
    num_steps=workload.num_steps,
    update_epochs=workload.update_epochs,
    minibatch_size=workload.minibatch_size,
    learning_rate=workload.learning_rate,
    gamma=workload.gamma,
    gae_lambda=workload.gae_lambda,
    clip_coef=workload.clip_coef,
    anneal_lr=workload.anneal_lr,
    clip_vloss=workload.clip_vloss,
    ent_coef=workload.ent_coef,
    vf_coef=2 * workload.vf_coef,  # pl_rl's weighs half the mean squared error
    max_grad_norm=workload.max_grad_norm,
    eval_freq=0,
)
trainer = pl_rl.Trainer(
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    callbacks=[Marks()],
)
trainer.fit(model)
clock.report()
