"""Models of Stable-Baselines3: PPO and A2C with an ``MlpPolicy``.

The archive holds the weights (``policy.pth``), the optimizer (``policy.optimizer.pth``) and the settings (``data``):
JSON in which objects are pickled, with their attributes beside them as text. The pickles stay closed.
https://stable-baselines3.readthedocs.io/en/master/guide/save_format.html
"""

import json
import re
from typing import Any

from pl_rl.networks.layers import ACTIVATIONS
from pl_rl.pretrained.conversion import convert_mlp, tensor_dict
from pl_rl.pretrained.files import WeightsFile, load_torch
from pl_rl.pretrained.layers import LOG_STD, numbered, our_names
from pl_rl.pretrained.policy_weights import PolicyWeights, Unreadable

_OPTIMIZER = "policy.optimizer.pth"
_VERSION = "_stable_baselines3_version"
_ACTIVATIONS = {f"<class '{cls.__module__}.{cls.__name__}'>": name for name, cls in ACTIVATIONS.items()}


def recognize(file: WeightsFile) -> bool:
    """Whether the archive has the members of a saved model."""
    return {"data", "policy.pth"} <= set(file.members)


def convert(file: WeightsFile) -> PolicyWeights:
    """Separate networks of the policy and the value function, of any depth.

    Raises:
        Unreadable: If the policy has other layers than these, or treats observations or actions otherwise.
    """
    settings = _settings(file)
    source = ["Stable-Baselines3", "PPO" if "clip_range" in settings else "A2C"]
    if _VERSION in file.members:
        source.insert(1, file.read_member(_VERSION).decode(errors="replace").strip()[:20])
    tensors = tensor_dict(load_torch(file.read_member("policy.pth"))) or {}
    names = our_names(
        [],
        [*numbered(tensors, "mlp_extractor.policy_net"), "action_net"],
        [*numbered(tensors, "mlp_extractor.value_net"), "value_net"],
    )
    names |= {"log_std": LOG_STD} if "log_std" in tensors else {}
    return convert_mlp(
        file,
        " ".join(source),
        tensors,
        names,
        _activation(settings),
        notes=[
            "If the model was trained in a VecNormalize, its statistics are in a file of their own: name "
            "it with --pretrained.normalizer."
        ],
        adam=load_torch(file.read_member(_OPTIMIZER)) if _OPTIMIZER in file.members else None,
    )


def _settings(file: WeightsFile) -> dict[str, Any]:
    """The settings as JSON has them, of a model whose policy an ``MLPActorCritic`` can take over."""
    try:
        settings = json.loads(file.read_member("data"))
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"has settings that are no JSON ({error}); use another copy") from error
    if not isinstance(settings, dict):
        raise Unreadable("has settings that are no JSON object; use another copy")
    if settings.get("use_sde"):
        raise Unreadable("explores by state-dependent noise (use_sde), which MLPActorCritic has not; train without it")
    space = _type(settings.get("observation_space"))
    if not re.search(r"\.spaces\.box\.Box'>$", space):
        raise Unreadable(f"observes a {space or 'space that is not told'}; only policies of a Box can be read")
    extractor = _policy_settings(settings).get("features_extractor_class")
    if extractor is not None and "FlattenExtractor" not in str(extractor):
        raise Unreadable(
            f"extracts features by a {extractor}; only policies that take the observations as they are fit"
        )
    return settings


def _activation(settings: dict[str, Any]) -> str:
    """Named in the text of the policy's settings, or the default."""
    text = _policy_settings(settings).get("activation_fn")
    if text is None:
        return "tanh"
    if text not in _ACTIVATIONS:
        raise Unreadable(f"has the activation {text}; MLPActorCritic has {', '.join(ACTIVATIONS)}")
    return _ACTIVATIONS[text]


def _policy_settings(settings: dict[str, Any]) -> dict[str, Any]:
    kwargs = settings.get("policy_kwargs")
    return kwargs if isinstance(kwargs, dict) else {}


def _type(value: Any) -> str:
    return str(value.get(":type:", "")) if isinstance(value, dict) else ""
