"""A trained policy by itself: what is left of a run once it is to be used rather than continued.

Shapes: ``B`` observations of any batch, ``P`` outputs of the policy (see :mod:`pl_rl.networks.distributions`).
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pl_rl.algorithm.evaluation import choose_actions, network_input
from pl_rl.checkpoints.format import STATE_KEY, read_checkpoint
from pl_rl.deploy.inputs import batch_of
from pl_rl.deploy.making import make_network
from pl_rl.envs import EnvConfig, make_env
from pl_rl.envs.spaces import Space, describe_spaces, make_spaces
from pl_rl.errors import UsageError
from pl_rl.networks.distributions import (
    Bernoulli,
    Beta,
    BoundedDistribution,
    Categorical,
    DiagonalGaussian,
    MultiCategorical,
    SquashedGaussian,
    StateDependentExploration,
    StateDependentGaussian,
    to_numpy,
)
from pl_rl.networks.normalization import ObservationNormalizer, ValueNormalizer, is_switch_or_names
from pl_rl.networks.records import (
    Memory,
    Observations,
    Remembered,
    as_input,
    example,
    leaves,
    next_memory,
    with_memory,
)
from pl_rl.runs.trust import WayOut, checked, checked_of_file, in_python, is_own

_PARTS = ("network.", "normalizer.", "value_normalizer.")
# Those whose actions go into the environment as TrainedPolicy._to_env has it.
_DISTRIBUTIONS = {
    *(Bernoulli, Categorical, MultiCategorical),
    *(Beta, DiagonalGaussian, SquashedGaussian, StateDependentExploration, StateDependentGaussian),
}


@dataclass(frozen=True)
class TrainedWeights:
    """What a checkpoint tells about its policy.

    Attributes:
        tensors: ``network.NAME`` and, where observations or values are normalized, ``normalizer.NAME`` or
            ``value_normalizer.NAME``.
        settings: All settings of the model, as plain data.
        spaces: Observation and action space, as :func:`pl_rl.envs.spaces.describe_spaces` gives them; ``None`` where
            the file does not tell.
        training: How far it was trained (``train_iter``, ``env_steps``, ``seed``), the file that tells so
            (``source_sha256``), and the latest ``evaluation``, which is ``None`` before the first; plain data.
    """

    tensors: dict[str, Tensor]
    settings: dict[str, Any]
    spaces: dict[str, Any] | None
    training: dict[str, Any]


class TrainedPolicy(nn.Module):
    """The policy of a run, from an environment's observations to its actions.

    The network is in float32; observations are normalized where they were in training. :meth:`act` is for a program
    that plays; :meth:`forward` gives all that the network says, as tensors.

    Example::

        policy = pl_rl.load_policy("last")
        env = policy.make_env(render_mode="human")
        obs, info = env.reset()
        action = policy.act(obs)

    Args:
        settings: Of the model: a checkpoint's ``hyper_parameters``.
        spaces: As in :class:`TrainedWeights`. Where ``None``, the environment is made to ask it for its spaces.
        trust: Names in the settings that may be imported and called, beyond those that :mod:`pl_rl.runs.trust` allows;
            that of a package allows all in it.

    Attributes:
        settings: The same.
        spaces: The same, known by now; ``None`` for spaces of a kind that cannot be described.
        outputs: The names of what :meth:`forward` returns.

    Raises:
        UsageError: If the environment or the network cannot be made from the settings alone, or a name in the settings
            is not trusted.
    """

    outputs: tuple[str, ...]
    _low: Tensor
    _high: Tensor
    _start: Tensor

    def __init__(
        self, settings: dict[str, Any], spaces: dict[str, Any] | None = None, trust: Iterable[str] = ()
    ) -> None:
        super().__init__()
        self.settings = settings
        needed = checked(what_is_needed(settings, spaces), trust, "the policy")
        observation_space, self._space = make_spaces(spaces) if spaces is not None else _spaces_of(needed["env"])
        self.spaces = describe_spaces(observation_space, self._space)
        self.network = make_network(needed["network"], observation_space, self._space)
        norm_obs = settings.get("norm_obs", False)
        if not is_switch_or_names(norm_obs):
            raise UsageError(
                f"norm_obs={str(norm_obs)[:80]} is neither true nor false nor a list of names; use another file"
            )
        self.normalizer = ObservationNormalizer(observation_space, norm_obs) if norm_obs else None
        self.value_normalizer = ValueNormalizer() if settings.get("norm_value", False) else None
        self._check_distribution()
        distribution = self.network.distribution
        self.outputs = ("action", "value", *distribution.parts(torch.zeros(1, distribution.num_outputs)))
        if isinstance(self._space, gym.spaces.Box):
            self.register_buffer("_low", torch.from_numpy(self._space.low), persistent=False)
            self.register_buffer("_high", torch.from_numpy(self._space.high), persistent=False)
        elif not isinstance(self._space, gym.spaces.MultiBinary):
            start = cast(gym.spaces.Discrete | gym.spaces.MultiDiscrete, self._space).start
            self.register_buffer("_start", torch.as_tensor(start), persistent=False)
        self._memory: Memory | None = None
        if self.network.sequence_length is not None:
            self.outputs += ("next_state",)

    @torch.no_grad()
    def act(
        self, obs: Any, deterministic: bool = True, generator: torch.Generator | None = None
    ) -> npt.NDArray[np.generic]:
        """What the policy does, as an evaluation plays it.

        Args:
            obs: One observation ``[*observation_space.shape]`` as the environment gives it, or a batch of them
                ``[B, *observation_space.shape]``; of a dictionary, nested or by path, the entries that the policy sees.
            deterministic: Take the most probable action rather than a sampled one.
            generator: Of sampled actions, on the CPU; torch's global one by default.

        Returns:
            For one observation an action of the environment's action space, for a batch ``[B, *action_space.shape]``:
            shifted to the space's start, or clipped or scaled to its bounds.

        Raises:
            UsageError: If these are no observations of the environment.
        """
        batch, is_one = self._batch(obs)
        chosen, state = choose_actions(
            self.network, self._remembering(batch), generator or torch.default_generator, deterministic
        )
        self._memory = next_memory(state, np.zeros(len(chosen), np.bool_))
        actions = self.network.distribution.to_env(to_numpy(chosen))
        return actions[0] if is_one else actions

    def reset(self, ended: npt.ArrayLike | None = None) -> None:
        """Forget episodes that have ended; only a policy with a memory remembers any.

        Args:
            ended: Which of the batch's episodes ``[B]`` begin anew; all by default.
        """
        if ended is None or self._memory is None:
            self._memory = None
        else:
            self._memory = next_memory(self._memory.state, np.asarray(ended, np.bool_))

    def _remembering(self, batch: Observations) -> Any:
        """What the network takes: with its memory of the episodes so far, if it has one.

        Raises:
            UsageError: If it remembers another number of episodes.
        """
        count = len(leaves(batch)[0])
        memory = self._memory or self.network.first_memory(count)
        if memory is not None and len(memory.begins) != count:
            raise UsageError(
                f"{count} observations are given, and the policy remembers {len(memory.begins)} episodes; call reset() "
                "where others begin"
            )
        return with_memory(batch, memory)

    @torch.no_grad()
    def value(self, obs: Any) -> npt.NDArray[np.float32]:
        """The discounted sum of rewards that the network expects, scaled as they were in training.

        Args:
            obs: As :meth:`act`.

        Returns:
            A number for one observation, for a batch ``[B]``.

        Raises:
            UsageError: As :meth:`act`.
        """
        batch, is_one = self._batch(obs)
        predicted = self._in_rewards(self.network.value(self._remembering(batch)))
        values: npt.NDArray[np.float32] = predicted.float().cpu().numpy()
        return values[0] if is_one else values

    def _in_rewards(self, values: Tensor) -> Tensor:
        """Values ``[B]`` in units of the rewards, whatever the network predicts."""
        return values if self.value_normalizer is None else self.value_normalizer.inverse(values)

    def _batch(self, obs: Any) -> tuple[Observations, bool]:
        """Input of the network for observations, and whether they are one alone."""
        arrays, is_one = batch_of(obs, self.network)
        return network_input(arrays, next(self.network.parameters()), self.normalizer), is_one

    def forward(self, obs: Any, state: Tensor | None = None) -> tuple[Tensor, ...]:
        """The most probable actions and what they come from.

        Args:
            obs: Observations ``[B, *observation_space.shape]`` as the environment gives them, or a dictionary of all
                entries.
            state: Of the memory of a network that has one, ``[B, S]``; zero where an episode begins.

        Returns:
            ``action`` ``[B, *action_space.shape]``, as the environment takes them: shifted to the space's start, or
            clipped or scaled to its bounds; ``value`` ``[B]``, as :meth:`value`; then the parts of the
            distribution: ``logits`` ``[B, P]``; ``mean`` and ``log_std`` ``[B, A]``, of a squashed Gaussian before
            tanh; or ``alpha`` and ``beta`` ``[B, A]``; and of a network with a memory the ``next_state``.
        """
        if self.normalizer is not None:
            obs = self.normalizer(obs)
        seen = as_input(obs, next(self.network.parameters()))
        if state is not None:
            seen = Remembered(seen, Memory(state, torch.zeros_like(state[:, 0], dtype=torch.bool)))
        outputs, values, next_state = self.network.step(seen)
        remembered = () if next_state is None else (next_state,)
        distribution = self.network.distribution
        actions = self._to_env(distribution.mode(outputs))
        return actions, self._in_rewards(values), *distribution.parts(outputs).values(), *remembered

    def make_env(self, trust: Iterable[str] = (), **kwargs: Any) -> gym.Env[Any, Any]:
        """The environment that the policy was trained in, as it is evaluated there.

        Args:
            trust: As above, for what the settings name as the environment.
            kwargs: As :func:`pl_rl.envs.make_env`.

        Raises:
            UsageError: If it cannot be made, or a name in its settings is not trusted.
        """
        env = checked({"env": self.settings["env"]}, trust, "the policy")["env"]
        return make_env(EnvConfig(**env), **kwargs)

    def example(self) -> Any:
        """Two observations of the environment's shape and type."""
        return example(self.network.observation_space, 2)

    def example_state(self) -> Tensor | None:
        """The state of the memory where two episodes begin; ``None`` for a network without one."""
        memory = self.network.first_memory(2)
        return None if memory is None else memory.state

    def _to_env(self, actions: Tensor) -> Tensor:
        """:meth:`pl_rl.networks.distributions.ActionDistribution.to_env` in tensors."""
        distribution = self.network.distribution
        if isinstance(distribution, BoundedDistribution):
            unit = distribution.unit(actions).reshape(-1, *self._low.shape).to(self._low.dtype)
            actions = self._low + (self._high - self._low) * unit
        actions = actions.reshape(-1, *(self._space.shape or ()))
        if isinstance(self._space, gym.spaces.Box):
            return actions.to(self._low.dtype).clamp(self._low, self._high)
        if isinstance(self._space, gym.spaces.MultiBinary):
            return actions.to(torch.int8)
        return actions + self._start

    def _check_distribution(self) -> None:
        """Refuse a distribution whose actions may be others in the environment than :meth:`_to_env` knows."""
        own = type(self.network.distribution)
        if own not in _DISTRIBUTIONS:
            raise UsageError(
                f"the network's distribution is a {own.__qualname__}, of which it is not known how its actions go into "
                "the environment; export the weights alone, with --to state_dict or safetensors"
            )


