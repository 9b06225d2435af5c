"""Proximal policy optimisation, https://arxiv.org/abs/1707.06347, as a LightningModule.

``training_step`` is one PPO iteration over one rollout, with manual optimisation: Lightning's cost is paid once per
iteration, and at the end of an epoch nothing is half done.

Shapes: ``T`` steps of a rollout, ``N`` environments, ``B`` samples of a minibatch.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, Self, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from pl_rl import functional as F
from pl_rl.acting import CompiledActing
from pl_rl.agent import Agent, NetworkFactory, describe_network, network_from_description
from pl_rl.callbacks.evaluation import PeriodicEvaluation
from pl_rl.callbacks.lookup import attached
from pl_rl.callbacks.resume_state import ResumeState
from pl_rl.callbacks.run_directory import RunDirectory
from pl_rl.checkpoints import STATE_KEY, plain_data
from pl_rl.envs import EnvConfig
from pl_rl.errors import CompilationError, RunFailure, UsageError
from pl_rl.loading import load_module
from pl_rl.loss import Minibatch, PPOLoss
from pl_rl.networks import MLPActorCritic
from pl_rl.rollout import Rollout
from pl_rl.runs import shown
from pl_rl.schedule import is_due
from pl_rl.trust import by_loading, checked
from pl_rl.updates import CompiledUpdates, EagerUpdates, Updates, count_flops

# Compiling takes a few seconds, once for a network and a machine. It saves about a millisecond of an update, and of a
# large one a millisecond for each so many floating-point operations.
COMPILE_FROM = 1000
FLOPS_OF_A_MILLISECOND = 2**27

APPROX_KL = PPOLoss.METRICS.index("approx_kl")


class PPO(Agent):
    """Proximal policy optimisation.

    Example::

        trainer = lightning.Trainer(max_epochs=-1)
        trainer.fit(PPO("CartPole-v1", total_env_steps=100_000))

    Args:
        env: Name of the environment, or more about it.
        network: Class of the policy and value network; its arguments beyond the two spaces are settings.
        total_env_steps: Length of a run in transitions, over all environments and all resumes; also the horizon
            of annealing and of the progress bar.
        num_envs: Environments that are stepped together.
        num_steps: Steps of each environment in one rollout.
        update_epochs: Passes over a rollout.
        minibatch_size: Samples of one gradient update; divides num_envs * num_steps.
        learning_rate: Of Adam, at the start.
        anneal_lr: Lower the learning rate linearly to zero over total_env_steps.
        gamma: Discount factor.
        gae_lambda: Weight of longer returns in the advantages.
        clip_coef: Half-width of the clipping interval of the probability ratio, at the start.
        anneal_clip: Lower clip_coef linearly to zero over total_env_steps.
        clip_vloss: Clip the value loss too, by the same coefficient.
        norm_adv: Normalise advantages in each minibatch.
        norm_obs: Normalise observations by the mean and variance of all so far, and clip to 10.
        norm_reward: Scale rewards in training by the deviation of their discounted sums so far, and clip to 10.
        ent_coef: Weight of the entropy bonus.
        vf_coef: Weight of the value loss, which is half a mean squared error.
        max_grad_norm: Largest norm of the gradient over all parameters; null does not clip.
        target_kl: End an iteration's updates when a minibatch's KL divergence exceeds 1.5 times this; null never does.
        compile_update: Make updates as one compiled function, which is faster and rounds differently. Where null, a run
            of 1,000 updates or more does, with a large network also a shorter one, if its network and optimiser and the
            machine allow it, and a resumed run does as before.
        eval_freq: Train iterations (gradient updates) between evaluations; 0 never evaluates.
        eval_episodes: Episodes of an evaluation.
        eval_num_envs: Environments of an evaluation.
        eval_deterministic: Whether evaluations take the most probable action.
        stop_value: Mean return of an evaluation that ends the run; null never does.

    Raises:
        UsageError: If a value cannot work.
    """

    def __init__(
        self,
        env: EnvConfig | str,
        network: NetworkFactory = MLPActorCritic,
        total_env_steps: int = 500_000,
        num_envs: int = 8,
        num_steps: int = 128,
        update_epochs: int = 4,
        minibatch_size: int = 256,
        learning_rate: float = 2.5e-4,
        anneal_lr: bool = False,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_coef: float = 0.2,
        anneal_clip: bool = False,
        clip_vloss: bool = False,
        norm_adv: bool = True,
        norm_obs: bool = False,
        norm_reward: bool = False,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float | None = 0.5,
        target_kl: float | None = None,
        compile_update: bool | None = None,
        eval_freq: int = 1000,
        eval_episodes: int = 10,
        eval_num_envs: int = 5,
        eval_deterministic: bool = True,
        stop_value: float | None = None,
    ) -> None:
        # A checkpoint's hyperparameters are plain data, and load_from_checkpoint passes them back as such.
        if isinstance(env, dict):
            env = EnvConfig(**checked({"env": env}, way_out=by_loading)["env"])
        elif isinstance(env, str):
            env = EnvConfig(env)
        if isinstance(network, dict):
            network = network_from_description(checked({"network": network}, way_out=by_loading)["network"])
        super().__init__(
            env=env,
            network=network,
            num_envs=num_envs,
            num_steps=num_steps,
            total_env_steps=total_env_steps,
            eval_num_envs=eval_num_envs,
            eval_episodes=eval_episodes,
            eval_deterministic=eval_deterministic,
            norm_obs=norm_obs,
            norm_reward=norm_reward,
            gamma=gamma,
        )
        self.automatic_optimization = False
        self.update_epochs = update_epochs
        self.minibatch_size = minibatch_size
        self.learning_rate = learning_rate
        self.anneal_lr = anneal_lr
        self.gamma = gamma
        self.gae_lambda = gae_lambda
        self.clip_coef = clip_coef
        self.anneal_clip = anneal_clip
        self.clip_vloss = clip_vloss
        self.norm_adv = norm_adv
        self.norm_obs = norm_obs
        self.norm_reward = norm_reward
        self.ent_coef = ent_coef
        self.vf_coef = vf_coef
        self.max_grad_norm = max_grad_norm
        self.target_kl = target_kl
        self.compile_update = compile_update
        self.eval_freq = eval_freq
        self.stop_value = stop_value
        for name, value in vars(self).items():
            # NumPy's numbers, of a sweep say, would end up in checkpoints, which hold plain data only.
            if isinstance(value, np.generic):
                setattr(self, name, value.item())
        _check_settings(self)
        self.save_hyperparameters(ignore=["env", "network"])
        described = {"env": dataclasses.asdict(env), "network": describe_network(network, self.network)}
        self.save_hyperparameters(plain_data({**self.hparams, **described}))
        self._updates: Updates | None = None
        self._compiled_before: bool | None = None
        self._callbacks = [ResumeState(), RunDirectory(), PeriodicEvaluation(self.eval_freq, self.stop_value)]

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        trust: Iterable[str] = (),
        **kwargs: Any,
    ) -> Self:
        """The model of a checkpoint, with its weights.

        Args:
            checkpoint_path: Path, URL or open file; one below ``lightning_logs`` is the user's own.
            map_location: Device of the weights; the CPU by default.
            hparams_file: Not supported; give settings as keyword arguments.
            strict: Whether names of weights must agree, as Lightning's.
            weights_only: As Lightning's; nothing but plain data is ever read.
            trust: Names in a checkpoint from elsewhere that may be imported and called, beyond those that
                :mod:`pl_rl.trust` allows; that of a package allows all in it.
            kwargs: Settings in the place of the checkpoint's.

        Raises:
            UsageError: If the checkpoint cannot be read, or names what is not trusted.
        """
        if hparams_file is not None or weights_only is False:
            raise UsageError(
                "hparams_file and weights_only=False are not supported; pass settings as keyword arguments"
            )
        return load_module(cls, checkpoint_path, map_location, strict, trust, kwargs)

    @property
    def anneals(self) -> bool:
        """Whether a schedule runs towards ``total_env_steps``."""
        return self.anneal_lr or self.anneal_clip

    def configure_callbacks(self) -> list[L.Callback]:
        """What a script cannot forget: the state that a resume needs, and evaluation."""
        return [callback for callback in self._callbacks if attached(self.trainer, type(callback)) is not callback]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam with the epsilon of the PPO reference implementation, in its fused form."""
        return torch.optim.Adam(self.network.parameters(), lr=self.learning_rate, eps=1e-5, fused=True)

    def on_fit_start(self) -> None:
        """Note the rates that the optimiser was made with, before those of a checkpoint take their place.

        Raises:
            UsageError: For a learning-rate scheduler, which nobody would step.
        """
        super().on_fit_start()
        if self.trainer.lr_scheduler_configs:
            raise UsageError(
                "configure_optimizers returns a learning-rate scheduler; return the optimiser, use anneal_lr"
            )
        self._rates = [group["lr"] for group in self._optimizer().param_groups]
        self._eager = EagerUpdates(self._loss(), self._optimizer(), self.max_grad_norm)
        self._updates = self._make_updates()
        self.start_clock()  # once more, as compiling is no training

    def setup(self, stage: str) -> None:
        """Begin a run."""
        super().setup(stage)
        self._compiled_before = None

    def teardown(self, stage: str) -> None:
        """Leave nothing open."""
        super().teardown(stage)
        if self._updates is not None:
            self._updates.close()
            self._updates = None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note how the run made its updates so far."""
        super().on_load_checkpoint(checkpoint)
        if STATE_KEY in checkpoint:  # a file of weights alone tells nothing of a run
            self._compiled_before = checkpoint[STATE_KEY]["platform"].get("updates", "eager") != "eager"

    def rounding(self) -> dict[str, str]:
        """What decides how numbers are rounded, beyond libraries and machine."""
        assert self._updates is not None
        return {"updates": self._updates.description}

    def _make_updates(self) -> Updates:
        """Compiled or eager, by a rule of a run's length and its network, or as a resumed run did before."""
        compiled = self.compile_update
        if compiled is None:
            compiled = self._compiled_before
        if compiled is None:
            compiled = self._is_worth_compiling()
        if not compiled:
            return self._eager
        try:
            if type(self.trainer.precision_plugin) is not Precision:
                raise CompilationError(f"it is made for precision=32-true, not {self.trainer.precision}")
            if self.trainer._detect_anomaly:
                raise CompilationError("detect_anomaly=true watches single operations")
            example = self._example()
            # Both are compiled side by side.
            acting = CompiledActing(self.network, example.obs[:1].expand(self.num_envs, *example.obs.shape[1:]))
            updates = CompiledUpdates(self._loss(), self._optimizer(), self.max_grad_norm, example)
            acting.load()
        except CompilationError as error:
            if self.compile_update:
                raise UsageError(f"compile_update=true cannot be had: {error}; use null or false") from error
            rank_zero_info(f"Updates are not compiled: {error}.")
            return self._eager
        self.collector.acting = acting
        return updates

    def _is_worth_compiling(self) -> bool:
        """By the run's length and the work of an update, neither of which changes when the run is repeated."""
        updates = self.total_env_steps * self.update_epochs // self.minibatch_size
        if updates >= COMPILE_FROM or self.device.type != "cpu":
            return updates >= COMPILE_FROM
        return updates * count_flops(self._loss(), self._example()) >= COMPILE_FROM * FLOPS_OF_A_MILLISECOND

    def _loss(self) -> PPOLoss:
        return PPOLoss(self.network, self.vf_coef, self.ent_coef, self.clip_vloss)

    def _example(self) -> Minibatch:
        """A minibatch of the right shapes and types, with a gradient."""
        space, distribution, size = self.network.observation_space, self.network.distribution, self.minibatch_size
        assert space.shape is not None
        generator = torch.Generator().manual_seed(0)
        largest = 256 if self.collector.obs_dtype == torch.uint8 else 1  # black images would have no gradient
        obs = (largest * torch.rand((size, *space.shape), generator=generator)).to(self.collector.obs_dtype)
        with torch.no_grad():
            outputs = torch.zeros(size, distribution.num_outputs)
            actions = distribution.sample(outputs, distribution.noise((size,), generator))
            log_probs = distribution.log_prob(outputs, actions)
        return Minibatch(obs, actions, log_probs, *torch.randn(3, size, generator=generator).unbind())

    def training_step(self, rollout: Rollout, batch_idx: int) -> None:
        """One PPO iteration: learn from a rollout in several passes, then say how it went."""
        progress = min(1.0, (self.env_steps - rollout.rewards.numel()) / self.total_env_steps)
        rate_factor = 1 - progress if self.anneal_lr else 1.0
        clip_coef = self.clip_coef * (1 - progress if self.anneal_clip else 1)
        for group, rate in zip(self._optimizer().param_groups, self._rates, strict=True):
            group["lr"] = rate * rate_factor

        samples = self._samples(rollout)
        metrics, grad_norms = self._learn(samples, clip_coef)
        self._check_finite(metrics, grad_norms)

        self.iteration += 1
        self.between_iterations = True
        before, self.train_iter = self.train_iter, self.train_iter + len(grad_norms)
        # The optimiser is stepped without Lightning's wrapper, which would count but costs 60 us an update.
        self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.increment_by(len(grad_norms))
        log_every_n_steps: int = cast(Any, self.trainer).log_every_n_steps  # set by Lightning without declaring it
        if is_due(before, self.train_iter, log_every_n_steps):
            self._log_iteration(samples, metrics, grad_norms, self._rates[0] * rate_factor, clip_coef)

    def _check_finite(self, metrics: Tensor, grad_norms: Tensor) -> None:
        """End a run whose numbers are lost, before anything of this iteration is logged or saved.

        Args:
            metrics: ``[U, 5]`` of the iteration's updates.
            grad_norms: ``[U]``

        Raises:
            RunFailure: If the loss, the gradient or a parameter is infinite or not a number.
        """
        parameters = torch.cat([param.detach().flatten() for param in self.network.parameters()])
        # In one question: it costs some 25 us, and a sum is finite only if all terms are.
        if (parameters.sum() + metrics.sum() + grad_norms.sum()).isfinite():
            return
        for name, values in {"the loss": metrics, "the gradient": grad_norms, "a parameter": parameters}.items():
            lost = values[~values.isfinite()]
            if len(lost):
                kept = getattr(self.trainer.checkpoint_callback, "last_model_path", "")
                last = f"the last good checkpoint is {shown(kept)}" if kept else "no checkpoint was saved"
                raise RunFailure(
                    f"{name} became {lost[0]} in iteration {self.iteration + 1} (train_iter {self.train_iter:,}, "
                    f"env_steps {self.env_steps:,}); {last}; lower learning_rate or max_grad_norm, or find the "
                    "operation with --trainer.detect_anomaly true"
                )

    def _samples(self, rollout: Rollout) -> Minibatch:
        """All ``T * N`` samples of a rollout with their advantages and returns."""
        advantages = F.gae(
            rollout.rewards,
            rollout.values,
            rollout.next_values,
            rollout.terminated,
            rollout.truncated,
            self.gamma,
            self.gae_lambda,
        )
        per_step = Minibatch(
            rollout.obs,
            rollout.actions,
            rollout.log_probs,
            rollout.values,
            advantages,
            advantages + rollout.values,
        )
        return Minibatch(*(field.flatten(0, 1) for field in per_step))

    def _learn(self, samples: Minibatch, clip_coef: float) -> tuple[Tensor, Tensor]:
        """Passes over the samples, each in an order of its own.

        Returns:
            ``PPOLoss.METRICS`` and the gradient's norm, of each of ``U`` updates: ``[U, 5]`` and ``[U]``.
        """
        metrics: list[Tensor] = []
        norms: list[Tensor] = []
        clip = torch.tensor(clip_coef, device=self.device)
        with self.updates.iteration():
            for minibatch in self._minibatches(samples):
                measured = self.updates.gradient(minibatch, clip)
                if norms and self.target_kl is not None and measured[APPROX_KL] > 1.5 * self.target_kl:
                    break
                metrics.append(measured)
                norms.append(self.updates.step())
        return torch.stack(metrics), torch.stack(norms)

    def _minibatches(self, samples: Minibatch) -> Iterator[Minibatch]:
        for _ in range(self.update_epochs):
            order = torch.randperm(len(samples.obs), generator=self.collector.generator).to(self.device)
            shuffled = Minibatch(*(field.index_select(0, order) for field in samples))
            if self.norm_adv:
                advantages = F.normalize(shuffled.advantages.view(-1, self.minibatch_size))
                shuffled = shuffled._replace(advantages=advantages.flatten())
            yield from map(Minibatch, *(field.split(self.minibatch_size) for field in shuffled))

    @property
    def updates(self) -> Updates:
        """What makes the gradient updates of this iteration."""
        assert self._updates is not None
        # A compiled function would move parameters that are held, too.
        held = any(not parameter.requires_grad for parameter in self.network.parameters())
        return self._eager if held else self._updates

    def _optimizer(self) -> torch.optim.Optimizer:
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        return optimizer

    def _log_iteration(
        self, samples: Minibatch, metrics: Tensor, grad_norms: Tensor, learning_rate: float, clip_coef: float
    ) -> None:
        """Write the iteration's metrics against env steps."""
        losses = dict(zip(PPOLoss.METRICS, metrics.mean(0), strict=True))
        losses["grad_norm"] = grad_norms.mean()
        losses["explained_variance"] = F.explained_variance(samples.values, samples.returns)
        episodes = self.collector.episodes
        scalars = {f"losses/{name}": value.item() for name, value in losses.items()}
        if episodes.recent:
            scalars["rollout/return_mean"] = episodes.mean_return()
            scalars["rollout/length_mean"] = episodes.mean_length()
        scalars["rollout/episodes"] = float(episodes.total)
        scalars["schedule/learning_rate"] = learning_rate
        scalars["schedule/clip_coef"] = clip_coef
        scalars["time/env_steps_per_second"] = self.env_steps_per_second
        self.log_scalars(scalars, step=self.env_steps)


