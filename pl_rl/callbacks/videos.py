"""Videos of evaluations while a run trains."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from pl_rl.agent import Agent, as_agent
from pl_rl.algorithm.drawing import check_recordable, film_path, record, write_gif
from pl_rl.algorithm.schedule import is_due
from pl_rl.callbacks.run_directory import run_directory
from pl_rl.errors import UsageError
from pl_rl.files.writing import kind_of
from pl_rl.seeding.random_state import random_state_kept
from pl_rl.seeding.streams import Stream, derive_seed

VIDEOS, TAG = "videos", "evaluator/video"
# Of what TensorBoard shows; the file has it all.
LONGEST_SECONDS = 30.0


class EvaluationVideos(L.Callback):
    """Records one episode at every so many evaluations, in the run's folder ``videos`` and in its loggers.

    TensorBoard shows it among the images; a logger with a ``log_video``, such as Lightning's for Weights & Biases, gets
    the file. The episode has an environment and seeds of its own, so that no bit of the run hangs on it.

    Args:
        video_freq: Evaluations from one video to the next; the first is of the untrained policy. 0 records none.

    Raises:
        UsageError: If it is negative.
    """

    def __init__(self, video_freq: int = 0) -> None:
        if video_freq < 0:
            raise UsageError(f"video_freq={video_freq} must not be negative; 0 records no videos")
        self.video_freq = video_freq

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Look whether the environment can be drawn, rather than hours later.

        Raises:
            UsageError: If it cannot.
        """
        if stage == "fit" and self.video_freq and trainer.is_global_zero:
            with random_state_kept():  # from which an environment may draw when it is made
                check_recordable(as_agent(pl_module).env_config)

    def after_evaluation(self, agent: Agent, before: int | None, every: int) -> None:
        """Record, if it is due.

        It depends on the train iterations alone, so a resumed run keeps the schedule.

        Args:
            agent: As it was evaluated.
            before: Train iteration of the evaluation before; ``None`` if there was none.
            every: Train iterations from one evaluation to the next.
        """
        trainer, period = agent.trainer, self.video_freq * every
        if not trainer.is_global_zero or not is_due(-1 if before is None else before, agent.train_iter, period):
            return
        directory = Path(run_directory(trainer) or trainer.default_root_dir, VIDEOS)
        if kind_of(directory) not in (None, "a folder"):  # in a run's directory from elsewhere
            raise UsageError(f"{str(directory)!r} is {kind_of(directory)} where the run's videos go; move it away")
        suffix = f"-train_iter-{agent.train_iter}"
        seed = derive_seed(agent.run_seed, Stream.VIDEO, agent.train_iter)
        acting = agent.eval_deterministic, agent.normalizer
        with random_state_kept(), trainer.precision_plugin.forward_context():
            record(agent.network, agent.env_config, 1, seed, directory, *acting, suffix=suffix)
        film = film_path(directory, agent.env_config, 0, suffix)
        for logger in agent.loggers:
            _log(logger, film, agent.train_iter)


def check_counted(video_freq: int, eval_freq: int) -> None:
    """Refuse to film evaluations that are not made.

    Raises:
        UsageError: If there are none.
    """
    if video_freq and not eval_freq:
        raise UsageError(f"video_freq={video_freq} counts evaluations, and eval_freq=0 makes none; set eval_freq")


def _log(logger: Any, film: Path, step: int) -> None:
    if isinstance(logger, TensorBoardLogger):
        logger.experiment._get_file_writer().add_summary(_animation(film), step)
    elif callable(getattr(logger, "log_video", None)):
        logger.log_video(TAG, [str(film)], step)


def _animation(film: Path) -> Any:
    """A film as TensorBoard takes it; PyTorch's ``add_video`` does not work with moviepy 2."""
    from tensorboard.compat.proto.summary_pb2 import Summary  # not at the start of every command

    gif = film.with_suffix(".gif")
    write_gif(film, gif, LONGEST_SECONDS)
    try:
        content = gif.read_bytes()
    finally:
        gif.unlink()
    width, height = (int.from_bytes(content[place : place + 2], "little") for place in (6, 8))
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
    return Summary(value=[Summary.Value(tag=TAG, image=image)])
