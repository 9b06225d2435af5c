"""A trained policy on a model hub, through the mixin of ``huggingface_hub``, which is optional.

https://huggingface.co/docs/huggingface_hub/guides/integrations
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from pl_rl.deploy.policy import (
    TrainedPolicy,
    TrainedWeights,
    checked_settings,
    file_metadata,
    load_weights,
    read_trained,
    what_is_needed,
)
from pl_rl.errors import UsageError, installation
from pl_rl.files.plain_data import plain_data
from pl_rl.files.writing import write_whole
from pl_rl.pretrained import safetensors
from pl_rl.runs.directory import display_path
from pl_rl.runs.trust import WayOut, checked, in_python

try:
    from huggingface_hub import EvalResult, ModelCard, ModelCardData, PyTorchModelHubMixin
except ImportError as error:
    raise ImportError(f"a model hub needs more packages; {installation('hub')}") from error

CONFIG, WEIGHTS = "config.json", "model.safetensors"
# Of config.json, which can hold two bounds for each number in an observation.
_MAX_BYTES = 2**26

_BODY = """
# PPO for {env}

A policy trained with pl_rl's PPO: {env_steps:,} env steps, {train_iter:,} gradient updates, seed {seed}.

{result}

## Use

```python
import pl_rl

policy = pl_rl.load_policy("OWNER/NAME")  # this repository, or a folder with its files
env = policy.make_env()
obs, _ = env.reset()
action = policy.act(obs)
```

`python -m pl_rl fit --pretrained.path model.safetensors ...` starts a training run from it.

## Settings

```yaml
{settings}```

The checkpoint that it comes from has the SHA-256 `{source_sha256}`.
"""


# The types of an optional package are not known to the type checker.
class HubPolicy(TrainedPolicy, PyTorchModelHubMixin, library_name="pl_rl"):  # type: ignore[call-arg, misc]
    """A policy with the mixin's ``save_pretrained``, ``push_to_hub`` and ``from_pretrained``.

    Example::

        HubPolicy.from_checkpoint("lightning_logs/version_0/checkpoints/best.ckpt").push_to_hub("owner/name")

    Args:
        settings: Of the model.
        training: How it was trained, as in :class:`pl_rl.deploy.policy.TrainedWeights`; for the model card.
        spaces: As in :class:`pl_rl.deploy.policy.TrainedWeights`.

    Raises:
        UsageError: As :class:`pl_rl.deploy.policy.TrainedPolicy`.
    """

    # What is trusted is no argument, as the mixin takes those that are not given from the file.
    def __init__(
        self, settings: dict[str, Any], training: dict[str, Any], spaces: dict[str, Any] | None = None
    ) -> None:
        super().__init__(settings, spaces)
        self.training_record = training

    @classmethod
    def from_checkpoint(cls, path: str | Path, trust: Iterable[str] = ()) -> "HubPolicy":
        """The policy of a run's checkpoint.

        Args:
            path: Of the checkpoint; one below ``lightning_logs`` is the user's own.
            trust: Names in another one that may be imported and called, as in
                :class:`pl_rl.deploy.policy.TrainedPolicy`.

        Raises:
            UsageError: If it is none, or the policy cannot be made from it alone.
        """
        return cls.of_weights(read_trained(Path(path)), Path(path), trust)

    @classmethod
    def of_weights(
        cls, trained: TrainedWeights, path: Path, trust: Iterable[str] = (), way_out: WayOut = in_python
    ) -> "HubPolicy":
        """The policy of a checkpoint that has been read.

        Args:
            trained: What it tells.
            path: Where it lies.
            trust: As :meth:`from_checkpoint`.
            way_out: Says how to trust a name.

        Raises:
            UsageError: As :meth:`from_checkpoint`.
        """
        spaces = trained.spaces
        settings = checked_settings(trained.settings, spaces, path, trust, way_out)
        if spaces is None:  # an old file: the folder is to tell them nevertheless
            spaces = TrainedPolicy(settings).spaces
        policy = cls(settings, trained.training, spaces)
        load_weights(policy, trained.tensors)
        return policy

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **arguments: Any) -> "HubPolicy":
        """The policy in a folder, or in a repository of the hub.

        Args:
            pretrained_model_name_or_path: The folder's path, or ``OWNER/NAME``.
            arguments: The mixin's, and those of :meth:`_from_pretrained`.

        Raises:
            UsageError: If what is there is damaged, or a name in its settings is not trusted.
        """
        folder = Path(pretrained_model_name_or_path)
        if folder.is_dir():
            _check_folder(folder)
        try:
            policy: HubPolicy = super().from_pretrained(pretrained_model_name_or_path, **arguments)
        except UsageError:
            raise
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise _damaged(str(pretrained_model_name_or_path), error) from error
        return policy

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, trust: Iterable[str] = (), **arguments: Any) -> "HubPolicy":
        """As the mixin's, which by default would leave a weight that the file lacks at random.

        Args:
            strict: Refuse a file without one of the weights.
            trust: As :meth:`from_checkpoint`, an argument of ``from_pretrained`` too.
            arguments: What the mixin found in the folder and its own.

        Raises:
            UsageError: If the folder lacks its settings, or a name in them is not trusted.
        """
        if not arguments.keys() >= {"settings", "training"}:
            raise UsageError(f"{arguments['model_id']!r} has no config.json of pl_rl; use a folder that export wrote")
        settings, spaces = arguments["settings"], arguments.get("spaces")
        folder = Path(arguments["model_id"])
        if folder.is_dir():
            settings = checked_settings(settings, spaces, folder, trust)
        else:
            source = f"{arguments['model_id']!r} comes from the hub and"
            settings = {**settings, **checked(what_is_needed(settings, spaces), trust, source)}
        arguments["settings"] = settings
        policy: HubPolicy = super()._from_pretrained(strict=strict, **arguments)
        return policy.eval()  # as not every version does

    # The mixin calls one of these when it has the file.
    @classmethod
    def _load_as_safetensor(cls, model: "HubPolicy", model_file: str, *arguments: Any) -> "HubPolicy":
        try:
            loaded: HubPolicy = super()._load_as_safetensor(model, model_file, *arguments)
        except Exception as error:  # the library's own error class has no stable place
            raise _damaged(display_path(model_file), error) from error
        return loaded

    @classmethod
    def _load_as_pickle(cls, model: "HubPolicy", model_file: str, *arguments: Any) -> "HubPolicy":
        try:
            loaded: HubPolicy = super()._load_as_pickle(model, model_file, *arguments)
        except Exception as error:  # torch.load fails in as many ways as a file can be broken
            raise _damaged(display_path(model_file), error) from error
        return loaded

    def _save_pretrained(self, save_directory: Path) -> None:
        """As the mixin's, and what the file is."""
        data = safetensors.dump(self.state_dict(), file_metadata(self.settings, self.training_record))
        write_whole(save_directory / WEIGHTS, data)

    def generate_model_card(self) -> ModelCard:
        """What the policy is, what it achieved, and how it was trained and is used."""
        env, training = self.settings["env"]["id"], self.training_record
        info: Any = self._hub_mixin_info
        data = {**info.model_card_data.to_dict(), "pipeline_tag": "reinforcement-learning"}
        data["tags"] = sorted([*data["tags"], "ppo", "reinforcement-learning", env])
        evaluation = training["evaluation"]
        # The metadata have no place to say that a result is of earlier weights.
        if evaluation is not None and evaluation["train_iter"] == training["train_iter"]:
            result = f"{evaluation['return_mean']:.2f} +/- {evaluation['return_std']:.2f}"
            data["model_name"] = "PPO"
            data["eval_results"] = [
                EvalResult("reinforcement-learning", env, env, "mean_reward", result, metric_name="mean_reward")
            ]
        body = _BODY.format(
            env=env,
            **{name: training[name] for name in ("env_steps", "train_iter", "seed", "source_sha256")},
            result=_result(training),
            settings=yaml.safe_dump(plain_data(self.settings)),
        )
        return ModelCard(f"---\n{ModelCardData(**data).to_yaml()}\n---\n{body}")


