"""Source code without comments and docstrings, so that rewording one changes no digest of the code."""

import ast
import re
from functools import cache

# What is in quotes is kept, as a mark in it begins no comment.
PYTHON = re.compile(r'("""(?:\\.|[^\\])*?"""|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\')|#[^\n]*', re.DOTALL)
CPP = re.compile(r'("(?:\\.|[^"\\\n])*")|//[^\n]*|/\*.*?\*/', re.DOTALL)


@cache
def strip_python(text: str) -> str:
    """A module without comments, docstrings and empty lines, every other line as it stands.

    It cuts the text rather than printing the syntax tree, whose form differs between versions of Python.
    """
    lines = _strip(PYTHON, text)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for number in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[number] = ""
    return _without_empty(lines)


@cache
def strip_cpp(text: str) -> str:
    """C++ without comments and empty lines."""
    return _without_empty(_strip(CPP, text))


def _strip(quoted_or_comment: re.Pattern[str], text: str) -> list[str]:
    """The lines, as many as before."""
    return quoted_or_comment.sub(lambda match: match[1] or "\n" * match[0].count("\n") or " ", text).split("\n")


def _without_empty(lines: list[str]) -> str:
    return "\n".join(line.rstrip() for line in lines if line.strip())
