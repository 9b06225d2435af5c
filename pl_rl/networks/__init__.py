"""Policy and value networks, action distributions, running statistics.

What belongs here: modules with parameters or buffers, their modes, and descriptions of them.
What does not: how they learn (``algorithm/``), where their weights come from (``pretrained/``, ``checkpoints/``).
"""

from pl_rl.networks.actor_critic import ActorCritic, CNNActorCritic, MLPActorCritic
from pl_rl.networks.multi_input import MultiInputActorCritic
from pl_rl.networks.recurrent import RecurrentActorCritic

__all__ = ["ActorCritic", "CNNActorCritic", "MLPActorCritic", "MultiInputActorCritic", "RecurrentActorCritic"]
