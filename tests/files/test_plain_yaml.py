"""YAML is plain data of a sane size, wherever it is read."""

import time
from pathlib import Path

import pytest
import yaml

import pl_rl
from pl_rl import cli
from pl_rl.files.plain_yaml import parse_yaml, read_yaml
from pl_rl.runs.directory import run_begun_by
from tests.support import SMALL

NESTED = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 13)
)
MERGED = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 9)
)  # fmt: skip
LONG = "a: &a " + "x" * 100_000 + "\nb: [" + "*a," * 1000 + "]"
TOO_MUCH = {
    "aliases of aliases": (NESTED, "characters by its aliases"),
    "merged aliases": (MERGED, "characters by its aliases"),
    "aliases of a long text": (LONG, "characters by its aliases"),
    "itself": ("a: &a [*a]", r"an alias \*a inside of what it stands for"),
    "lists in lists": ("a: " + "[" * 500 + "]" * 500, "nests deeper than 64 levels"),
    "dictionaries in dictionaries": ("{a: " * 500 + "1" + "}" * 500, "nests deeper than 64 levels"),
    "lists by dashes": ("- " * 500 + "x", "nests deeper than 64 levels"),
    "very deep": ("[" * 20_000 + "]" * 20_000, "nesting depth|nests deeper"),
    "depth by aliases": ("- &a0 x\n" + "".join(f"- &a{i} [*a{i - 1}]\n" for i in range(1, 100)), "nests deeper"),
    "many digits": ("a: " + "9" * 5000, "a number of 5,000 digits"),
    "many digits in base 60": ("a: 1" + ":59" * 50_000, "a number of 150,001 digits"),
    "long": ("#" * 300_000, "characters|bytes"),
}
NO_YAML = [
    "a: \0",
    "a: 2024-99-99",
    "a: !!int abc",
    "!!timestamp abc",
    "? [1, 2]\n: 3",
    "a: [1, 2",
    "--- a\n--- b",
    "*b",
]


def error_of(capsys, *args):
    started = time.process_time()
    with pytest.raises(SystemExit) as end:
        cli.main(["fit", "--trainer.max_epochs", "0", *args])
    assert end.value.code == 2 and time.process_time() - started < 1.5  # of which the parser is the most
    sentence = capsys.readouterr().err
    assert sentence.count("\n") == 1 and len(sentence) < 2100
    return sentence


@pytest.mark.parametrize(("text", "reason"), TOO_MUCH.values(), ids=TOO_MUCH)
def test_what_stands_for_too_much_is_refused_at_once(text, reason):
    started = time.process_time()
    with pytest.raises(pl_rl.UsageError, match=reason):
        parse_yaml(text)
    Path("a.yaml").write_text(text)
    with pytest.raises(pl_rl.UsageError, match=rf"config file 'a\.yaml' .*({reason})"):
        read_yaml(Path("a.yaml"))
    assert time.process_time() - started < 1


@pytest.mark.parametrize("text", NO_YAML)
def test_what_is_no_yaml_is_one_sentence(text):
    with pytest.raises(pl_rl.UsageError, match=r"is not valid YAML: [^\n]+$"):
        parse_yaml(text)


def test_small_aliases_and_other_encodings_are_read():
    assert parse_yaml("env: &env {id: x}\nb: *env\nc:\n  <<: *env\n  d: 1") == {
        "env": {"id": "x"}, "b": {"id": "x"}, "c": {"id": "x", "d": 1},
    }  # fmt: skip
    assert parse_yaml("a: " + "9" * 300) == {"a": int("9" * 300)}
    assert parse_yaml("a: '" + "9" * 5000 + "'") == {"a": "9" * 5000}
    Path("a.yaml").write_bytes("a: 1".encode("utf-8-sig"))
    assert read_yaml(Path("a.yaml")) == {"a": 1}
    Path("a.yaml").write_bytes("a: 1".encode("utf-16"))
    with pytest.raises(pl_rl.UsageError, match="is not text in UTF-8"):
        read_yaml(Path("a.yaml"))


@pytest.mark.slow
def test_the_command_line_refuses_it_in_every_file_that_it_opens(capsys):
    Path("bomb.yaml").write_text(NESTED)
    Path("model.yaml").write_text("model: bomb.yaml\n")
    Path("trainer.yaml").write_text("trainer: bomb.yaml\nmodel:\n  env: CartPole-v1\n")
    Path("config.yaml").write_text("config: bomb.yaml\nmodel:\n  env: CartPole-v1\n")
    within = {"model": {"env": {"id": "CartPole-v1", "kwargs": "{" + NESTED.replace("\n", ", ") + "}"}}}
    Path("value.yaml").write_text(yaml.safe_dump(within))
    for name in ("bomb", "model", "trainer", "config", "value"):
        assert "characters by its aliases" in error_of(capsys, "--config", f"{name}.yaml"), name
    assert "characters by its aliases" in error_of(capsys, "--model", "bomb.yaml")


@pytest.mark.parametrize("option", ["env.kwargs", "num_envs", "learning_rate"])
def test_the_command_line_refuses_it_as_a_value(option, capsys):
    env = ["--model.env.id", "CartPole-v1"]
    bomb = "{" + NESTED.replace("\n", ", ") + "}"
    assert "characters by its aliases" in error_of(capsys, *env, f"--model.{option}", bomb)
    assert "error: " in error_of(capsys, *env, f"--model.{option}", "[" * 3000 + "]" * 3000)
    assert "error: " in error_of(capsys, *env, f"--model.{option}", "9" * 5000)
    assert "error: " in error_of(capsys, *env, f"--model.{option}", "!!timestamp abc")


@pytest.mark.parametrize("broken", [NESTED, "[" * 20_000, "a: 2024-99-99", "!!timestamp x", "a: \0", "\udcff"])
def test_a_broken_note_of_one_run_leaves_the_others_alone(broken):
    for version, text in enumerate((yaml.safe_dump({"command": ["fit"]}), broken)):
        folder = Path("lightning_logs", f"version_{version}")
        folder.mkdir(parents=True)
        (folder / "command.yaml").write_bytes(text.encode(errors="surrogateescape"))
    assert run_begun_by(["fit"], Path("lightning_logs")) == Path("lightning_logs/version_0")


@pytest.mark.slow
def test_a_runs_own_configuration_that_stands_for_too_much_is_refused(capsys):
    Path("small.yaml").write_text(yaml.safe_dump({"model": SMALL}))
    cli.main(["fit", "--config", "small.yaml", "--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false"])
    for name in ("config.yaml", "config_resume1.yaml"):
        Path("lightning_logs/version_0", name).write_text(NESTED)
        assert f"{name}' stands for more than" in error_of(capsys, "--ckpt_path", "last")
