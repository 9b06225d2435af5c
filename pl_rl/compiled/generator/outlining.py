"""Outlining: steps that are the same but for where they read and write become one function, which each of them calls.

A network with a memory is traced through its sequences step by step; written out, the source of one would be as many
times as long, and take as many times as long to compile.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from pl_rl.compiled.generator.loops import Buffer, type_name

# Where fewer steps are the same, as in a network without a memory, calls would save nothing.
OFTEN = 16
PLACE = re.compile(r"\b(b\d+)(?: \+ (\d+)\b|\[(\d+)(?: \+ |(?=\])))?")
"""A buffer's name, with the offset that follows it: ``b1``, ``b1 + 64``, ``b1[64 + i0]``, ``b1[64]``."""


def outline(steps: Sequence[list[str]], buffers: Iterable[Buffer]) -> tuple[list[str], list[list[str]]]:
    """Lines of functions, and of the steps, of which some are calls of these.

    Args:
        steps: Lines in C++.
        buffers: That they read and write.
    """
    types = {buffer.name: type_name(buffer.dtype) for buffer in buffers}
    parametrized = [_parametrized(lines, types) for lines in steps]
    counts = Counter(function for function, _ in parametrized)
    often = [function for function, count in counts.items() if count >= OFTEN and "return" not in function]
    names = {function: f"step{number}" for number, function in enumerate(often)}
    # Not inlined, which would undo it.
    functions = [f"static __attribute__((noinline)) void {name}{function}" for function, name in names.items()]
    written = [
        [f"{names[function]}({', '.join([*places, 'panel'])});"] if function in names else lines
        for lines, (function, places) in zip(steps, parametrized, strict=True)
    ]
    return functions, written


def _parametrized(lines: Sequence[str], types: dict[str, str]) -> tuple[str, list[str]]:
    """A step as a function, from its parameters on, and the places in memory that it is called with."""
    parameters: dict[str, str] = {}
    declared: list[str] = []

    def parameter(match: re.Match[str]) -> str:
        name, added, first = match.groups()
        place = f"{name} + {added or first or 0}"
        if place not in parameters:
            parameters[place] = f"p{len(parameters)}"
            declared.append(f"{types[name]}* const {parameters[place]}")
        # An index begins where the parameter points to.
        index = "" if first is None else "[" if match[0].endswith(" ") else "[0"
        return parameters[place] + index

    body = [f"  {PLACE.sub(parameter, line)}" for line in lines]
    head = f"({', '.join([*declared, 'float* const panel'])}) {{"
    return "\n".join([head, *body, "}"]), list(parameters)