def what_is_needed(settings: dict[str, Any], spaces: dict[str, Any] | None) -> dict[str, Any]:
    """The settings that a policy is made from: with its spaces, it needs no environment.

    Raises:
        UsageError: If they are not there.
    """
    needed = ["network"] if spaces is not None else ["network", "env"]
    if not isinstance(settings, dict) or not settings.keys() >= set(needed):
        raise UsageError(f"the policy's settings lack {' or '.join(needed)}; use another copy of the file")
    return {name: settings[name] for name in needed}


def checked_settings(
    settings: dict[str, Any],
    spaces: dict[str, Any] | None,
    path: Path,
    trust: Iterable[str] = (),
    way_out: WayOut = in_python,
) -> dict[str, Any]:
    """The settings of a policy, of which those that it is made from are checked by :mod:`pl_rl.runs.trust`."""
    needed = what_is_needed(settings, spaces)
    return {**settings, **checked_of_file(settings if is_own(path) else needed, path, trust, way_out)}


def _spaces_of(env: dict[str, Any]) -> tuple[Space, Space]:
    made = make_env(EnvConfig(**env))
    made.close()
    return made.observation_space, made.action_space


def read_trained(path: Path) -> TrainedWeights:
    """The policy of a checkpoint; nothing that it names is looked at.

    Raises:
        UsageError: If the file cannot be read, or is not one of ours.
    """
    checkpoint = read_checkpoint(path)
    counters, settings = checkpoint[STATE_KEY]["counters"], dict(checkpoint["hyper_parameters"])
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    state = checkpoint["callbacks"].get("PeriodicEvaluation")
    evaluation = None
    if state is not None and state["latest"]:
        evaluation = {
            **state["latest"],
            "train_iter": state["train_iter"],
            "episodes": settings.get("eval_episodes"),
            "deterministic": settings.get("eval_deterministic"),
        }
    return TrainedWeights(
        {name: tensor for name, tensor in checkpoint["state_dict"].items() if name.startswith(_PARTS)},
        settings,
        checkpoint[STATE_KEY]["spaces"],
        {
            "source_sha256": sha256,
            "seed": counters["run_seed"],
            "train_iter": counters["train_iter"],
            "env_steps": counters["env_steps"],
            "evaluation": evaluation,
        },
    )


def load_weights(policy: TrainedPolicy, tensors: dict[str, Tensor]) -> None:
    """Put a checkpoint's weights into its policy, and the policy into evaluation mode.

    Raises:
        UsageError: If they are another network's.
    """
    try:
        policy.load_state_dict(tensors)
    except RuntimeError as error:
        sentence = " ".join(str(error).split())
        raise UsageError(
            f"the checkpoint's weights do not fit the network that its settings make ({sentence}); use the network "
            "class and the environment that it was trained with"
        ) from error
    policy.eval()


def file_metadata(settings: dict[str, Any], training: dict[str, Any]) -> dict[str, str]:
    """What a file of weights says about itself, as text under each key."""
    return {
        "library": "pl_rl",
        "env": settings["env"]["id"],
        "network": json.dumps(settings["network"], sort_keys=True),
        "source_sha256": training["source_sha256"],
    }
