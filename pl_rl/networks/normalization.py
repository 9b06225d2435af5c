"""Running statistics: normalization of observations and of values, scaling of rewards.

Those of observations and rewards are updated with each step of a rollout before they are applied to it, those of values
once an iteration; evaluation updates none. They are buffers, so they are saved and resumed with the weights.

Shapes: ``T`` steps of a rollout, ``N`` environments, ``...`` the shape of an observation, nothing for a reward.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Self, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pl_rl.errors import UsageError
from pl_rl.networks.records import entries_of, matching

# As in gymnasium's NormalizeObservation and NormalizeReward, and in Stable-Baselines3's VecNormalize.
EPSILON = 1e-8
CLIP = 10.0


class RunningStatistics(nn.Module):
    """Mean and variance of all samples so far, in float64 on the CPU, where environments are.

    Args:
        shape: ``...``, of one sample.

    Attributes:
        mean: ``[...]``, zero before the first update.
        var: ``[...]``, biased, one before the first update.
        count: Samples so far, a scalar.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("var", torch.ones(shape, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @property
    def scale(self) -> Tensor:
        """Standard deviation ``[...]``, with epsilon."""
        return (self.var + EPSILON).sqrt()

    def moments(self) -> Tensor:
        """Mean, variance and count in one piece, ``[K]``."""
        return torch.cat([self.mean.flatten(), self.var.flatten(), self.count.view(1)])

    def load_moments(self, moments: Tensor) -> None:
        """The inverse of :meth:`moments`."""
        size = self.mean.numel()
        self.mean.copy_(moments[:size].view_as(self.mean))
        self.var.copy_(moments[size : 2 * size].view_as(self.var))
        self.count.copy_(moments[-1])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Do nothing: the statistics stay in float64 on the CPU when the model is moved or converted."""
        return self


class ObservationNormalizer(RunningStatistics):
    """Normalizes each component of the observations to zero mean and unit variance, and clips the result.

    Before the first update observations are only clipped.

    Args:
        space: Of a single environment; a ``Box`` of floats, or a ``Dict`` with some.
        chosen: True normalizes all entries of floats; else patterns of their names, such as ``robot/*``.

    Attributes:
        clip: Largest absolute value of the result, a scalar; infinite clips nothing.
        mean, var: Of the entries of a ``Dict``, all in one vector in the order of their names.

    Raises:
        UsageError: For any other space, or a pattern that matches no entry of floats.
    """

    clip: Tensor

    def __init__(self, space: gym.Space[Any], chosen: bool | Sequence[str] = True) -> None:
        floats = {
            name: entry.shape
            for name, entry in entries_of(space).items()
            if isinstance(entry, gym.spaces.Box) and np.issubdtype(entry.dtype, np.floating)
        }
        if not floats:
            raise UsageError(
                f"norm_obs=true needs observations of floats, and they are {space}; use norm_obs=false (images are "
                "for the network to scale)"
            )
        if isinstance(chosen, list | tuple):
            floats = {name: floats[name] for name in matching(floats, chosen, "norm_obs")}
        sizes = [math.prod(shape) for shape in floats.values()]
        super().__init__((sum(sizes),) if isinstance(space, gym.spaces.Dict) else floats["obs"])
        self.register_buffer("clip", torch.tensor(CLIP, dtype=torch.float64))
        ends = list(itertools.accumulate(sizes))
        self._parts = {
            name: (slice(end - size, end), shape)
            for (name, shape), size, end in zip(floats.items(), sizes, ends, strict=True)
        }

    def forward(self, obs: Any) -> Any:
        """Observations ``[..., *space.shape]`` as the network sees them, in float32; entries that are not normalized
        stay as they are."""
        if not isinstance(obs, dict):
            return self._normalized(obs, self.mean, self.scale)
        mean, scale, parts = self.mean, self.scale, self._parts
        return {
            name: self._normalized(entry, *(part[parts[name][0]].view(parts[name][1]) for part in (mean, scale)))
            if name in parts
            else entry
            for name, entry in obs.items()
        }

    def _normalized(self, obs: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        return ((obs - mean) / scale).clamp(-self.clip, self.clip).float()

    def joined(self, obs: Any) -> npt.NDArray[Any]:
        """The entries ``[N, ...]`` that are normalized in one array ``[N, D]``; an array as it is."""
        if not isinstance(obs, dict):
            return cast(npt.NDArray[Any], obs)
        return np.concatenate([obs[name].reshape(len(obs[name]), -1) for name in self._parts], 1)

    @np.errstate(over="ignore", invalid="ignore")  # checked below
    def update(self, obs: Any) -> bool:
        """Update with the observations ``[N, ...]`` of one step, as the environments gave them.

        Returns:
            Whether all are finite, and so are their squares. If not, nothing changes, so that one bad step does not
            spoil the statistics.

        Source: the parallel formula of Chan, Golub and LeVeque,
        https://en.wikipedia.org/wiki/Algorithms_for_calculating_variance#Parallel_algorithm
        """
        obs = self.joined(obs)
        # NumPy on the memory of the buffers: on so few numbers it takes a third of torch's time.
        mean, var, count = self.mean.numpy(), self.var.numpy(), self.count.numpy()
        obs_mean = np.add.reduce(obs, 0, np.float64) / len(obs)
        deviations = obs - obs_mean
        obs_var = np.add.reduce(deviations * deviations, 0) / len(obs)
        share, delta = len(obs) / (count.item() + len(obs)), obs_mean - mean
        change = (obs_var - var + delta * delta * (1 - share)) * share
        if not math.isfinite(change.sum()):
            return False
        count += len(obs)
        mean += delta * share
        var += change
        return True

    @torch.no_grad()
    def load_statistics(self, mean: Tensor, var: Tensor, scale: Tensor, count: float, clip: float | None) -> None:
        """Take over statistics of another library: the output is ``(obs - mean) / scale``, clipped, from here on.

        Args:
            mean: ``[...]``.
            var: ``[...]``, stored unchanged if ``scale`` is ``sqrt(var + EPSILON)``.
            scale: ``[...]``, the divisor, however the library computes it.
            count: Samples so far.
            clip: Largest absolute value; ``None`` clips nothing.
        """
        self.mean.copy_(mean.view_as(self.mean))
        self.var.copy_(var.view_as(self.var))
        scale = scale.double().view_as(self.var)
        if not self.scale.equal(scale):
            self.var.copy_(scale.square() - EPSILON)
        self.count.fill_(count)
        self.clip.fill_(math.inf if clip is None else clip)


def is_switch_or_names(value: Any) -> bool:
    """Whether it is a value of ``norm_obs``: true, false, or a list of patterns."""
    is_list = isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(item, str) for item in value)
    return isinstance(value, bool) or is_list


class RewardScaler(RunningStatistics):
    """Divides rewards by the standard deviation of the discounted sums of the rewards before them.

    The mean is not subtracted, as that would change which policy is optimal. The sum restarts with each episode, as in
    Stable-Baselines3's ``VecNormalize``:
    https://stable-baselines3.readthedocs.io/en/master/guide/vec_envs.html#vecnormalize

    Args:
        gamma: Discount factor.
    """

    def __init__(self, gamma: float) -> None:
        super().__init__(())
        self.gamma = gamma

    @torch.no_grad()
    def forward(self, rewards: Tensor, ended: Tensor, open_sums: Tensor) -> tuple[Tensor, Tensor]:
        """Scale the rewards of a rollout, each step's by the statistics up to that step, and update these.

        If any sum is not finite, the statistics stay.

        Args:
            rewards: ``[T, N]``, as the environments gave them.
            ended: ``[T, N]`` bool, whether the step ended an episode.
            open_sums: ``[N]``, the discounted sums of the episodes that were open before.

        Returns:
            The rewards ``[T, N]`` in units of the standard deviation, clipped to 10 of them; and the sums ``[N]`` of
            the episodes that are open after the rollout.
        """
        sums, sums_after = discounted_sums(rewards.double(), ended, self.gamma, open_sums)
        if not sums.isfinite().all():
            return (rewards / self.scale).clamp(-CLIP, CLIP), open_sums
        # Moments about the mean of the new sums, against cancellation.
        point = sums.mean()
        before, deviations = self.mean - point, sums - point
        count = self.count + sums.shape[1] * torch.arange(1, len(sums) + 1)
        first = (self.count * before + deviations.sum(1).cumsum(0)) / count
        second = (self.count * (self.var + before.square()) + deviations.square().sum(1).cumsum(0)) / count
        var = (second - first.square()).clamp(min=0)
        scale = (var + EPSILON).sqrt().unsqueeze(1)
        self.mean.copy_(point + first[-1])
        self.var.copy_(var[-1])
        self.count.copy_(count[-1])
        return (rewards / scale).clamp(-CLIP, CLIP), sums_after


class ValueNormalizer(RunningStatistics):
    """Lets a value function predict returns in units of their standard deviation about their mean.

    The statistics are of all returns that were learnt from, as in rl_games' ``normalize_value``; the value function
    itself follows them by learning, unlike in PopArt, https://arxiv.org/abs/1602.07714, which rescales its last layer.
    """

    def __init__(self) -> None:
        super().__init__(())

    def forward(self, values: Tensor) -> Tensor:
        """Values or returns ``[...]`` as the value function predicts them."""
        return (values - self.mean) / self.scale

    def inverse(self, predictions: Tensor) -> Tensor:
        """Values ``[...]`` in units of the rewards."""
        return predictions * self.scale + self.mean

    @torch.no_grad()
    def update(self, returns: Tensor) -> None:
        """Update with the returns ``[...]`` of an iteration; if any is not finite, nothing changes."""
        returns = returns.detach().double().cpu()
        var, mean = torch.var_mean(returns, correction=0)
        if not (var + mean).isfinite():
            return
        share, delta = returns.numel() / (self.count + returns.numel()), mean - self.mean
        self.var += (var - self.var + delta.square() * (1 - share)) * share
        self.mean += delta * share
        self.count += returns.numel()


def merged_moments(before: Tensor, after: Tensor) -> Tensor:
    """Statistics that went on in several places, as if in one.

    Args:
        before: ``[K]``, see :meth:`RunningStatistics.moments`, of what they began with.
        after: ``[S, K]``, each with samples of its own besides.

    Source: the parallel formula, as in :meth:`ObservationNormalizer.update`.
    """
    sizes = [len(before) // 2, len(before) // 2, 1]
    first_mean, first_var, first_count = mean, var, count = before.split(sizes)
    for moments in after:
        its_mean, its_var, its_count = moments.split(sizes)
        new = its_count - first_count
        if new == 0:
            continue
        # Of its own samples alone, by the formula solved for one side.
        new_mean = first_mean + (its_mean - first_mean) * its_count / new
        of_means = (new_mean - first_mean).square() * first_count * new / its_count
        new_squares = its_var * its_count - first_var * first_count - of_means
        share, delta = new / (count + new), new_mean - mean
        var = var * (1 - share) + new_squares / (count + new) + delta.square() * share * (1 - share)
        mean, var, count = mean + delta * share, var.clamp(min=0), count + new
    return torch.cat([mean, var, count])


def discounted_sums(rewards: Tensor, ended: Tensor, gamma: float, open_sums: Tensor) -> tuple[Tensor, Tensor]:
    """Discounted sum of an episode's rewards up to each step: the reward of k steps before counts gamma^k.

    Args:
        rewards: ``[T, N]``.
        ended: ``[T, N]`` bool, whether the step ended an episode; the next one begins at zero.
        gamma: Discount factor.
        open_sums: ``[N]``, the sums of the episodes that were open before the first step.

    Returns:
        The sums ``[T, N]``, and those of the episodes ``[N]`` that are open after the last step.
    """
    decay = gamma * ~torch.cat([torch.zeros_like(ended[:1]), ended[:-1]])
    current, sums = open_sums, []
    for reward, factor in zip(rewards.unbind(), decay.unbind(), strict=True):
        current = torch.addcmul(reward, factor, current)
        sums.append(current)
    return torch.stack(sums), current * ~ended[-1]
