"""What a user can get wrong, said in one sentence.

The command line turns a :class:`UsageError` into exit status 2 and a :class:`RunFailure` into exit status 1;
in a script they are ordinary exceptions.
"""


class UsageError(ValueError):
    """A value that cannot work; the message names the value, the reason and the way out."""


class CompilationError(Exception):
    """Why a function cannot be compiled, in words."""


class RunFailure(RuntimeError):
    """Something failed while a well-formed request was carried out."""