def _check_folder(folder: Path) -> None:
    """Refuse a folder before the mixin reads in it, which takes its files for sound.

    Raises:
        UsageError: If a file is not there, or the settings are too large or no mapping.
    """
    for path in (folder / CONFIG, folder / WEIGHTS):
        if not path.is_file():
            raise UsageError(f"{display_path(folder)} has no file {path.name} of pl_rl; use a folder that export wrote")
    path = folder / CONFIG
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
        if len(text) > _MAX_BYTES:
            raise ValueError(f"more than {_MAX_BYTES:,} bytes")
        if not isinstance(json.loads(text.decode()), dict):
            raise TypeError("no mapping")
    except (OSError, RecursionError, TypeError, ValueError) as error:
        raise _damaged(display_path(path), error) from error


def _damaged(what: str, error: Exception) -> UsageError:
    reason = " ".join(str(error).split())[:300]
    return UsageError(
        f"{what!r} is damaged, or no policy of pl_rl ({type(error).__name__}: {reason}); use another copy"
    )


def _result(training: dict[str, Any]) -> str:
    """The latest evaluation in a sentence."""
    evaluation = training["evaluation"]
    if evaluation is None:
        return "It has not been evaluated."
    actions = "the most probable actions" if evaluation["deterministic"] else "sampled actions"
    earlier = (
        ""
        if evaluation["train_iter"] == training["train_iter"]
        else (f" These are later weights: the evaluation was made after {evaluation['train_iter']:,} gradient updates.")
    )
    return (
        f"Return {evaluation['return_mean']:.2f} +/- {evaluation['return_std']:.2f} (mean and standard deviation of "
        f"{evaluation['episodes']} episodes with {actions}, between {evaluation['return_min']:.2f} and "
        f"{evaluation['return_max']:.2f}).{earlier}"
    )
