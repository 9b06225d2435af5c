"""Callbacks, one file for each job."""

from pl_rl.callbacks.evaluation import PeriodicEvaluation
from pl_rl.callbacks.pretrained import PretrainedCheckpoint
from pl_rl.callbacks.progress import RunProgressBar
from pl_rl.callbacks.resume_state import ResumeState
from pl_rl.callbacks.run_checkpoint import RunCheckpoint
from pl_rl.callbacks.run_directory import RunDirectory
from pl_rl.callbacks.stop_on_signal import StopOnSignal
from pl_rl.callbacks.summary import RunSummary

__all__ = [
    "PeriodicEvaluation",
    "PretrainedCheckpoint",
    "ResumeState",
    "RunCheckpoint",
    "RunDirectory",
    "RunProgressBar",
    "RunSummary",
    "StopOnSignal",
]