def _check_settings(ppo: PPO) -> None:
    """Refuse values that cannot work, each in a sentence.

    Raises:
        UsageError: For the first of them.
    """
    for name in (
        "total_env_steps",
        "num_envs",
        "num_steps",
        "update_epochs",
        "minibatch_size",
        "eval_episodes",
        "eval_num_envs",
    ):
        if getattr(ppo, name) < 1:
            raise UsageError(f"{name}={getattr(ppo, name)} must be at least 1")
    for name in ("learning_rate", "clip_coef", "max_grad_norm", "target_kl"):
        if getattr(ppo, name) is not None and not getattr(ppo, name) > 0:
            raise UsageError(f"{name}={getattr(ppo, name)} must be positive")
    if not ppo.env_config.timeout > 0:
        raise UsageError(f"env.timeout={ppo.env_config.timeout} must be positive, in seconds")
    for name in ("gamma", "gae_lambda"):
        if not 0 <= getattr(ppo, name) <= 1:
            raise UsageError(f"{name}={getattr(ppo, name)} must lie between 0 and 1")
    if ppo.eval_freq < 0:
        raise UsageError(f"eval_freq={ppo.eval_freq} must not be negative; 0 turns evaluation off")
    if ppo.norm_adv and ppo.minibatch_size == 1:
        raise UsageError("minibatch_size=1 leaves nothing to normalise advantages over; use norm_adv=false")
    samples = ppo.num_envs * ppo.num_steps
    if samples % ppo.minibatch_size:
        divisors = [size for size in range(2, samples + 1) if samples % size == 0]
        below = max((size for size in divisors if size < ppo.minibatch_size), default=None)
        above = min((size for size in divisors if size > ppo.minibatch_size), default=None)
        choices = " or ".join(str(size) for size in (below, above) if size is not None)
        raise UsageError(
            f"num_envs*num_steps={samples} is not divisible by minibatch_size={ppo.minibatch_size}; use {choices}"
        )
