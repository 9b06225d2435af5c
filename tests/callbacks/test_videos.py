"""Videos of evaluations: when, where, and that no bit of the run hangs on them."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import pl_rl
from pl_rl import EnvConfig, UsageError
from pl_rl.callbacks import EvaluationVideos, RunCheckpoint
from pl_rl.tools.verification import compare_runs
from tests.support import MemoryLogger, fit, same_bits, small_ppo

pytest.importorskip("moviepy")


class Lucky(gym.Env):
    """Draws from NumPy's global generator when it is made, drawn and stepped."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}  # noqa: RUF012
    observation_space = gym.spaces.Box(-1e3, 1e3, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode
        self.bias = np.random.random()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._obs(), {}

    def step(self, action):
        self.steps += 1
        return self._obs(), float(action), False, self.steps == 5, {}

    def _obs(self):
        return np.array([self.steps, self.bias + np.random.random()], np.float32)

    def render(self):
        return np.full((16, 32, 3), self.steps + int(100 * np.random.random()), np.uint8)


gym.register("PlRlTest/Lucky-v0", Lucky)


def train(root, video_freq, until=8, ckpt_path=None):
    # Worker processes, which "auto" chooses where they pay, would have global generators of their own.
    model = small_ppo(env=EnvConfig("PlRlTest/Lucky-v0", "sync"), eval_freq=8, eval_episodes=1)
    trainer = pl_rl.Trainer(
        accelerator="cpu",
        default_root_dir=root,
        max_epochs=until,
        callbacks=[RunCheckpoint(last_every_n_iterations=1), EvaluationVideos(video_freq)],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(model, ckpt_path=ckpt_path)
    return model


def films_of(root):
    return sorted(path.name for path in root.glob("lightning_logs/version_0/videos/*"))


def shown_in(root):
    """Steps at which TensorBoard shows a video, and whether it is an animated picture."""
    found = []
    for path in sorted(root.glob("lightning_logs/version_0/events*")):
        events = EventAccumulator(str(path), size_guidance={"images": 0})
        events.Reload()
        if "evaluator/video" in events.Tags()["images"]:
            found += [(image.step, image.encoded_image_string[:4]) for image in events.Images("evaluator/video")]
    return found


@pytest.fixture(scope="module")
def filmed(tmp_path_factory):
    """A run with videos, of every second evaluation, and its model."""
    root = tmp_path_factory.mktemp("filmed")
    return root, train(root, video_freq=2)


@pytest.mark.slow
def test_every_so_many_evaluations_are_filmed(filmed):
    root, _ = filmed
    # Evaluations at 0, 8, 16, 24 and 32.
    assert films_of(root) == [f"PlRlTest-Lucky-v0-train_iter-{number}-episode-0.mp4" for number in (0, 16, 32)]
    assert shown_in(root) == [(number, b"GIF8") for number in (0, 16, 32)]


@pytest.mark.slow
def test_no_bit_of_the_run_hangs_on_videos(filmed, tmp_path):
    root, model = filmed
    assert same_bits(train(tmp_path, video_freq=0).state_dict(), model.state_dict())
    assert films_of(tmp_path) == []
    runs = [place / "lightning_logs/version_0" for place in (root, tmp_path)]
    differences = compare_runs(*runs)
    assert not any(differences.values()), differences


@pytest.mark.slow
def test_a_resume_goes_on_with_the_schedule(filmed, tmp_path):
    train(tmp_path, video_freq=2, until=5)
    last = tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt"
    train(tmp_path, video_freq=2, ckpt_path=last)
    assert films_of(tmp_path) == films_of(filmed[0])
    assert shown_in(tmp_path) == shown_in(filmed[0])


@pytest.mark.slow
def test_loggers_of_videos_get_the_file(tmp_path):
    class Watcher(MemoryLogger):
        def log_video(self, key, videos, step=None):
            self.calls.append((step, {key: videos}))

    logger = Watcher()
    model = small_ppo(env="PlRlTest/Lucky-v0", eval_freq=32, eval_episodes=1)
    fit(model, logger=logger, callbacks=[EvaluationVideos(1)], default_root_dir=tmp_path)
    (first, [film]), (last, _) = logger.points("evaluator/video")
    assert (first, last) == (0, 32)
    assert Path(film).parts[-2:] == ("videos", "PlRlTest-Lucky-v0-train_iter-0-episode-0.mp4")
    assert Path(film).is_file() and Path(film).is_relative_to(tmp_path)


def test_what_cannot_be_drawn_is_refused_before_training(tmp_path):
    model = small_ppo(env="tests.environments:PlRlTest/Undrawable-v0", eval_freq=8)
    with pytest.raises(UsageError, match="cannot be drawn here"):
        fit(model, callbacks=[EvaluationVideos(1)], logger=TensorBoardLogger(tmp_path))
    assert model.train_iter == 0


def test_a_link_in_the_place_of_the_videos_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    run = tmp_path / "runs" / "this"
    run.mkdir(parents=True)
    (run / "videos").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="is a symbolic link where the run's videos go"):
        fit(
            small_ppo(env="PlRlTest/Lucky-v0", eval_freq=8),
            callbacks=[EvaluationVideos(1)],
            logger=TensorBoardLogger(tmp_path, name="runs", version="this"),
        )
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_negative_number_is_refused():
    with pytest.raises(UsageError, match="video_freq=-1 must not be negative"):
        EvaluationVideos(-1)


def test_evaluations_that_are_not_made_cannot_be_filmed(tmp_path):
    with pytest.raises(UsageError, match="video_freq=2 counts evaluations, and eval_freq=0 makes none"):
        fit(small_ppo(env="PlRlTest/Lucky-v0", eval_freq=0), callbacks=[EvaluationVideos(2)])
