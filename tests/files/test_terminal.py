"""What a file says is shown, and never obeyed by the terminal."""

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

import pl_rl
from pl_rl import cli
from pl_rl.callbacks import resume_state
from pl_rl.cli.parsing import fail
from pl_rl.files.terminal import printable
from pl_rl.tools.plotting import plot_runs
from tests.resume.test_resume import last_of, train

ESCAPE = "\x1b]0;title\x07\x9b2J\u202e\ud800[bold]"
SHOWN = r"\x1b]0;title\x07\x9b2J\u202e\ud800[bold]"


def test_control_characters_are_shown():
    assert printable(ESCAPE) == SHOWN
    assert printable("ä → 日本\n  b") == "ä → 日本   b"


def test_an_error_is_one_line_of_a_bounded_length(capsys):
    with pytest.raises(SystemExit):
        fail(pl_rl.UsageError(f"{ESCAPE}\n{'x' * 10_000} use another"), status=2)
    err = capsys.readouterr().err
    assert SHOWN in err and err.count("\n") == 1 and len(err) < 2100 and err.endswith("use another\n")


def test_a_checkpoints_text_is_shown_by_inspect_and_by_a_resume(tmp_path, capsys, monkeypatch):
    train(tmp_path, 1)
    path = last_of(tmp_path)
    content = torch.load(path, weights_only=True)
    content["pl_rl"]["platform"]["machine"] = ESCAPE
    content["pl_rl"]["parent"] = {"checkpoint": ESCAPE, "train_iter": 1, "env_steps": 1}
    content["hyper_parameters"]["own"] = ESCAPE
    torch.save(content, path)
    output = io.StringIO()
    monkeypatch.setattr(resume_state, "Console", lambda: Console(file=output, width=200))
    capsys.readouterr()
    cli.main(["inspect", str(path)])
    train(tmp_path, 2, path)
    for text in (capsys.readouterr().out, output.getvalue()):
        assert "\x1b" not in text and "\x9b" not in text and "\u202e" not in text
        assert "[bold]" in text


@pytest.mark.slow
def test_a_folders_name_is_no_formula(tmp_path):
    train(tmp_path, 1)
    run = last_of(tmp_path).parents[1]
    odd = run.rename(run.with_name("$\\frac$ \x1b[2J"))
    assert [path.name for path in plot_runs([odd], Path("plots"))] == ["evaluator_iter.png", "evaluator_step.png"]
