"""Words that a shell completes: those that the parsers have."""

import subprocess
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

from pl_rl import cli


@pytest.fixture
def words(monkeypatch):
    """What a stand-in for shtab, which may not be installed, is given: options and choices by verb."""
    found = {}

    def complete(parser, shell):
        (verbs,) = (action for action in parser._actions if action.choices)
        for name, verb in verbs.choices.items():
            found[name] = {
                option: (action.choices, getattr(action, "complete", None))
                for action in verb._actions
                for option in action.option_strings or [action.dest]
            }
        return f"for {shell}"

    shtab = ModuleType("shtab")
    shtab.__spec__ = ModuleSpec("shtab", None)
    shtab.FILE, shtab.complete = "files", complete
    monkeypatch.setitem(sys.modules, "shtab", shtab)
    return found


def test_each_verb_has_its_options(words, capsys):
    cli.main(["--print_completion", "bash"])
    assert capsys.readouterr().out == "for bash"
    assert list(words) == list(cli.VERBS)
    assert {"--config", "--model.gamma", "--trainer.max_epochs", "--eval.video_freq", "--ckpt_path"} <= set(
        words["fit"]
    )
    assert {"--gif", "--render"} <= set(words["predict"])
    assert words["plot"]["--returns"][0] == ("evaluation", "training")
    assert words["fit"]["--config"][1] == words["inspect"]["checkpoint"][1] == "files"
    assert words["fit"]["--model.gamma"][1] is None


@pytest.mark.parametrize("args", [["--print_completion"], ["--print_completion=fish"]])
def test_another_shell_is_refused(args, words, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(args)
    assert ended.value.code == 2
    assert "use --print_completion bash, zsh or tcsh" in capsys.readouterr().err


def test_the_package_is_named_where_it_is_missing(monkeypatch, capsys):
    monkeypatch.setattr("pl_rl.cli.completion.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        cli.main(["--print_completion", "bash"])
    assert ended.value.code == 2
    assert "[completion]" in capsys.readouterr().err


def test_bash_completes(tmp_path, capsys):
    pytest.importorskip("shtab")
    cli.main(["--print_completion", "bash"])
    script = tmp_path / "completion.sh"
    script.write_text(capsys.readouterr().out)
    asked = "COMP_WORDS=(pl-rl fit --model.ga); COMP_CWORD=2; _shtab_pl_rl; echo ${COMPREPLY[@]}"
    done = subprocess.run(["bash", "-c", f"source {script}; {asked}"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["--model.gamma", "--model.gae_lambda"]
