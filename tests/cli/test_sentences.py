"""Each wrong command is answered by one sentence; and words that only look wrong are taken."""

import re
from pathlib import Path

import pytest
import yaml

from pl_rl import cli
from pl_rl.cli.sentences import ALIASES, nearest_option, said_by_library
from tests.sentences import CASES, FIT, answer, fault_of, write_files
from tests.support import counters_in


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_files()
        assert answer(FIT)[0] == 0
    return folder


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(arg for arg in case.args if arg not in FIT[1:]))
def test_a_wrong_command_is_answered_by_one_sentence(case, trained, monkeypatch):
    if case.with_run:
        monkeypatch.chdir(trained)
    else:
        write_files()
    fault, text = fault_of(case)
    assert fault is None, f"{fault}: {text}"
    assert case.with_run or not Path("lightning_logs").exists(), "nothing was begun"


@pytest.mark.slow
@pytest.mark.parametrize("number", ["1e2", "1E2", "1e+2"])
def test_a_whole_number_may_be_written_with_an_exponent(number):
    write_files()
    Path("small.yaml").write_text(Path("small.yaml").read_text().replace("128", number))
    assert answer(FIT)[0] == 0
    assert answer([*FIT, "--model.total_env_steps", number])[0] == 0
    assert answer([*FIT, f"--model.total_env_steps={number}", "--model.learning_rate", "1e-3"])[0] == 0
    for version in range(3):
        settings = yaml.safe_load(Path(f"lightning_logs/version_{version}/config.yaml").read_text())["model"]
        assert settings["total_env_steps"] == 100 and isinstance(settings["total_env_steps"], int)
    assert settings["learning_rate"] == 1e-3


def test_a_number_of_another_kind_stays_what_it_was():
    write_files()
    kwargs = "{a: 1.0e2, b: 1e-2, c: 0.5, d: '1e3', e: 1e3}"
    settings = yaml.load(kwargs, cli.parsing._CheckedLoader)
    assert repr(settings) == "{'a': 100.0, 'b': 0.01, 'c': 0.5, 'd': '1e3', 'e': 1000}"


@pytest.mark.slow
def test_a_drawn_seed_is_said_kept_and_another_each_time(capsys):
    write_files()
    seeds = []
    for version in range(2):
        cli.main([*FIT, "--seed_everything", "true"])
        said = re.search(r"seed: (\d+), drawn; --seed_everything \1 repeats the run", capsys.readouterr().out)
        run = Path(f"lightning_logs/version_{version}")
        assert yaml.safe_load((run / "config.yaml").read_text())["seed_everything"] == int(said[1])
        assert counters_in(run / "checkpoints/last.ckpt")["run_seed"] == int(said[1])
        seeds.append(said[1])
    assert seeds[0] != seeds[1]
    cli.main(["fit", "--ckpt_path", "last", "--model.total_env_steps", "256", "--seed_everything", "true"])
    assert "drawn" not in capsys.readouterr().out
    assert counters_in(run / "checkpoints/last.ckpt")["run_seed"] == int(seeds[1])


@pytest.mark.slow
def test_every_alias_leads_to_an_option_that_there_is(capsys):
    for option in ("--help", "--help_trainer"):
        with pytest.raises(SystemExit):
            cli.main(["predict", option])
    there = set(re.findall(r"--[\w.]+", capsys.readouterr().out)) | {"--model.network.init_args.activation"}
    assert {f"--{name}" for name in ALIASES} <= there
    for name, aliases in ALIASES.items():
        for alias in aliases.split():
            assert nearest_option(alias, sorted(there)) == f"--{name}", alias


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    write_files()
    assert said_by_library(ValueError("ours")) is None

    def broken(*_):
        raise ValueError("a fault of ours")

    monkeypatch.setattr("pl_rl.callbacks.RunCheckpoint.on_train_start", broken)
    assert answer(FIT)[0] == "traceback"


@pytest.mark.slow
def test_a_callback_of_lightning_that_refuses_in_the_middle_says_so_in_one_line():
    write_files()
    status, text = answer([*FIT, "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor", "nosuch"])
    assert status == 2
    assert re.search(r"^error: Early stopping conditioned on metric `nosuch`", text, re.MULTILINE)


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_an_evaluation_is_a_table_and_nothing_else(verb, trained, monkeypatch, capfd):
    monkeypatch.chdir(trained)
    cli.main([verb, "--ckpt_path", "last"])
    out, err = capfd.readouterr()
    rows = re.findall(r"│ (\w+)\s+│\s+([\d.,]+) │\s+([\d.,]+) │", out)
    assert [name for name, _, _ in rows] == ["mean", "std", "min", "max"]
    assert "2 episodes" in out and "DataLoader" not in out and "━━ 1/1" not in out
    assert "Restoring states" not in out + err and "Loaded model weights" not in out + err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("--trainer.fast_dev_run true", "fast_dev_run, which saves nothing"),
        ("--trainer.max_epochs 1", "max_epochs=1 reached"),
        ("--trainer.max_steps 2", "max_steps=2 reached"),
    ],
)
def test_what_ended_a_run_is_named_and_the_commands_do_what_they_say(option, reason, capsys):
    write_files()
    cli.main([*FIT, *option.split()])
    out = capsys.readouterr().out
    assert reason in out
    go_on = re.findall(r"^go on: python -m pl_rl (.*)$", out, re.MULTILINE)
    if "fast_dev_run" in option:
        assert not go_on and "last.ckpt" not in out
        return
    before = counters_in("lightning_logs/version_0/checkpoints/last.ckpt")["env_steps"]
    cli.main(go_on[0].split())
    assert counters_in("lightning_logs/version_0/checkpoints/last.ckpt")["env_steps"] > before


@pytest.mark.slow
def test_after_early_stopping_no_command_is_printed_that_does_nothing(capsys):
    write_files()
    stopping = "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor evaluator/return_mean"
    args = f"{stopping} --trainer.callbacks.mode min --trainer.callbacks.patience 1 --model.total_env_steps 2000"
    cli.main([*FIT, *args.split()])
    out = capsys.readouterr().out
    assert re.search(r"ended +│ EarlyStopping of evaluator/return_mean", out)
    assert "go on: python" not in out and "watch: python" in out
    assert "go on, with a larger patience of EarlyStopping or without it: python" in out
