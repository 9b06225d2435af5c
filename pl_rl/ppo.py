"""Proximal policy optimization, https://arxiv.org/abs/1707.06347, as a LightningModule.

``training_step`` is one PPO iteration over one rollout, with manual optimization: Lightning's cost is paid once per
iteration, and at the end of an epoch nothing is half done.

Shapes: ``T`` steps of a rollout, ``N`` environments, ``B`` samples of a minibatch.
"""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from pl_rl.algorithm import functional as F
from pl_rl.algorithm.loss import Coefficients, Minibatch, PPOLoss, mean_losses
from pl_rl.algorithm.rollout import Rollout
from pl_rl.algorithm.samples import samples_of
from pl_rl.algorithm.schedule import Schedule, annealed, in_all_units, is_constant, is_due
from pl_rl.algorithm.updates import lost_number
from pl_rl.callbacks.evaluation import PeriodicEvaluation
from pl_rl.callbacks.lookup import find_callback
from pl_rl.callbacks.resume_state import ResumeState
from pl_rl.callbacks.run_directory import RunDirectory
from pl_rl.checkpoints.format import STATE_KEY
from pl_rl.compiled.choice import UpdatesBefore, choose_compilation
from pl_rl.compiled.learner import Learner
from pl_rl.distributed.experience import Experience, share
from pl_rl.envs import EnvConfig
from pl_rl.errors import RunFailure, UsageError
from pl_rl.networks.actor_critic import MLPActorCritic
from pl_rl.networks.description import NetworkFactory
from pl_rl.networks.modes import training_mode
from pl_rl.networks.normalization import ValueNormalizer
from pl_rl.networks.records import Observations, rows
from pl_rl.resume.resumable import ResumableAgent
from pl_rl.runs.dashboard import lay_out
from pl_rl.runs.directory import last_good_checkpoint

APPROX_KL = PPOLoss.METRICS.index("approx_kl")


