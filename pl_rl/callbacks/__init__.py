"""Callbacks, one file for each job.

What belongs here: what happens at a hook of Lightning's.
What does not: the work itself where it can be done without a Trainer (``checkpoints/``, ``runs/``, ``pretrained/``).
"""

from pl_rl.callbacks.adaptive_rate import KLAdaptiveRate
from pl_rl.callbacks.evaluation import PeriodicEvaluation
from pl_rl.callbacks.pretrained import PretrainedCheckpoint
from pl_rl.callbacks.progress import RunProgressBar
from pl_rl.callbacks.resume_state import ResumeState
from pl_rl.callbacks.run_checkpoint import RunCheckpoint
from pl_rl.callbacks.run_directory import RunDirectory
from pl_rl.callbacks.stop_on_signal import StopOnSignal
from pl_rl.callbacks.summary import RunSummary
from pl_rl.callbacks.videos import EvaluationVideos

__all__ = [
    "EvaluationVideos",
    "KLAdaptiveRate",
    "PeriodicEvaluation",
    "PretrainedCheckpoint",
    "ResumeState",
    "RunCheckpoint",
    "RunDirectory",
    "RunProgressBar",
    "RunSummary",
    "StopOnSignal",
]
