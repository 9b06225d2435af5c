"""Whether the updates of a run are compiled: as the user says, as a resumed run did before, or by a rule."""

from typing import NamedTuple

import lightning as L
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.utilities import rank_zero_info

from pl_rl.compiled.learner import Learner
from pl_rl.errors import CompilationError, CompilerFailure, RunFailure, UsageError


class UpdatesBefore(NamedTuple):
    """How a run that is continued made its updates, by its checkpoint."""

    description: str | None
    """Of its updates, ``None`` if the checkpoint does not tell."""
    compile_update: bool | None
    """The setting."""

    @property
    def were_compiled(self) -> bool:
        """Whether they were at the checkpoint."""
        return self.description not in (None, "eager")

    @property
    def became_eager(self) -> bool:
        """Whether they were to be compiled, and were not any more at the checkpoint."""
        return self.description == "eager" and self.compile_update is True


def choose_compilation(
    learner: Learner,
    trainer: L.Trainer,
    compile_update: bool | None,
    num_updates: int,
    minibatch_size: int,
    before: UpdatesBefore | None,
) -> None:
    """Let a learner compile its updates, or stay eager and say why.

    Args:
        learner: Of the fit that begins.
        trainer: Its precision and debugging may forbid it.
        compile_update: The setting; ``None`` goes by the resumed run or by the rule.
        num_updates: Of the whole run, as planned.
        minibatch_size: Samples of an update.
        before: Of the run that is continued, if one is.

    Raises:
        UsageError: If the setting is true and it cannot be.
        RunFailure: If it is true and the compiler failed this time.
    """
    wanted = compile_update
    if wanted is None and before is not None:
        wanted = before.were_compiled
    if wanted is None:
        wanted = learner.is_worth_compiling(num_updates, minibatch_size)
    if not wanted:
        return
    if before is not None and before.became_eager:
        rank_zero_info("Updates stay eager, as they became while the run trained.")
        return
    try:
        if type(trainer.precision_plugin) is not Precision:
            raise CompilationError(f"it is made for precision=32-true, not {trainer.precision}")
        if trainer._detect_anomaly:
            raise CompilationError("detect_anomaly=true watches single operations")
        learner.compile(minibatch_size)
    except CompilationError as error:
        if compile_update and isinstance(error, CompilerFailure):
            raise RunFailure(
                f"compile_update=true: {error}; give the command again with memory and disk to spare, or use false"
            ) from error
        if compile_update:
            raise UsageError(f"compile_update=true cannot be had: {error}; use null or false") from error
        rank_zero_info(f"Updates are not compiled: {error}.")
