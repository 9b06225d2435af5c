"""Checkpoints of DI-engine's on-policy algorithms: its ``VAC`` model and their optimizer.

``model`` lists each tensor several times: those of ``actor.`` and ``critic.`` are the ones of the encoders and heads
over again.
"""

from torch import Tensor

from pl_rl.pretrained.conversion import convert_mlp, tensor_dict
from pl_rl.pretrained.files import WeightsFile
from pl_rl.pretrained.layers import LOG_STD, numbered, our_names
from pl_rl.pretrained.policy_weights import PolicyWeights, Unreadable

_LOG_STD = "actor_head.log_sigma_param"


def recognize(file: WeightsFile) -> bool:
    """Whether there is a model with the heads of an actor and a critic."""
    return {"actor_head", "critic_head"} <= {name.split(".")[0] for name in _model(file)}


def convert(file: WeightsFile) -> PolicyWeights:
    """A policy of discrete or continuous actions, its encoder shared with the critic or not.

    Raises:
        Unreadable: If it has other layers than fully connected ones.
    """
    tensors = {name: t for name, t in _model(file).items() if not name.startswith(("actor.", "critic."))}
    critic = [*numbered(tensors, "critic_head.main"), "critic_head.last"]
    continuous = "actor_head.mu.weight" in tensors
    if continuous:
        actor = [*numbered(tensors, "actor_head.main"), "actor_head.mu"]
    else:
        actor = [*numbered(tensors, "actor_head.Q.0"), "actor_head.Q.1.0"]
    encoder = _encoder(tensors, "encoder")
    if not encoder:
        actor = [*_encoder(tensors, "actor_encoder"), *actor]
        critic = [*_encoder(tensors, "critic_encoder"), *critic]
    names = our_names(encoder, actor, critic)
    notes = [
        "The activation is not in the file: DI-engine's default is relu.",
        "With DI-engine's default value_norm=True the critic predicts values divided by a standard deviation that is "
        "in no file: train the critic before the policy if so.",
    ]
    if continuous:
        if _LOG_STD not in tensors:
            raise Unreadable("lacks the standard deviation of the actions; only sigma_type='independent' can be read")
        names[_LOG_STD] = LOG_STD
        notes.append(
            "Whether the mean goes through tanh (bound_type='tanh') is not in the file: if that policy's does, add "
            "--model.network.init_args.tanh_mean true. DI-engine may also have scaled actions to the environment's "
            "bounds: the mean here is the environment's action."
        )
    optimizer = file.content.get("optimizer")
    return convert_mlp(file, "DI-engine VAC", tensors, names, activation=None, notes=notes, adam=optimizer)


def _model(file: WeightsFile) -> dict[str, Tensor]:
    content = file.content if isinstance(file.content, dict) else {}
    return tensor_dict(content.get("model")) or {}


def _encoder(tensors: dict[str, Tensor], name: str) -> list[str]:
    """Layers of a fully connected encoder; empty if there is none of this name."""
    return [f"{name}.init", *numbered(tensors, f"{name}.main")] if f"{name}.init.weight" in tensors else []
