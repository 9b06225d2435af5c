"""Trains with SheepRL; see worker.py.

Its encoder ends in a layer without activation, which is the one difference to the other libraries' networks.
"""

import sys

import torch
from sheeprl import cli
from sheeprl.algos.ppo import ppo
from worker import Clock, parse_arguments

task = parse_arguments()
workload = task.workload
clock = Clock(task, "sheeprl", "sheeprl")
if task.threads:
    torch.set_num_threads(task.threads)
train, anneal = ppo.train, ppo.anneal
iterations = 0


def timed_anneal(*args, **kwargs):
    """What an iteration begins with."""
    clock.begin()
    return anneal(*args, **kwargs)


def timed_train(*args, **kwargs):
    """What an iteration ends with."""
    global iterations
    gradient_steps = train(*args, **kwargs)
    iterations += 1
    clock.mark(iterations * workload.env_steps_per_iteration)
    return gradient_steps


ppo.train, ppo.anneal = timed_train, timed_anneal
encoder, head = workload.encoder_sizes, workload.head_sizes
settings = {
    "exp": "ppo",
    "seed": task.seed,
    "num_threads": task.threads or 1,
    "env.id": workload.env_id,
    "env.num_envs": workload.num_envs,
    "env.sync_env": True,
    "env.capture_video": False,
    "env.wrapper.render_mode": "null",
    "algo.total_steps": task.env_steps,
    "algo.rollout_steps": workload.num_steps,
    "algo.update_epochs": workload.update_epochs,
    "algo.per_rank_batch_size": workload.minibatch_size,
    "algo.optimizer.lr": workload.learning_rate,
    "algo.optimizer.eps": workload.adam_eps,
    "algo.gamma": workload.gamma,
    "algo.gae_lambda": workload.gae_lambda,
    "algo.clip_coef": workload.clip_coef,
    "algo.ent_coef": workload.ent_coef,
    "algo.vf_coef": workload.vf_coef,
    "algo.max_grad_norm": workload.max_grad_norm,
    "algo.normalize_advantages": True,
    "algo.dense_act": {"relu": "torch.nn.ReLU", "tanh": "torch.nn.Tanh"}[workload.activation],
    "algo.encoder.mlp_layers": max(0, len(encoder) - 1),
    "algo.encoder.dense_units": encoder[0] if encoder else 64,
    "algo.encoder.mlp_features_dim": encoder[-1] if encoder else "null",
    "algo.actor.mlp_layers": len(head),
    "algo.actor.dense_units": head[0],
    "algo.critic.mlp_layers": len(head),
    "algo.critic.dense_units": head[0],
    "algo.run_test": False,
    "buffer.memmap": False,
    "checkpoint.every": 0,
    "checkpoint.save_last": False,
    "metric.log_level": 0,
}
sys.argv = [sys.argv[0], *(f"{name}={value}" for name, value in settings.items())]
cli.run()
clock.report()