class PPO(ResumableAgent):
    """Proximal policy optimization.

    Example::

        trainer = lightning.Trainer(max_epochs=-1)
        trainer.fit(PPO("CartPole-v1", total_env_steps=100_000))

    The settings are attributes. A callback may assign them while a run trains: each takes effect from the next
    iteration on, and in the run's resumes, or is refused.
    """

    def training_step(self, rollout: Rollout, batch_idx: int) -> dict[str, Tensor]:
        """One PPO iteration: learn from a rollout in several passes; callbacks are given the last one's KL."""
        self._follow_changes()
        annealed_to, rate_factor = annealed(self, self.env_steps - self.num_steps * self.num_envs)
        coefficients = annealed_to.on(self.device)
        self.learner.rates.apply(self._optimizer(), self.learning_rate, rate_factor)
        experience = self._experience(rollout)
        metrics, grad_norms = self._learn(rollout, experience, coefficients)
        self._check_finite(metrics, grad_norms)

        self.iteration += 1
        self.between_iterations = True
        before, self.train_iter = self.train_iter, self.train_iter + len(grad_norms)
        # The optimizer is stepped without Lightning's wrapper, which would count but costs 60 us an update.
        self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.increment_by(len(grad_norms))
        self._audit(experience.samples, rollout.obs, coefficients, is_due(before, self.train_iter, self.eval_freq))
        log_every_n_steps: int = cast(Any, self.trainer).log_every_n_steps  # set by Lightning without declaring it
        if is_due(before, self.train_iter, log_every_n_steps):
            self._log_iteration(experience, mean_losses(metrics, coefficients), grad_norms, annealed_to)
        in_a_pass = self.num_steps * self.num_envs // self.minibatch_size
        return {"approx_kl": metrics[-in_a_pass:, APPROX_KL].mean()}

    def _learn(self, rollout: Rollout, experience: Experience, coefficients: Coefficients) -> tuple[Tensor, Tensor]:
        """Passes over the samples of a rollout, each in an order of its own.

        Returns:
            ``PPOLoss.METRICS`` and the gradient's norm, of each of ``U`` updates: ``[U, 5]`` and ``[U]``.
        """
        metrics: list[Tensor] = []
        norms: list[Tensor] = []
        updates = self.learner.updates(self.minibatch_size)
        with training_mode(self.network), updates.iteration(coefficients, self.max_grad_norm):
            for minibatch in self._minibatches(rollout, experience):
                measured = updates.gradient(minibatch)
                if norms and self.target_kl is not None and measured[APPROX_KL] > 1.5 * self.target_kl:
                    break
                metrics.append(measured)
                norms.append(updates.step())
        return torch.stack(metrics), torch.stack(norms)

    def _minibatches(self, rollout: Rollout, experience: Experience) -> Iterator[Minibatch]:
        for number in range(self.update_epochs):
            if number and self.recompute_adv:
                experience = self._experience(self.collector.revalue(rollout), experience)
            yield from experience.minibatches(self.minibatch_size, self.norm_adv)

    def _experience(self, rollout: Rollout, before: Experience | None = None) -> Experience:
        """What is learnt from a rollout, and in a later pass from the same one with other values than before."""
        estimates = self.gamma, self.gae_lambda, self.network.sequence_length, self.value_normalizer
        samples = samples_of(rollout, len(self.shards_here.local), *estimates)
        if before is not None:
            experience = before.with_values_of(samples, self.shards_here)
        else:
            experience = share(samples, self.collector, self.shards_here, self.learner.pools_rollouts)
        if self.value_normalizer is None:
            return experience
        if before is None:
            self.value_normalizer.update(experience.advantages + experience.values)
        return experience._replace(samples=experience.samples.as_predicted_by(self.value_normalizer))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam in its fused form; its epsilon is by default that of the PPO reference implementation."""
        return torch.optim.Adam(self.network.parameters(), lr=self.learning_rate, eps=self.adam_eps, fused=True)

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
        anneal_lr: Schedule = False,
        final_learning_rate: float = 0.0,
        anneal_env_steps: float | None = None,
        adam_eps: float = 1e-5,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_coef: float = 0.2,
        anneal_clip: Schedule = False,
        clip_vloss: bool = False,
        vf_clip_coef: float | None = None,
        norm_adv: bool = True,
        recompute_adv: bool = False,
        norm_obs: bool | list[str] = False,
        norm_reward: bool = False,
        norm_value: bool = False,
        ent_coef: float = 0.0,
        anneal_ent: Schedule = False,
        vf_coef: float = 0.5,
        max_grad_norm: float | None = 0.5,
        target_kl: float | None = None,
        compile_update: bool | None = None,
        eval_freq: int = 1000,
        eval_episodes: int = 10,
        eval_num_envs: int = 5,
        eval_deterministic: bool = True,
        stop_value: float | None = None,
        shards: int = 1,
    ) -> None:
        """Settings, each of which a checkpoint has.

        Args:
            env: Name of the environment, or more about it.
            network: Class of the policy and value network; its arguments beyond the two spaces are settings.
            total_env_steps: Length of a run in transitions, with its resumes.
            num_envs: Environments stepped together.
            num_steps: Steps of each in a rollout.
            update_epochs: Passes over a rollout.
            minibatch_size: Samples of an update; divides num_envs * num_steps.
            learning_rate: Of Adam, at the start.
            anneal_lr: Its schedule; true is linear.
            final_learning_rate: Where that ends.
            anneal_env_steps: Length of schedules; null is total_env_steps.
            adam_eps: Epsilon of Adam.
            gamma: Discount factor.
            gae_lambda: Weight of longer returns in the advantages.
            clip_coef: Half-width of the clipping interval of the probability ratio, at the start.
            anneal_clip: Its schedule, to zero.
            clip_vloss: Clip the value loss too.
            vf_clip_coef: Largest change of a value that counts there; null is clip_coef.
            norm_adv: Normalize advantages in each minibatch.
            recompute_adv: Compute advantages anew in each pass.
            norm_obs: Normalize observations by mean and variance so far, clip to 10; of a dictionary all floats, or
                some by pattern.
            norm_reward: Scale rewards by the deviation of their discounted sums so far, clip to 10.
            norm_value: Let the value function predict normalized returns.
            ent_coef: Weight of the entropy.
            anneal_ent: Its schedule, to zero.
            vf_coef: Weight of the value loss, half a mean squared error.
            max_grad_norm: Largest norm of the whole gradient; null does not clip.
            target_kl: End an iteration's updates when a minibatch's KL divergence exceeds 1.5 times this; null never
                does.
            compile_update: Make updates as one compiled function, faster and rounded differently; null does in runs of
                1,000 updates, or fewer of a large network, if possible, and resumes as before.
            eval_freq: Train iterations between evaluations, 0 for none; an iteration has ``num_steps * num_envs *
                update_epochs / minibatch_size`` of them.
            eval_episodes: Episodes of an evaluation.
            eval_num_envs: Environments of an evaluation.
            eval_deterministic: Whether evaluations take the most probable action.
            stop_value: Mean return of an evaluation that ends the run; null never does.
            shards: Equal parts that processes share out; a power of two.

        Raises:
            UsageError: If a value cannot work.
        """
        super().__init__(
            env=env,
            network=network,
            num_envs=num_envs,
            shards=shards,
            num_steps=num_steps,
            total_env_steps=total_env_steps,
            eval_num_envs=eval_num_envs,
            eval_episodes=eval_episodes,
            eval_deterministic=eval_deterministic,
            norm_obs=norm_obs,
            norm_reward=norm_reward,
            gamma=gamma,
        )
        self.value_normalizer = ValueNormalizer() if norm_value else None
        self.automatic_optimization = False
        self.update_epochs = update_epochs
        self.minibatch_size = minibatch_size
        self.learning_rate = learning_rate
        self.anneal_lr = anneal_lr
        self.final_learning_rate = final_learning_rate
        self.anneal_env_steps = anneal_env_steps
        self.adam_eps = adam_eps
        self.gamma = gamma
        self.gae_lambda = gae_lambda
        self.clip_coef = clip_coef
        self.anneal_clip = anneal_clip
        self.clip_vloss = clip_vloss
        self.vf_clip_coef = vf_clip_coef
        self.norm_adv = norm_adv
        self.recompute_adv = recompute_adv
        self.norm_obs = norm_obs
        self.norm_reward = norm_reward
        self.norm_value = norm_value
        self.ent_coef = ent_coef
        self.anneal_ent = anneal_ent
        self.vf_coef = vf_coef
        self.max_grad_norm = max_grad_norm
        self.target_kl = target_kl
        self.compile_update = compile_update
        self.eval_freq = eval_freq
        self.stop_value = stop_value
        self.save_hyperparameters(ignore=["env", "network"])
        self._learner: Learner | None = None
        self.settings_are_made()
        self._evaluation = PeriodicEvaluation(self.eval_freq, self.stop_value)
        self._directory = RunDirectory()
        self._callbacks = [ResumeState(), self._directory, self._evaluation]

    def _assign(self, name: str, value: Any) -> None:
        super()._assign(name, value)
        if name in ("eval_freq", "stop_value"):
            self._evaluation.every, self._evaluation.stop_value = self.eval_freq, self.stop_value

    @property
    def anneals(self) -> bool:
        """Whether a schedule runs towards ``total_env_steps``."""
        schedules = self.anneal_lr, self.anneal_clip, self.anneal_ent
        return self.anneal_env_steps is None and not all(map(is_constant, schedules))

    def configure_callbacks(self) -> list[L.Callback]:
        """What a script cannot forget: the state that a resume needs, and evaluation."""
        self.structures = []
        self.note_structure()  # before anybody's setup
        self._directory.configured(self.trainer)
        return [callback for callback in self._callbacks if find_callback(self.trainer, type(callback)) is not callback]

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
        if self.eval_freq > 0:
            batch_size = self.num_steps * self.num_envs
            updates = self.update_epochs * batch_size // self.minibatch_size
            rank_zero_info(f"Evaluation every {in_all_units(self.eval_freq, updates, batch_size)}.")
        # A change that the run had not followed yet makes its resume eager too.
        clip_vloss = self.value_before_run("clip_vloss")
        learner = self._learner = Learner(
            self.collector, self._optimizer(), clip_vloss, self.learning_rate, self.shards_here
        )
        before = None
        if self.resumed is not None:
            self._resume_rates(learner, self.resumed)
            updates = self.resumed[STATE_KEY]["platform"].get("updates")
            before = UpdatesBefore(updates, self.resumed["hyper_parameters"].get("compile_update"))
        if self.resumed is None or self.branching:
            lay_out(self.loggers)
        num_updates = self.total_env_steps * self.update_epochs // self.minibatch_size
        learner.choose_exchange(self.minibatch_size)
        choose_compilation(learner, self.trainer, self.compile_update, num_updates, self.minibatch_size, before)
        self.shards_here.check_same("updates", learner.description, "use --model.compile_update false")
        self.start_clock()  # once more, as compiling is no training

    def _resume_rates(self, learner: Learner, checkpoint: Mapping[str, Any]) -> None:
        given, counters = checkpoint["hyper_parameters"], checkpoint[STATE_KEY]["counters"]
        in_groups = [float(group["lr"]) for group in checkpoint["optimizer_states"][0]["param_groups"]]
        if self.hparams.get("adam_eps", 1e-5) != given.get("adam_eps", 1e-5):
            for group in checkpoint["optimizer_states"][0]["param_groups"]:  # which are loaded after this
                group["eps"] = self.adam_eps
        goes_on = learner.rates.load_state_dict(counters.get("rates"), in_groups)
        if goes_on and self.hparams.get("learning_rate") == given.get("learning_rate"):
            self.learning_rate = counters["learning_rate"]

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

    def counters(self) -> dict[str, Any]:
        """What counts the run, and what callbacks have made of its settings and learning rates."""
        rates = {"learning_rate": self.learning_rate, "rates": self.learner.rates.state_dict()}
        return {**super().counters(), **rates}

    def _collect(self) -> Rollout:
        self._follow_changes()
        return super()._collect()

    def _follow_changes(self) -> None:
        """Let what callbacks have changed take effect, before it is acted or learnt with."""
        self.check_hyperparameters()
        change = self.learner.follow(self._optimizer(), self.clip_vloss)
        if change is not None:
            rank_zero_info(f"Updates are eager from iteration {self.iteration + 1:,} on: {change}.")

    def _optimizer(self) -> torch.optim.Optimizer:
        optimizer = self.optimizers(use_pl_optimizer=False)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise UsageError("configure_optimizers returns several optimizers; return one")
        return optimizer

    def _check_finite(self, metrics: Tensor, grad_norms: Tensor) -> None:
        """End a run whose numbers are lost, before anything of this iteration is logged or saved."""
        lost = lost_number(self.network, metrics, grad_norms)
        if lost is not None:
            raise RunFailure(
                f"{lost} in iteration {self.iteration + 1} (train_iter {self.train_iter:,}, env_steps "
                f"{self.env_steps:,}); {last_good_checkpoint(self.trainer)}; lower learning_rate or max_grad_norm, or "
                "find the operation with --trainer.detect_anomaly true"
            )

    def _audit(self, samples: Minibatch, obs: Observations, coefficients: Coefficients, evaluates: bool) -> None:
        """Look at each evaluation, and now and then, whether compiled functions compute what PyTorch does."""
        if not self.learner.audit_is_due(self.iteration, evaluates):
            return
        minibatch: Minibatch = rows(samples, slice(self.learner.part_size(self.minibatch_size)))
        if self.norm_adv:
            minibatch = minibatch._replace(advantages=F.normalize(minibatch.advantages))
        last = rows(obs, (-1, slice(self.collector.num_envs)))
        fault = self.learner.audit(minibatch, last, coefficients, self.iteration)
        if fault is not None:
            raise RunFailure(
                f"compiled updates are wrong in iteration {self.iteration:,}: {fault}; "
                f"{last_good_checkpoint(self.trainer)}; continue it with --model.compile_update false"
            )

    def _log_iteration(
        self, experience: Experience, losses: dict[str, Tensor], grad_norms: Tensor, annealed_to: Coefficients
    ) -> None:
        """Write the iteration's metrics against env steps."""
        losses["grad_norm"] = grad_norms.mean()
        losses["explained_variance"] = experience.explained_variance()
        scalars = {f"losses/{name}": value.item() for name, value in losses.items()}
        scalars |= {f"rollout/{name}": value for name, value in self.collector.episode_scalars().items()}
        std = self.network.mean_std(rows(experience.samples.obs, slice(self.minibatch_size)))
        if std is not None:
            scalars["policy/std"] = std
        scalars["schedule/learning_rate"] = float(self._optimizer().param_groups[0]["lr"])
        scalars["schedule/clip_coef"] = float(annealed_to.clip_coef)
        if not is_constant(self.anneal_ent):
            scalars["schedule/ent_coef"] = float(annealed_to.ent_coef)
        scalars["time/env_steps_per_second"] = self.env_steps_per_second
        self.log_scalars(scalars, step=self.env_steps)
