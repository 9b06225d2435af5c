"""Runs CleanRL's own scripts for a short while and notes what their agents answer for fixed observations.

Run as ``python make_cleanrl.py FOLDER``, where FOLDER holds CleanRL's ``ppo.py`` and ``ppo_continuous_action.py``
(commit fe8d8a03c41a); needs::

    pip install gymnasium==0.29.1 numpy==1.26.4 pygame tensorboard tyro torch==2.13.0

``ppo.py`` saves no model, so both are saved by the statement with which ``ppo_continuous_action.py`` does.
"""

import contextlib
import runpy
import sys
import tempfile
from pathlib import Path

import torch
from reference import HERE, observations, write_reference

FOLDER = HERE / "cleanrl"


def run(script, *arguments):
    """Runs a script as ``__main__`` in a scratch folder; gives its agent."""
    before = sys.argv
    sys.argv = [str(script), "--no-cuda", *arguments]
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        agent = runpy.run_path(str(script), run_name="__main__")["agent"]
    sys.argv = before
    return agent


def save(agent, name, size):
    path = FOLDER / f"{name}.cleanrl_model"
    torch.save(agent.state_dict(), path)
    obs = torch.from_numpy(observations(size))
    with torch.no_grad():
        answers = {"value": agent.get_value(obs).squeeze(-1)}
        if hasattr(agent, "actor"):
            answers["logits"] = agent.actor(obs)
        else:
            answers |= {"mean": agent.actor_mean(obs), "log_std": agent.actor_logstd.squeeze(0)}
    write_reference(path, f"cleanrl fe8d8a03c41a, torch {torch.__version__}", obs=obs, **answers)


def main():
    source = Path(sys.argv[1]).resolve()
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    save(run(source / "ppo.py", "--env-id", "CartPole-v1", "--total-timesteps", "5120"), "ppo", size=4)
    arguments = ["--env-id", "Pendulum-v1", "--total-timesteps", "4096"]
    save(run(source / "ppo_continuous_action.py", *arguments), "ppo_continuous_action", size=3)


if __name__ == "__main__":
    main()
