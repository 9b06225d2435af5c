"""The progress bar where there is no terminal, such as in a job's log file, and where there is one."""

import io
import re

import pytest
from rich.console import Console

from pl_rl.algorithm.evaluation import format_return
from pl_rl.callbacks import RunProgressBar
from pl_rl.callbacks.progress import bar_words, compact
from tests.support import MemoryLogger, fit, small_ppo


def output_of_a_run(capsys, **settings):
    model, logger = small_ppo(**settings), MemoryLogger()
    fit(model, logger=logger, callbacks=[RunProgressBar()], enable_progress_bar=True)
    return capsys.readouterr().out, logger


@pytest.mark.slow
def test_each_evaluation_is_a_line_where_there_is_no_terminal(capsys):
    out, logger = output_of_a_run(capsys, eval_freq=16)
    lines = [line for line in out.splitlines() if line.startswith("train_iter")]
    returns = logger.values("evaluator_iter/return_mean")
    assert len(lines) == len(returns) == 3
    for line, (train_iter, env_steps), latest, best in zip(
        lines,
        [(0, 0), (16, 256), (32, 512)],
        returns,
        [max(returns[: i + 1]) for i in range(3)],
        strict=True,
    ):
        assert line.startswith(f"train_iter {train_iter}  env_steps {env_steps}/512  ")
        assert f"evaluation return {format_return(latest)} (best {format_return(best)})" in line
        assert re.search(r"[\d,]+ steps/s$", line)


def test_large_numbers_are_grouped(capsys):
    out, _ = output_of_a_run(capsys, eval_freq=32, total_env_steps=1024, num_steps=256, minibatch_size=1024)
    assert "env_steps 0/1,024" in out


def test_without_evaluation_nothing_is_printed(capsys):
    assert output_of_a_run(capsys, eval_freq=0)[0] == ""


@pytest.mark.slow
def test_a_terminal_sees_the_bar_in_words_of_reinforcement_learning(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    out, _ = output_of_a_run(capsys, eval_freq=16)
    for words in ("/512 steps", "return", "eval", "/s", "left"):
        assert words in out


@pytest.mark.parametrize("width", range(10, 130))
def test_a_narrow_terminal_loses_columns_and_no_letters(width):
    parts = ["12.5k/2M steps", "return 75.4", "eval 390.1", "596/s", "1:00:55 left"]
    words = bar_words(parts, width)
    shown = words.split(" · ") if words else []
    assert [part for part in parts if part in shown] == shown
    assert len(words) + 1 + 10 <= width or not words
    if width >= 80:
        assert shown == parts
    wider = bar_words(parts, width + 1)
    assert set(shown) <= set(wider.split(" · "))


@pytest.mark.slow
def test_at_80_columns_a_terminal_sees_each_part_and_a_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    bar = RunProgressBar()
    bar._console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    fit(small_ppo(eval_freq=16), callbacks=[bar], enable_progress_bar=True)
    lines = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "\n", bar._console.file.getvalue()).splitlines()
    drawn = [line for line in lines if "steps · " in line]
    assert drawn and all(line.endswith("left") and len(line) <= 80 for line in drawn)
    assert all(
        re.match(r"[━╸╺ ]{10,} \d+/512 steps · return \S+ · eval \S+ · \S+/s · \S+ left$", line) for line in drawn
    )


def test_numbers_have_three_digits():
    numbers = [0, 7, 999, 1000, 12_544, 99_949, 999_499, 999_500, 2_000_000, 1_234_567_890]
    assert [compact(number) for number in numbers] == (
        ["0", "7", "999", "1k", "12.5k", "99.9k", "999k", "1M", "2M", "1.23G"]
    )
