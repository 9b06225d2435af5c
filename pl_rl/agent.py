"""The part of a LightningModule that lives in an environment: collecting, playing and counting.

One Lightning epoch is one batch is one rollout.
"""

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.parsing import AttributeDict

from pl_rl.algorithm.drawing import FilmFormat, record, watch
from pl_rl.algorithm.evaluation import LIMIT_EPISODES, LONGEST_EPISODE, Episodes, format_return
from pl_rl.algorithm.rollout import Rollout, RolloutCollector, RolloutLoader
from pl_rl.algorithm.threads import one_thread
from pl_rl.distributed.collector import make_collector
from pl_rl.distributed.evaluation import evaluate_by_shard
from pl_rl.distributed.processes import check_processes
from pl_rl.distributed.shards import Shards
from pl_rl.envs import EnvConfig, close_single, make_single
from pl_rl.errors import EnvironmentFailure, UsageError
from pl_rl.networks.changes import structure_of
from pl_rl.networks.description import NetworkFactory
from pl_rl.networks.normalization import ObservationNormalizer, RewardScaler
from pl_rl.seeding.streams import Stream, derive_seed

# Settings, and how the names of their statistics begin in a checkpoint.
STATISTICS = {"norm_obs": "normalizer.", "norm_reward": "reward_scaler.", "norm_value": "value_normalizer."}


