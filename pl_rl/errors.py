"""What a user can get wrong, said in one sentence.

The command line turns a :class:`UsageError` into exit status 2 and a :class:`RunFailure` into exit status 1;
in a script they are ordinary exceptions. :class:`Interrupted` is what ends a run that a signal asks to leave.
"""

import signal
from pathlib import Path

# By module.
_EXTRAS = {
    "Box2D": "box2d",
    "ale_py": "atari",
    "cv2": "atari",
    "huggingface_hub": "hub",
    "minigrid": "minigrid",
    "moviepy": "video",
    "mujoco": "mujoco",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "pygame": "video",
    "safetensors": "safetensors",
}


def installation(extra: str) -> str:
    """The command that installs an extra: from the clone where this is one, else from the package index."""
    clone = Path(__file__).parents[1]
    if not (clone / "pyproject.toml").is_file():
        return f'pip install "pl-rl[{extra}]"'
    return f'pip install -e "{"." if clone == Path.cwd() else clone}[{extra}]"'


def missing_package(error: BaseException) -> str | None:
    """A module that could not be imported and how to install it, for the end of a sentence; ``None`` if all could."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ModuleNotFoundError) and cause.name is not None:
            module = cause.name.partition(".")[0]
            extra = _EXTRAS.get(module)
            return f"{module} is not installed; {installation(extra) if extra else f'pip install {module}'}"
        cause = cause.__cause__ or cause.__context__
    return None


class UsageError(ValueError):
    """A value that cannot work; the message names the value, the reason and the way out."""


class CompilationError(Exception):
    """Why a function cannot be compiled, in words."""


class UnsupportedOperation(CompilationError):
    """The generator has no source for what a network does."""


class CompilerFailure(CompilationError):
    """Why the compiler did not come to its end this time, though another time it may: it was killed, or lacked room."""


class RunFailure(RuntimeError):
    """Something failed while a well-formed request was carried out."""


class EnvironmentFailure(RunFailure):
    """An environment did what environments must not do; a traceback of its own is among the exception's notes.

    Args:
        index: Which of the environments that are stepped together.
        what: What it did, as the rest of a sentence that begins with its name.

    Attributes:
        step: Of the rollout or evaluation in which it happened, counted from 1; ``None`` outside of them.
        when: When it happened, in words.
        way_out: What can be done, in words.
    """

    def __init__(self, index: int, what: str) -> None:
        super().__init__(index, what)
        self.index = index
        self.what = what
        self.step: int | None = None
        self.when = ""
        self.way_out = ""

    def __str__(self) -> str:
        when = f", {self.when}" if self.when else ""
        way_out = f"; {self.way_out}" if self.way_out else ""
        return f"environment {self.index} {self.what}{when}{way_out}"


class Interrupted(SystemExit):
    """Ends the process with the status that the signal has; 0 for SIGALRM, by which a time limit ends a run.

    Attributes:
        signum: The signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(0 if signum == signal.SIGALRM else 128 + signum)
        self.signum = signum

    @property
    def name(self) -> str:
        """The signal for people."""
        return "max_time" if self.signum == signal.SIGALRM else signal.Signals(self.signum).name
