"""Evaluation on a schedule of train iterations."""

from collections.abc import Iterable, Mapping
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from pl_rl.agent import Agent, as_agent
from pl_rl.algorithm.schedule import is_due
from pl_rl.callbacks.lookup import find_callback, find_callbacks
from pl_rl.callbacks.run_directory import run_directory
from pl_rl.callbacks.videos import EvaluationVideos, check_counted
from pl_rl.checkpoints.format import STATE_KEY
from pl_rl.envs.episode_info import SUCCESS_KEYS
from pl_rl.errors import UsageError
from pl_rl.runs.evaluations import add_evaluation, begin_segment
from pl_rl.seeding.streams import Stream


class PeriodicEvaluation(L.Callback):
    """Evaluates the policy before training, and each time the train iterations pass a multiple of ``every``.

    The results are logged on two axes, ``evaluator_iter/...`` against train iterations and ``evaluator_step/...``
    against env steps, and are there for other callbacks to monitor as ``evaluator/return_mean`` and so on.

    It runs at the end of an epoch, ahead of the callbacks that save checkpoints, so that a checkpoint of the best
    result holds the weights that achieved it.

    Args:
        every: Train iterations; 0 never evaluates.
        stop_value: Mean return that ends the run; ``None`` never does.

    Attributes:
        latest: Statistics of the latest evaluation, empty before the first.
        best_return: Highest mean return so far.
        train_iter: Of the latest evaluation, ``None`` before the first.
    """

    def __init__(self, every: int, stop_value: float | None = None) -> None:
        self.every = every
        self.stop_value = stop_value
        self.latest: dict[str, float] = {}
        self.best_return = -float("inf")
        self.train_iter: int | None = None
        self._segment = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Forget an earlier run of the same model; a resume then brings its own state.

        Raises:
            UsageError: If evaluations that are not made are to be filmed.
        """
        if stage != "fit":
            return
        self.latest, self.best_return, self.train_iter = {}, -float("inf"), None
        for videos in find_callbacks(trainer, EvaluationVideos):
            check_counted(videos.video_freq, self.every)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate the policy before training; a resumed run has done so, and may have ended already.

        A policy that has not been trained is not stopped, however lucky it was: an untrained one balances the pole
        of CartPole with one seed in a hundred.
        """
        agent, run = as_agent(pl_module), run_directory(trainer)
        self._segment = 0 if run is None or not trainer.is_global_zero else begin_segment(run, self.train_iter)
        # A checkpoint may have been saved by another callback just before an evaluation that was due.
        if self._is_due(self.train_iter, agent.train_iter):
            self._evaluate(agent)
        self._publish(agent)
        if agent.train_iter > 0:
            self._stop_if_solved(agent)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate where the iteration's updates passed a multiple of ``every``."""
        agent = as_agent(pl_module)
        if is_due(self.train_iter or 0, agent.train_iter, self.every):
            self._evaluate(agent)
            self._publish(agent)
            self._stop_if_solved(agent)

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs to go on with the schedule, the best result and the stop."""
        return {"latest": self.latest, "best_return": self.best_return, "train_iter": self.train_iter}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.latest = state_dict["latest"]
        self.best_return = state_dict["best_return"]
        self.train_iter = state_dict["train_iter"]

    def end_at(self, checkpoint: dict[str, Any]) -> str | None:
        """Why a run was over at a checkpoint, by the present ``stop_value``; ``None`` if it was not."""
        state = checkpoint["callbacks"].get(self.state_key)
        trained = checkpoint[STATE_KEY]["counters"]["train_iter"] > 0
        return self._reached(state["latest"]) if state and trained else None

    def reached(self) -> str | None:
        """Why the run is over by the latest evaluation, in words; ``None`` if it is not."""
        return self._reached(self.latest) if self.train_iter else None

    def is_due_at(self, checkpoint: dict[str, Any]) -> bool:
        """Whether an evaluation is to be made up for, as a checkpoint was saved just before it."""
        state = checkpoint["callbacks"].get(self.state_key, {})
        return self._is_due(state.get("train_iter"), checkpoint[STATE_KEY]["counters"]["train_iter"])

    def _is_due(self, latest: int | None, train_iter: int) -> bool:
        return is_due(-1 if latest is None else latest, train_iter, self.every)

    def _evaluate(self, agent: Agent) -> None:
        before = self.train_iter
        # Noted when it has been made: a resume after a failure makes up for it.
        self.latest = agent.play(Stream.EVALUATION).statistics()
        self.train_iter = agent.train_iter
        self.best_return = max(self.best_return, self.latest["return_mean"])
        if before is None:
            _tell_of_unknown(agent.env_config.info_keys, self.latest)
        for group, step in [("evaluator_iter", agent.train_iter), ("evaluator_step", agent.env_steps)]:
            agent.log_scalars({f"{group}/{name}": value for name, value in self.latest.items()}, step)
        run = run_directory(agent.trainer)
        if run is not None and agent.trainer.is_global_zero:
            add_evaluation(run, self._segment, agent.train_iter, agent.env_steps, self.latest)
        # The name under which Lightning's TensorBoard logger fills the HParams tab.
        agent.log_scalars({"hp_metric": self.best_return}, agent.train_iter)
        for videos in find_callbacks(agent.trainer, EvaluationVideos):
            videos.after_evaluation(agent, before, self.every)

    def _publish(self, agent: Agent) -> None:
        """Give other callbacks something to monitor."""
        agent.log_dict({f"evaluator/{name}": value for name, value in self.latest.items()}, logger=False, batch_size=1)

    def _stop_if_solved(self, agent: Agent) -> None:
        reached = self._reached(self.latest)
        if reached is None:
            return
        agent.stop(reached)
        rank_zero_info(f"Stopped at train_iter {agent.train_iter:,}: {agent.stop_reason}.")

    def _reached(self, latest: dict[str, float]) -> str | None:
        return_mean = latest.get("return_mean", -float("inf"))
        if self.stop_value is None or return_mean < self.stop_value:
            return None
        return f"evaluation return {return_mean:g} reached stop_value={self.stop_value:g}"


def _tell_of_unknown(info_keys: Iterable[str], statistics: Mapping[str, float]) -> None:
    """Say which names are in no episode's info: one may be misspelt, and nothing would be logged for it."""
    for key in info_keys:
        if key not in SUCCESS_KEYS and f"{key}_mean" not in statistics:
            rank_zero_info(f"No episode of the first evaluation has a number {key!r} in its info, see env.info_keys.")


def evaluation_of(trainer: L.Trainer) -> PeriodicEvaluation:
    """The trainer's evaluation callback, which every agent brings along."""
    evaluation = find_callback(trainer, PeriodicEvaluation)
    if evaluation is None:
        raise UsageError("the trainer has no evaluation; an agent's configure_callbacks gives PeriodicEvaluation")
    return evaluation
