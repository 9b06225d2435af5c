"""Models of Stable-Baselines3 and sb3-contrib: PPO and A2C with an ``MlpPolicy``, a ``CnnPolicy`` or a
``MultiInputPolicy``, ``MaskablePPO``, and ``RecurrentPPO``.

The archive holds the weights (``policy.pth``), the optimizer (``policy.optimizer.pth``) and the settings (``data``):
JSON in which objects are pickled, with their attributes beside them as text. The pickles stay closed.
https://stable-baselines3.readthedocs.io/en/master/guide/save_format.html
"""

import json
import re
from typing import Any

from torch import Tensor

from pl_rl.networks.layers import ACTIVATIONS
from pl_rl.pretrained.conversion import convert_mlp, convert_other, tensor_dict
from pl_rl.pretrained.files import WeightsFile, load_torch
from pl_rl.pretrained.layers import LOG_STD, memory_names, numbered, our_names, widths
from pl_rl.pretrained.policy_weights import PolicyWeights, Unreadable

_OPTIMIZER = "policy.optimizer.pth"
_EXTRACTOR = "features_extractor"
_EXTRACTORS = ("FlattenExtractor", "NatureCNN", "CombinedExtractor")
_CONVOLUTIONS = (0, 2, 4)
_CONTRIB = {"maskable": "MaskablePPO", "recurrent": "RecurrentPPO"}
_NORMALIZED = (
    "If the model was trained in a VecNormalize, its statistics are in a file of their own: name it with "
    "--pretrained.normalizer."
)
_PLAIN_GSDE = {"full_std": True, "use_expln": False, "squash_output": False}
_VERSION = "_stable_baselines3_version"
_ACTIVATIONS = {f"<class '{cls.__module__}.{cls.__name__}'>": name for name, cls in ACTIVATIONS.items()}


def recognize(file: WeightsFile) -> bool:
    """Whether the archive has the members of a saved model."""
    return {"data", "policy.pth"} <= set(file.members)


def convert(file: WeightsFile) -> PolicyWeights:
    """Separate networks of the policy and the value function, of any depth, after the encoders and memories if any.

    Raises:
        Unreadable: If the policy has other layers than these, or treats observations or actions otherwise.
    """
    settings = _settings(file)
    tensors = _of_one_extractor(tensor_dict(load_torch(file.read_member("policy.pth"))) or {})
    actor, critic = (numbered(tensors, f"mlp_extractor.{part}") for part in ("policy_net", "value_net"))
    names = our_names([], [*actor, "action_net"], [*critic, "value_net"])
    names |= {"log_std": LOG_STD} if "log_std" in tensors else {}
    what = file, _source(file, settings), tensors
    adam = load_torch(file.read_member(_OPTIMIZER)) if _OPTIMIZER in file.members else None
    keys = _keys(settings)
    gsde = {"distribution": "gsde"} if settings.get("use_sde") else {}
    encoders, memories = _encoders(tensors, keys), memory_names(tensors, "lstm_actor", "lstm_critic")
    if not (encoders or memories or keys):
        return convert_mlp(*what, names, _activation(settings), [_NORMALIZED], adam)
    if encoders and not (actor or critic or memories or keys):
        return convert_other(*what, _convolutional(tensors), "CNNActorCritic", gsde, [], adam)
    fitting: dict[str, Any] = gsde | {
        "actor_sizes": widths(tensors, actor),
        "critic_sizes": widths(tensors, critic),
        "activation": _activation(settings),
    }
    images = {prefix.rpartition(".")[2]: [len(tensors[f"{prefix}.linear.0.bias"])] for prefix in encoders}
    if images:
        fitting["encoder_sizes"] = json.dumps(images if keys else {"*": next(iter(images.values()))})
    names |= {name: ours for group in encoders.values() for name, ours in group.items()}
    if not memories:
        return convert_other(*what, names, "MultiInputActorCritic", fitting, [_NORMALIZED], adam)
    fitting["memory_size"] = tensors["lstm_actor.weight_hh_l0"].shape[-1]
    return convert_other(*what, names | memories, "RecurrentActorCritic", fitting, [_NORMALIZED], adam)


