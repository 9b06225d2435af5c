"""A run's own record of its evaluations, whatever its loggers: a small CSV file in its directory."""

import csv
import io
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from pl_rl.files.writing import is_regular, open_regular, reading, write_whole

EVALUATIONS = "evaluations.csv"
SEGMENT, TRAIN_ITER, ENV_STEPS = "segment", "train_iter", "env_steps"


def begin_segment(run: Path, train_iter: int | None) -> int:
    """Take away what was recorded after a point, and count the processes that trained the run until there.

    Args:
        run: The run's directory.
        train_iter: Of the last evaluation to keep; ``None`` keeps none.

    Returns:
        The number of the present process.

    Raises:
        OSError: If the file cannot be written.
    """
    path = run / EVALUATIONS
    if not is_regular(path):
        return 0
    rows = [row for row in read_evaluations(run) if train_iter is not None and row[TRAIN_ITER] <= train_iter]
    # A new file, as other names of this one (hard links) are other people's.
    write_whole(path, _text(rows, header=True))
    return 1 + int(max((row[SEGMENT] for row in rows), default=-1))


def add_evaluation(run: Path, segment: int, train_iter: int, env_steps: int, statistics: Mapping[str, float]) -> None:
    """Record an evaluation.

    Args:
        run: The run's directory.
        segment: From :func:`begin_segment`.
        train_iter: Gradient updates until then.
        env_steps: Transitions until then.
        statistics: Of its episodes.

    Raises:
        OSError: If the file cannot be written.
    """
    row = {SEGMENT: segment, TRAIN_ITER: train_iter, ENV_STEPS: env_steps, **statistics}
    names = _columns(run / EVALUATIONS)
    if names and not row.keys() <= set(names):  # an episode's info has told of something new
        write_whole(run / EVALUATIONS, _text([*read_evaluations(run), row], header=True))
        return
    descriptor = open_regular(run / EVALUATIONS, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with os.fdopen(descriptor, "ab") as file:
        file.write(_text([row], header=not names, names=names))


def read_evaluations(run: Path) -> list[dict[str, float]]:
    """What was recorded, in order; a line that is none, such as one that was being written, is left out."""
    path = run / EVALUATIONS
    if not is_regular(path):
        return []
    with reading(path) as file:
        lines = file.read().decode(errors="replace").splitlines(keepends=True)
    rows = []
    for cells in csv.DictReader(line for line in lines if line.endswith("\n")):
        try:
            row = {name: float(cell) for name, cell in cells.items() if cell != ""}
        except (TypeError, ValueError):
            continue
        if {SEGMENT, TRAIN_ITER, ENV_STEPS} <= row.keys():
            rows.append(row)
    return rows


def _columns(path: Path) -> list[str]:
    """The names of the columns; none where there is no file, or nothing in it."""
    if not is_regular(path):
        return []
    with reading(path) as file:
        return next(csv.reader([file.readline().decode(errors="replace")]), [])


def _text(rows: list[dict[str, float]], header: bool, names: Collection[str] = ()) -> bytes:
    """Rows of the columns that are named, or of all that any of them has."""
    text = io.StringIO(newline="")
    if rows:
        names = names or dict.fromkeys(name for row in rows for name in row)
        writer = csv.DictWriter(text, list(names), lineterminator="\n")
        if header:
            writer.writeheader()
        for row in rows:
            counts = {name: int(row[name]) for name in (SEGMENT, TRAIN_ITER, ENV_STEPS)}
            writer.writerow({**row, **counts})
    return text.getvalue().encode()
