"""The progress bar where there is no terminal, such as in a job's log file, and where there is one."""

import re

from pl_rl.algorithm.evaluation import format_return
from pl_rl.callbacks import RunProgressBar
from tests.support import MemoryLogger, fit, small_ppo


def output_of_a_run(capsys, **settings):
    model, logger = small_ppo(**settings), MemoryLogger()
    fit(model, logger=logger, callbacks=[RunProgressBar()], enable_progress_bar=True)
    return capsys.readouterr().out, logger


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


def test_a_terminal_sees_the_bar_in_words_of_reinforcement_learning(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    out, _ = output_of_a_run(capsys, eval_freq=16)
    for words in ("iteration", "/512 env steps", "return", "evaluated", "steps/s", "left"):
        assert words in out