def _source(file: WeightsFile, settings: dict[str, Any]) -> str:
    """The library, its version and the algorithm."""
    module = str((settings.get("policy_class") or {}).get("__module__", ""))
    library, name = "Stable-Baselines3", "PPO" if "clip_range" in settings else "A2C"
    for part, algorithm in _CONTRIB.items():
        if module.startswith(f"sb3_contrib.common.{part}."):
            library, name = "sb3-contrib", algorithm
    version = ""
    if _VERSION in file.members:
        version = f" {file.read_member(_VERSION).decode(errors='replace').strip()[:20]}"
    return f"{library}{version} {name}"


def _of_one_extractor(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the second and third name of the layers that policy and value function share.

    Raises:
        Unreadable: If they do not share them.
    """
    kept = {}
    for name, tensor in tensors.items():
        head, _, rest = name.partition("_features_extractor.")
        shared = tensors.get(f"features_extractor.{rest}") if head in ("pi", "vf") else None
        if head not in ("pi", "vf") or not rest:
            kept[name] = tensor
        elif shared is None or not shared.equal(tensor):
            raise Unreadable(
                "encodes observations for the policy and for the value function in different layers, and our networks "
                "share them; train with share_features_extractor=True"
            )
    return kept


def _encoders(tensors: dict[str, Tensor], keys: list[str]) -> dict[str, dict[str, str]]:
    """Of each extractor of images, by its beginning, the names in our networks of its tensors."""
    beginnings = [f"{_EXTRACTOR}.extractors.{key}" for key in keys] or [_EXTRACTOR]
    encoders = {}
    for number, beginning in enumerate(beginnings):
        if f"{beginning}.linear.0.weight" in tensors:
            layers = {f"cnn.{i}": f"convolutions.{i}" for i in _CONVOLUTIONS} | {"linear.0": "layers.0"}
            encoders[beginning] = {
                f"{beginning}.{theirs}.{kind}": f"encoders.{number}.{ours}.{kind}"
                for theirs, ours in layers.items()
                for kind in ("weight", "bias")
            }
    return encoders


def _convolutional(tensors: dict[str, Tensor]) -> dict[str, str]:
    """The names in ``CNNActorCritic``."""
    layers = {f"{_EXTRACTOR}.cnn.{i}": f"convolutions.{i}" for i in _CONVOLUTIONS}
    layers |= {f"{_EXTRACTOR}.linear.0": "hidden", "action_net": "actor", "value_net": "critic"}
    names = {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in layers.items() for kind in ("weight", "bias")}
    return names | ({"log_std": LOG_STD} if "log_std" in tensors else {})


def _settings(file: WeightsFile) -> dict[str, Any]:
    """The settings as JSON has them, of a model whose policy an ``MLPActorCritic`` can take over."""
    try:
        settings = json.loads(file.read_member("data"))
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"has settings that are no JSON ({error}); use another copy") from error
    if not isinstance(settings, dict):
        raise Unreadable("has settings that are no JSON object; use another copy")
    space = _type(settings.get("observation_space"))
    if not re.search(r"\.spaces\.(box\.Box|dict\.Dict|discrete\.Discrete|multi_\w+\.Multi(Discrete|Binary))'>$", space):
        raise Unreadable(f"observes a {space or 'space that is not told'}, which no network of ours takes")
    policy = _policy_settings(settings)
    extractor = policy.get("features_extractor_class")
    if extractor is not None and not any(known in str(extractor) for known in _EXTRACTORS):
        raise Unreadable(
            f"extracts features by a {extractor}; only policies that take the observations as they are fit"
        )
    for option, value in _PLAIN_GSDE.items():
        if settings.get("use_sde") and policy.get(option, value) is not value:
            raise Unreadable(
                f"explores by state-dependent noise with {option}={not value}, which our gsde has not; train without it"
            )
    if policy.get("normalize_images") is False:
        raise Unreadable("takes images as they are (normalize_images=False), which our networks divide by 255")
    return settings


def _keys(settings: dict[str, Any]) -> list[str]:
    """The entries of a dictionary of observations, in its order."""
    space = settings["observation_space"]
    return re.findall(r"'([^']+)': (?=[A-Z]\w*\()", str(space.get("spaces", ""))) if "Dict" in _type(space) else []


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
