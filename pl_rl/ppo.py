"""Proximal policy optimization, https://arxiv.org/abs/1707.06347, as a LightningModule.

``training_step`` is one PPO iteration over one rollout, with manual optimization: Lightning's cost is paid once per
iteration, and at the end of an epoch nothing is half done.

Shapes: ``T`` steps of a rollout, ``N`` environments, ``B`` samples of a minibatch.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from inspect import currentframe, signature
from types import FrameType
from typing import Any, Self, cast

import lightning as L
import torch
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from pl_rl.agent import Agent, NetworkFactory, describe_network, network_from_description
from pl_rl.algorithm import functional as F
from pl_rl.algorithm.loss import Coefficients, Minibatch, PPOLoss
from pl_rl.algorithm.rollout import Rollout
from pl_rl.algorithm.schedule import is_due
from pl_rl.algorithm.settings import FIXED, FIXED_IN_FIT, change_setting, check_settings, plain_number
from pl_rl.algorithm.updates import lost_number
from pl_rl.callbacks.evaluation import PeriodicEvaluation
from pl_rl.callbacks.lookup import find_callback
from pl_rl.callbacks.resume_state import ResumeState
from pl_rl.callbacks.run_directory import RunDirectory
from pl_rl.checkpoints.format import STATE_KEY, changed_settings, plain_data
from pl_rl.compiled.learner import Learner
from pl_rl.envs import EnvConfig
from pl_rl.errors import CompilationError, CompilerFailure, RunFailure, UsageError
from pl_rl.networks.actor_critic import MLPActorCritic
from pl_rl.networks.modes import training_mode
from pl_rl.resume.loading import load_module
from pl_rl.runs.directory import display_path
from pl_rl.runs.trust import by_loading, checked

APPROX_KL = PPOLoss.METRICS.index("approx_kl")


class PPO(Agent):
    """Proximal policy optimization.

    Example::

        trainer = lightning.Trainer(max_epochs=-1)
        trainer.fit(PPO("CartPole-v1", total_env_steps=100_000))

    The settings are attributes. A callback may assign them while a run trains: each takes effect from the next
    iteration on, and in the run's resumes, or is refused.

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
        norm_adv: Normalize advantages in each minibatch.
        norm_obs: Normalize observations by the mean and variance of all so far, and clip to 10.
        norm_reward: Scale rewards in training by the deviation of their discounted sums so far, and clip to 10.
        ent_coef: Weight of the entropy bonus.
        vf_coef: Weight of the value loss, which is half a mean squared error.
        max_grad_norm: Largest norm of the gradient over all parameters; null does not clip.
        target_kl: End an iteration's updates when a minibatch's KL divergence exceeds 1.5 times this; null never does.
        compile_update: Make updates as one compiled function, which is faster and rounds differently. Where null, a run
            of 1,000 updates or more does, with a large network also a shorter one, if its network and optimizer and the
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
        for name, value in [*vars(self).items(), *self._parameters.items()]:
            if name in SETTINGS:
                setattr(self, name, plain_number(name, value))
        check_settings(self)
        self.save_hyperparameters(ignore=["env", "network"])
        given = {name: plain_number(name, value) for name, value in self.hparams.items()}
        described = {"env": dataclasses.asdict(env), "network": describe_network(network, self.network)}
        self.save_hyperparameters(plain_data({**given, **described}))
        self._learner: Learner | None = None
        self._compiled_before: bool | None = None
        self._became_eager = False
        self._resumed: dict[str, Any] | None = None
        self._evaluation = PeriodicEvaluation(self.eval_freq, self.stop_value)
        self._callbacks = [ResumeState(), RunDirectory(), self._evaluation]
        # What settings were before the run changed them.
        self._before_run: dict[str, Any] = {}
        self._is_made = True

    def __setattr__(self, name: str, value: Any) -> None:
        """Let a setting that is assigned take effect from the next iteration on, or refuse it.

        Before a run it becomes one of the model's hyperparameters; in a run it is the run's alone.

        Raises:
            UsageError: If it cannot change any more, or the value cannot work.
        """
        if name not in SETTINGS or "_is_made" not in vars(self):
            super().__setattr__(name, value)
            return
        change_setting(
            self, name, plain_number(name, value), partial(self._assign, name), self._before_run, self.has_environments
        )

    def _assign(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "gamma" and self.reward_scaler is not None:
            self.reward_scaler.gamma = self.gamma
        elif name in ("eval_freq", "stop_value"):
            self._evaluation.every, self._evaluation.stop_value = self.eval_freq, self.stop_value

    def save_hyperparameters(
        self,
        *args: Any,
        ignore: Sequence[str] | str | None = None,
        frame: FrameType | None = None,
        logger: bool = True,
    ) -> None:
        """As Lightning's; once the model is made, as plain data, in which it stays described by class and arguments.

        A subclass that saves its own arguments would put ``env`` and ``network`` there as they were given.
        """
        frame = frame or cast(FrameType, currentframe()).f_back
        if "_is_made" not in vars(self):
            super().save_hyperparameters(*args, ignore=ignore, frame=frame, logger=logger)
            return
        described = {name: self.hparams[name] for name in ("env", "network")}
        super().save_hyperparameters(*args, ignore=ignore, frame=frame, logger=logger)
        if args and isinstance(args[0], Mapping):  # as when they are assigned
            described |= {name: args[0][name] for name in described if isinstance(args[0].get(name), Mapping)}
        super().save_hyperparameters(plain_data({**self.hparams, **described}), frame=frame, logger=logger)

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
                :mod:`pl_rl.runs.trust` allows; that of a package allows all in it.
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
        self.structures = []
        self.note_structure()  # before anybody's setup
        return [callback for callback in self._callbacks if find_callback(self.trainer, type(callback)) is not callback]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam with the epsilon of the PPO reference implementation, in its fused form."""
        return torch.optim.Adam(self.network.parameters(), lr=self.learning_rate, eps=1e-5, fused=True)

    def setup(self, stage: str) -> None:
        """Begin a run.

        Raises:
            UsageError: If settings that were assigned since the model was made do not go together.
        """
        if stage == "fit":
            self._forget_run()
            check_settings(self)
        super().setup(stage)
        self._compiled_before, self._became_eager, self._resumed = None, False, None
        self._hparams_given = dict(self.hparams)

    def _forget_run(self) -> None:
        """Settings as they were before a run changed them."""
        for name, value in self._before_run.items():
            self._assign(name, value)
        self._before_run.clear()

    def adopt_settings(self, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
        """Take over settings that changed while a checkpoint's run trained, unless the user has changed them since.

        As in the run itself they are the run's alone.

        Args:
            checkpoint: Its content, of the present format.

        Returns:
            Those that were taken over.

        Raises:
            UsageError: If they cannot work.
        """
        self._forget_run()
        given, changed = checkpoint["hyper_parameters"], checkpoint[STATE_KEY]["counters"].get("settings", {})
        adopted = {
            name: value
            for name, value in changed.items()
            if name in LIVE_SETTINGS and self.hparams.get(name) == given.get(name)
        }
        for name, value in adopted.items():
            self._before_run[name] = getattr(self, name)
            self._assign(name, value)
        try:
            check_settings(self, fitting=True)
        except UsageError:
            self._forget_run()
            raise
        return adopted

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over what was in force: how updates were made, and settings that changed while the run trained."""
        super().on_load_checkpoint(checkpoint)
        if STATE_KEY not in checkpoint:  # a file of weights alone tells nothing of a run
            return
        self._resumed = checkpoint
        updates = checkpoint[STATE_KEY]["platform"].get("updates")
        self._compiled_before = updates not in (None, "eager")
        self._became_eager = updates == "eager" and checkpoint["hyper_parameters"].get("compile_update") is True
        for name, value in self.adopt_settings(checkpoint).items():
            rank_zero_info(f"{name} is {value}, as it was changed while the run trained.")

    def counters(self) -> dict[str, Any]:
        """What counts the run, and what callbacks have made of its settings and learning rates."""
        changed = {name: getattr(self, name) for name in LIVE_SETTINGS if getattr(self, name) != self.hparams.get(name)}
        rates = {"learning_rate": self.learning_rate, "rates": self.learner.rates.state_dict()}
        return {**super().counters(), "settings": changed, **rates}

    def on_fit_start(self) -> None:
        """Note the rates that the optimizer was made with, before those of a checkpoint take their place.

        Raises:
            UsageError: For a learning-rate scheduler, which nobody would step.
        """
        super().on_fit_start()
        if self.trainer.lr_scheduler_configs:
            raise UsageError(
                "configure_optimizers returns a learning-rate scheduler; return the optimizer, use anneal_lr"
            )
        # A change that the run had not followed yet makes its resume eager too.
        clip_vloss = self._before_run.get("clip_vloss", self.clip_vloss)
        self._learner = Learner(self.collector, self._optimizer(), clip_vloss, self.learning_rate)
        if self._resumed is not None:
            in_groups = [float(group["lr"]) for group in self._resumed["optimizer_states"][0]["param_groups"]]
            given, counters = self._resumed["hyper_parameters"], self._resumed[STATE_KEY]["counters"]
            self._resumed = None
            goes_on = self._learner.rates.load_state_dict(counters.get("rates"), in_groups)
            if goes_on and self.hparams.get("learning_rate") == given.get("learning_rate"):
                self.learning_rate = counters["learning_rate"]
        self._compile(self._learner)
        self.start_clock()  # once more, as compiling is no training

    def teardown(self, stage: str) -> None:
        """Leave nothing open."""
        super().teardown(stage)
        if self._learner is not None:
            self._learner.close()

    @property
    def learner(self) -> Learner:
        """What makes the updates of the latest fit.

        Raises:
            RuntimeError: Before one.
        """
        if self._learner is None:
            raise RuntimeError("nothing is learnt before Trainer.fit")
        return self._learner

    def numerics(self) -> dict[str, str]:
        """What decides how numbers are rounded, beyond libraries and machine."""
        return {"updates": self.learner.description}

    def _compile(self, learner: Learner) -> None:
        """By a rule of a run's length and its network, or as a resumed run did before."""
        wanted = self._compiled_before if self.compile_update is None else self.compile_update
        if wanted is None:
            num_updates = self.total_env_steps * self.update_epochs // self.minibatch_size
            wanted = learner.is_worth_compiling(num_updates, self.minibatch_size)
        if not wanted:
            return
        if self._became_eager:
            rank_zero_info("Updates stay eager, as they became while the run trained.")
            return
        try:
            if type(self.trainer.precision_plugin) is not Precision:
                raise CompilationError(f"it is made for precision=32-true, not {self.trainer.precision}")
            if self.trainer._detect_anomaly:
                raise CompilationError("detect_anomaly=true watches single operations")
            learner.compile(self.minibatch_size)
        except CompilationError as error:
            if self.compile_update and isinstance(error, CompilerFailure):
                raise RunFailure(
                    f"compile_update=true: {error}; give the command again with memory and disk to spare, or use false"
                ) from error
            if self.compile_update:
                raise UsageError(f"compile_update=true cannot be had: {error}; use null or false") from error
            rank_zero_info(f"Updates are not compiled: {error}.")

    def _collect(self) -> Rollout:
        self._follow_changes()
        return super()._collect()

    def _follow_changes(self) -> None:
        """Let what callbacks have changed take effect, before it is acted or learnt with.

        Raises:
            UsageError: For a change that has no effect.
        """
        if self.hparams != self._hparams_given:
            changed = changed_settings(self._hparams_given, dict(self.hparams))[0]
            raise UsageError(
                f"hparams were changed during fit ({changed}), which has no effect; set the attribute of the model"
            )
        change = self.learner.follow(self._optimizer(), self.clip_vloss)
        if change is not None:
            rank_zero_info(f"Updates are eager from iteration {self.iteration + 1:,} on: {change}.")

    def training_step(self, rollout: Rollout, batch_idx: int) -> None:
        """One PPO iteration: learn from a rollout in several passes, then say how it went."""
        self._follow_changes()
        progress = min(1.0, (self.env_steps - rollout.rewards.numel()) / self.total_env_steps)
        clip_coef = self.clip_coef * (1 - progress if self.anneal_clip else 1)
        coefficients = Coefficients(torch.tensor(clip_coef, device=self.device), self.vf_coef, self.ent_coef)
        self.learner.rates.apply(self._optimizer(), self.learning_rate, 1 - progress if self.anneal_lr else 1.0)

        samples = self._samples(rollout)
        metrics, grad_norms = self._learn(samples, coefficients)
        self._check_finite(metrics, grad_norms)

        self.iteration += 1
        self.between_iterations = True
        before, self.train_iter = self.train_iter, self.train_iter + len(grad_norms)
        # The optimizer is stepped without Lightning's wrapper, which would count but costs 60 us an update.
        self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.increment_by(len(grad_norms))
        self._audit(samples, rollout.obs[-1], coefficients, is_due(before, self.train_iter, self.eval_freq))
        log_every_n_steps: int = cast(Any, self.trainer).log_every_n_steps  # set by Lightning without declaring it
        if is_due(before, self.train_iter, log_every_n_steps):
            self._log_iteration(samples, metrics, grad_norms, clip_coef)

    def _check_finite(self, metrics: Tensor, grad_norms: Tensor) -> None:
        """End a run whose numbers are lost, before anything of this iteration is logged or saved.

        Raises:
            RunFailure: If the loss, the gradient or a parameter is infinite or not a number.
        """
        lost = lost_number(self.network, metrics, grad_norms)
        if lost is not None:
            raise RunFailure(
                f"{lost} in iteration {self.iteration + 1} (train_iter {self.train_iter:,}, env_steps "
                f"{self.env_steps:,}); {self._last_good_checkpoint()}; lower learning_rate or max_grad_norm, or find "
                "the operation with --trainer.detect_anomaly true"
            )

    def _audit(self, samples: Minibatch, obs: Tensor, coefficients: Coefficients, evaluates: bool) -> None:
        """Look at each evaluation, and now and then, whether compiled functions compute what PyTorch does.

        Args:
            samples: Of the iteration.
            obs: ``[N, ...]``, of a step of it.
            coefficients: Of the loss.
            evaluates: Whether an evaluation follows.

        Raises:
            RunFailure: If they do not.
        """
        if not self.learner.audit_is_due(self.iteration, evaluates):
            return
        minibatch = Minibatch(*(field[: self.minibatch_size] for field in samples))
        if self.norm_adv:
            minibatch = minibatch._replace(advantages=F.normalize(minibatch.advantages))
        fault = self.learner.audit(minibatch, obs, coefficients, self.iteration)
        if fault is not None:
            raise RunFailure(
                f"compiled updates are wrong in iteration {self.iteration:,}: {fault}; {self._last_good_checkpoint()}; "
                "continue it with --model.compile_update false"
            )

    def _last_good_checkpoint(self) -> str:
        kept = getattr(self.trainer.checkpoint_callback, "last_model_path", "")
        return f"the last good checkpoint is {display_path(kept)}" if kept else "no checkpoint was saved"

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

    def _learn(self, samples: Minibatch, coefficients: Coefficients) -> tuple[Tensor, Tensor]:
        """Passes over the samples, each in an order of its own.

        Returns:
            ``PPOLoss.METRICS`` and the gradient's norm, of each of ``U`` updates: ``[U, 5]`` and ``[U]``.
        """
        metrics: list[Tensor] = []
        norms: list[Tensor] = []
        updates = self.learner.updates
        with training_mode(self.network), updates.iteration(coefficients, self.max_grad_norm):
            for minibatch in self._minibatches(samples):
                measured = updates.gradient(minibatch)
                if norms and self.target_kl is not None and measured[APPROX_KL] > 1.5 * self.target_kl:
                    break
                metrics.append(measured)
                norms.append(updates.step())
        return torch.stack(metrics), torch.stack(norms)

    def _minibatches(self, samples: Minibatch) -> Iterator[Minibatch]:
        for _ in range(self.update_epochs):
            order = torch.randperm(len(samples.obs), generator=self.collector.generator).to(self.device)
            shuffled = Minibatch(*(field.index_select(0, order) for field in samples))
            if self.norm_adv:
                advantages = F.normalize(shuffled.advantages.view(-1, self.minibatch_size))
                shuffled = shuffled._replace(advantages=advantages.flatten())
            yield from map(Minibatch, *(field.split(self.minibatch_size) for field in shuffled))

    def _optimizer(self) -> torch.optim.Optimizer:
        optimizer = self.optimizers(use_pl_optimizer=False)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise UsageError("configure_optimizers returns several optimizers; return one")
        return optimizer

    def _log_iteration(self, samples: Minibatch, metrics: Tensor, grad_norms: Tensor, clip_coef: float) -> None:
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
        scalars["schedule/learning_rate"] = float(self._optimizer().param_groups[0]["lr"])
        scalars["schedule/clip_coef"] = clip_coef
        scalars["time/env_steps_per_second"] = self.env_steps_per_second
        self.log_scalars(scalars, step=self.env_steps)


SETTINGS = frozenset(signature(PPO.__init__).parameters) - {"self"} | {"env_config"}
LIVE_SETTINGS = sorted(SETTINGS - FIXED.keys() - FIXED_IN_FIT.keys() - {"learning_rate"})
"""Those that may change while a run trains; the learning rate has a state of its own."""