class Agent(L.LightningModule):
    """A policy, the environments that it learns in, and the count of what it has done there.

    Args:
        env: The environment.
        network: Makes the network from the observation space and the action space.
        num_envs: Environments that are stepped together, over all processes.
        shards: Parts of the run that processes share out.
        num_steps: Steps of each environment in one rollout.
        total_env_steps: Length of a run in transitions, over all environments and all resumes.
        eval_num_envs: Environments of an evaluation.
        eval_episodes: Episodes of an evaluation.
        eval_deterministic: Whether evaluations take the most probable action.
        norm_obs: Normalize observations by running statistics: all that are floats, or entries of these names.
        norm_reward: Scale rewards in training by the running deviation of their discounted sums.
        gamma: Discount factor of these sums.

    Attributes:
        normalizer: Stands between observations and ``network``, in training and wherever the policy acts; ``None``
            where observations are not normalized.
        reward_scaler: Scales the rewards of rollouts; ``None`` where they are not scaled.
        shards_here: Which shards this process has, and how it reaches the others.
        env_steps: Transitions made, over all environments.
        train_iter: Gradient updates done; while fitting also Lightning's ``global_step``.
        iteration: Iterations (collect and learn) done.
        run_seed: Root of all random streams of the run; the seed that was set with ``seed_everything``.
        between_iterations: Whether nothing is half done: no rollout collected that has not been learnt from.
        environments_busy: Whether the environments were asked for something that they have not answered, which an
            exception left them in.
        branching: Whether the checkpoint that is resumed begins a run of its own rather than continuing one.
        parent: The checkpoint that this run branched from, if it did.
        structures: The network's layers in words, at the moments of a fit at which a resume may compare them.
        missing_logs: What a continued run's log files lack, in words.
        stop_reason: Why training ended, in words, once it has been decided to end.
    """

    def __init__(
        self,
        env: EnvConfig,
        network: NetworkFactory,
        num_envs: int,
        shards: int,
        num_steps: int,
        total_env_steps: int,
        eval_num_envs: int,
        eval_episodes: int,
        eval_deterministic: bool,
        norm_obs: bool | Sequence[str],
        norm_reward: bool,
        gamma: float,
    ) -> None:
        super().__init__()
        self.env_config = env
        self.num_envs = num_envs
        self.shards = shards
        self.shards_here = Shards(shards)
        self.num_steps = num_steps
        self.total_env_steps = total_env_steps
        self.eval_num_envs = eval_num_envs
        self.eval_episodes = eval_episodes
        self.eval_deterministic = eval_deterministic
        single = make_single(env)
        with one_thread():
            self.network = network(single.observation_space, single.action_space)
        close_single(single, env.id)
        self.normalizer = ObservationNormalizer(single.observation_space, norm_obs) if norm_obs else None
        self.reward_scaler = RewardScaler(gamma) if norm_reward else None
        self.env_steps = 0
        self.train_iter = 0
        self.iteration = 0
        self.run_seed = torch.initial_seed()
        self.stop_reason: str | None = None
        self.between_iterations = True
        self.environments_busy = False
        self.branching = False
        self.parent: dict[str, str | int] | None = None
        self.structures: list[str] = []
        self.missing_logs: list[str] = []
        self.video_dir: Path | None = None
        self.video_format: FilmFormat = "mp4"
        self.in_window = False
        self._collector: RolloutCollector | None = None
        self._before_fit: tuple[int | float, int] | None = None
        self._elapsed_before = 0.0
        self._started = (time.monotonic(), 0)
        self._told_of_endless = False

    @property
    def collector(self) -> RolloutCollector:
        """The collector of the running fit.

        Raises:
            RuntimeError: Outside ``fit``.
        """
        if self._collector is None:
            raise RuntimeError(
                "rollouts are collected, and their state is saved in checkpoints, during Trainer.fit only"
            )
        return self._collector

    @property
    def has_environments(self) -> bool:
        """Whether there is a collector: within ``fit`` only."""
        return self._collector is not None

    @contextmanager
    def asking_environments(self) -> Iterator[None]:
        """Around all that the environments of training are asked for: an exception leaves them busy."""
        self.environments_busy = True
        yield
        self.environments_busy = False

    @property
    def anneals(self) -> bool:
        """Whether ``total_env_steps`` shapes training before it ends it."""
        return False

    def numerics(self) -> dict[str, str]:
        """What decides how numbers are rounded, beyond libraries and machine."""
        return {}

    @property
    def elapsed_seconds(self) -> float:
        """Training time, over all resumes."""
        return self._elapsed_before + self.elapsed_seconds_here

    @property
    def elapsed_seconds_here(self) -> float:
        """Training time of this process's part of the run."""
        return time.monotonic() - self._started[0]

    @property
    def env_steps_per_second(self) -> float:
        """Average over this process's part of the run."""
        return (self.env_steps - self._started[1]) / max(self.elapsed_seconds_here, 1e-9)

    def setup(self, stage: str) -> None:
        """Begin a run: fresh counters, random streams and environments (a resume then overwrites them)."""
        # Lightning does this after a checkpoint's weights are loaded, which rounds those of higher precision.
        self.trainer.precision_plugin.convert_module(self)
        # Of values that all processes have.
        warnings.filterwarnings("ignore", r"It is recommended to use `self\.log", PossibleUserWarning)
        if stage == "fit":
            check_processes(self.trainer, self.shards)
        self.shards_here = Shards(self.shards, self.trainer.global_rank, self.trainer.world_size)
        if stage == "fit":
            self.note_structure()
            # Evaluation follows eval_freq, in train iterations, which Lightning's validation loop cannot.
            self._before_fit = (self.trainer.limit_val_batches, torch.get_num_threads())
            self.trainer.limit_val_batches = 0
            warnings.filterwarnings("ignore", r"The number of training batches \(1\)", PossibleUserWarning)
            torch.set_num_threads(1)  # see one_thread
            self.env_steps = self.train_iter = self.iteration = 0
            self.run_seed = self.shards_here.of_first(torch.initial_seed())
            self.stop_reason = None
            self.parent = None
            self.between_iterations = True
            self._elapsed_before = 0.0
            self._told_of_endless = False
            self._close_environments()  # of a fit that nobody could end properly
            of_env, statistics = (self.env_config, self.num_envs), (self.normalizer, self.reward_scaler)
            self._collector = make_collector(self.shards_here, *of_env, self.network, self.num_steps, *statistics)
            self._collector.reseed(self.run_seed)
            with self.asking_environments():
                self._collector.reset(derive_seed(self.run_seed, Stream.ENVIRONMENTS))

    def teardown(self, stage: str) -> None:
        """Close the environments and leave the trainer and the process as they were."""
        if self._before_fit is not None:
            self.trainer.limit_val_batches, threads = self._before_fit
            torch.set_num_threads(threads)
            self._before_fit = None
        self._close_environments()

    def close_after(self, exception: BaseException) -> None:
        """As :meth:`teardown` after a fit that an exception has ended, which stays the one to be seen."""
        if self._collector is None and self._before_fit is None:
            return  # it was ended properly, or has not begun
        try:
            self.teardown("fit")
        except Exception as error:
            exception.add_note(f"Then the environments could not be closed: {type(error).__name__}: {error}")

    def _close_environments(self) -> None:
        collector, self._collector = self._collector, None
        if collector is not None:
            collector.env.close()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse to act, which the policy of :func:`pl_rl.load_policy` does."""
        raise UsageError(f"a {type(self).__name__} is not called to act; use pl_rl.load_policy(checkpoint).act(obs)")

    def train_dataloader(self) -> RolloutLoader:
        """One rollout of the current policy for each epoch."""
        return RolloutLoader(self._collect)

    def val_dataloader(self) -> list[list[int]]:
        """One batch, which stands for one evaluation."""
        return [[0]]

    def test_dataloader(self) -> list[list[int]]:
        """One batch, which stands for one evaluation."""
        return [[0]]

    def predict_dataloader(self) -> list[list[int]]:
        """One batch, which stands for one set of episodes."""
        return [[0]]

    def validation_step(self, batch: int, batch_idx: int) -> None:
        """The evaluation that ``fit`` makes at this train iteration, number for number."""
        self._log_statistics("evaluator", self.play(Stream.EVALUATION))

    def test_step(self, batch: int, batch_idx: int) -> None:
        """An evaluation on episodes that no choice of a checkpoint was based on."""
        self._log_statistics("test", self.play(Stream.TEST))

    def predict_step(self, batch: int, batch_idx: int) -> Episodes:
        """Play ``eval_episodes`` episodes; each becomes a file of its own where ``video_dir`` is set, or is shown."""
        seed = derive_seed(self.run_seed, Stream.PREDICTION, self.train_iter)
        acting = self.eval_deterministic, self.normalizer
        if self.in_window:
            return watch(self.network, self.env_config, self.eval_episodes, seed, *acting)
        if self.video_dir is not None:
            film = self.video_dir, *acting, self.video_format
            return record(self.network, self.env_config, self.eval_episodes, seed, *film)
        return self.play(Stream.PREDICTION)

    def play(self, stream: Stream) -> Episodes:
        """Play an evaluation's episodes; a function of the weights, the run's seed and the train iteration."""
        with one_thread(), self.trainer.precision_plugin.forward_context():
            dealt, key = (self.eval_num_envs, self.eval_episodes), (stream, self.train_iter)
            acting = self.eval_deterministic, self.normalizer
            return evaluate_by_shard(
                self.shards_here, self.network, self.env_config, *dealt, self.run_seed, key, *acting
            )

    def log_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """Write to every logger at once, at an integer step.

        ``self.log`` would round the step to float32, cost 0.3 ms a call and write after the checkpoint.
        """
        for logger in self.loggers if self.trainer.is_global_zero else ():
            logger.log_metrics(dict(scalars), step=step)

    @property
    def hparams_initial(self) -> AttributeDict:
        """What loggers are told of the settings, with the seed, by which a study's runs can be grouped."""
        return AttributeDict({**super().hparams_initial, "seed": self.run_seed})

    def stop(self, reason: str) -> None:
        """End training after this iteration and remember why."""
        self.stop_reason = reason
        self.trainer.should_stop = True

    def note_structure(self) -> None:
        """Add the network's layers to :attr:`structures`, if they are others by now."""
        structure = structure_of(self.network)
        if structure not in self.structures:
            self.structures.append(structure)

    def counters(self) -> dict[str, Any]:
        """What counts the run, and the seed that it began with."""
        return {
            "env_steps": self.env_steps,
            "train_iter": self.train_iter,
            "iteration": self.iteration,
            "elapsed_seconds": self.elapsed_seconds,
            "run_seed": self.run_seed,
        }

    def restore_counters(self, counters: Mapping[str, Any]) -> None:
        """The inverse of :meth:`counters`."""
        self.env_steps = counters["env_steps"]
        self.train_iter = counters["train_iter"]
        self.iteration = counters["iteration"]
        self.run_seed = counters["run_seed"]
        self._elapsed_before = counters["elapsed_seconds"]

    def on_fit_start(self) -> None:
        """Refuse what cannot be trained, and start the clock."""
        self.check_trainer(self.trainer)
        self.start_clock()

    def start_clock(self) -> None:
        """Training time counts from here."""
        self._started = (time.monotonic(), self.env_steps)

    def check_trainer(self, trainer: L.Trainer) -> None:
        """Refuse what would train wrongly without a word.

        Raises:
            UsageError: For wrong processes, a precision that scales the loss, and what has no effect.
        """
        # Lightning would only say that manual optimization does not support these two.
        if trainer.gradient_clip_val:
            norm = trainer.gradient_clip_val
            raise UsageError(f"gradient_clip_val={norm} does not reach PPO's updates; use --model.max_grad_norm {norm}")
        if trainer.accumulate_grad_batches != 1:
            raise UsageError(
                f"accumulate_grad_batches={trainer.accumulate_grad_batches} does not reach PPO's updates; use a larger "
                "minibatch_size"
            )
        check_processes(trainer, self.shards)
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            raise UsageError(
                f"precision={trainer.precision!r} needs a loss scaler, which PPO's small gradients do not bear; "
                "use bf16-mixed or 32-true"
            )

    def on_train_start(self) -> None:
        """A run that is resumed after its end trains no further."""
        self._stop_at_budget()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keep to the budget of env steps."""
        self._stop_at_budget()

    def _stop_at_budget(self) -> None:
        if self.env_steps >= self.total_env_steps:
            self.stop(f"total_env_steps={self.total_env_steps:,} reached")

    def _collect(self) -> Rollout:
        self.between_iterations = False
        try:
            with self.trainer.precision_plugin.forward_context(), self.asking_environments():
                rollout = self.collector.collect()
        except EnvironmentFailure as failure:
            if failure.step is not None:
                step = self.iteration * self.num_steps + failure.step
                failure.when = f"at its step {step:,} (iteration {self.iteration + 1:,})"
            raise
        self.env_steps += self.num_steps * self.num_envs
        self._tell_of_endless_episodes()
        return rollout

    def _tell_of_endless_episodes(self) -> None:
        """Once, as such a run has no returns to show, and takes ever longer to resume."""
        episodes = self.collector.episodes
        longest = int(episodes.open_lengths.argmax())
        steps, episode_return = int(episodes.open_lengths[longest]), float(episodes.open_returns[longest])
        if self._told_of_endless or steps < LONGEST_EPISODE:
            return
        self._told_of_endless = True
        rank_zero_info(
            f"Environment {longest} has not ended its episode after {steps:,} steps (iteration {self.iteration + 1:,}),"
            f" at a return of {format_return(episode_return)}: until it ends that is in no mean, and a resume makes "
            f"all the steps again; {LIMIT_EPISODES}."
        )

    def _log_statistics(self, group: str, episodes: Episodes) -> None:
        statistics = {f"{group}/{name}": value for name, value in episodes.statistics().items()}
        self.log_dict(statistics, batch_size=1)


def as_agent(module: L.LightningModule) -> Agent:
    """The module as what the callbacks of this package work with.

    Raises:
        TypeError: For a module that is no agent.
    """
    if not isinstance(module, Agent):
        raise TypeError(f"this callback works with pl_rl.PPO, not with {type(module).__name__}")
    return module
