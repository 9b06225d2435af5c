"""Whether to compile the updates of a run: by the setting, by what a resumed run did, or by a rule."""

from typing import NamedTuple

import lightning as L
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.utilities import rank_zero_info

from pl_rl.compiled.inductor import InductorCompiled
from pl_rl.compiled.learner import Learner
from pl_rl.errors import CompilationError, CompilerFailure, RunFailure, UnsupportedOperation, UsageError

# Inductor compiles for twenty to forty seconds, and then saves a quarter to a half of an eager update.
INDUCTOR_TAKES = 30


class UpdatesBefore(NamedTuple):
    """How a resumed run computed its updates, by its checkpoint."""

    description: str | None
    """See :class:`~pl_rl.algorithm.updates.Updater`; ``None`` if the checkpoint has none."""
    compile_update: bool | None
    """The setting."""

    @property
    def were_compiled(self) -> bool:
        """Whether they were compiled at the checkpoint."""
        return self.description not in (None, "eager")

    @property
    def became_eager(self) -> bool:
        """Whether they were to be compiled, and had fallen back to eager ones by the checkpoint."""
        return self.description == "eager" and self.compile_update is True


def choose_compilation(
    learner: Learner,
    trainer: L.Trainer,
    compile_update: bool | None,
    num_updates: int,
    minibatch_size: int,
    before: UpdatesBefore | None,
) -> None:
    """Compile a learner's updates, or leave them eager and say why.

    Args:
        learner: Of the fit that begins.
        trainer: Its precision and debugging may forbid it.
        compile_update: The setting; ``None`` means as the resumed run, else by the rule.
        num_updates: Of the whole run, as planned.
        minibatch_size: Samples of an update.
        before: Of the resumed run, if there is one.

    Raises:
        UsageError: If the setting is true and compiling is not possible.
        RunFailure: If it is true and the compiler failed this time.
    """
    wanted = compile_update
    if wanted is None and before is not None:
        wanted = before.were_compiled
    by_rule = wanted is None
    if by_rule:
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
        _compile(learner, minibatch_size, num_updates if by_rule else None)
    except CompilationError as error:
        if compile_update and isinstance(error, CompilerFailure):
            raise RunFailure(
                f"compile_update=true: {error}; give the command again with memory and disk to spare, or use false"
            ) from error
        if compile_update:
            raise UsageError(f"compile_update=true cannot be had: {error}; use null or false") from error
        rank_zero_info(f"Updates are not compiled: {error}.")


def _compile(learner: Learner, minibatch_size: int, num_updates: int | None) -> None:
    """By the generator or, what that has no source for, by Inductor.

    Args:
        learner: Of the fit that begins.
        minibatch_size: Samples of an update.
        num_updates: Of the whole run, by which Inductor has to pay; ``None`` if it need not.

    Raises:
        CompilationError: If it cannot be had.
    """
    try:
        learner.compile(minibatch_size)
    except UnsupportedOperation as error:
        if num_updates is not None and not learner.is_worth_compiling(num_updates // INDUCTOR_TAKES, minibatch_size):
            raise
        learner.compile(minibatch_size, InductorCompiled)
        rank_zero_info(f"Updates are compiled by Inductor: {error}.")
