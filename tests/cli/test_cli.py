"""The command line, called in this process unless the test is about a process."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from pl_rl import cli
from tests.support import counters_in, event_scalars, read_checkpoint, same_bits

REPOSITORY = Path(__file__).parents[2]

# Two iterations of 64 env steps, each with 4 updates.
SMALL = {
    "model": {
        "env": {"id": "CartPole-v1"},
        "total_env_steps": 128,
        "num_envs": 4,
        "num_steps": 16,
        "update_epochs": 2,
        "minibatch_size": 32,
        "eval_freq": 4,
        "eval_episodes": 2,
    }
}


@pytest.fixture
def config():
    """A small configuration file in the working directory."""
    Path("small.yaml").write_text(yaml.safe_dump(SMALL))
    return "small.yaml"


@pytest.fixture
def run(config, capsys):
    """A run, ``lightning_logs/version_0``."""
    cli.main(["fit", "--config", config])
    capsys.readouterr()
    return Path("lightning_logs/version_0")


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


@pytest.mark.slow
def test_fit_leaves_a_run_behind(config, capsys):
    cli.main(["fit", "--config", config])
    run = Path("lightning_logs/version_0")
    assert {"checkpoints/best.ckpt", "checkpoints/last.ckpt", "config.yaml", "hparams.yaml"} <= set(files_in(run))
    assert counters_in(run / "checkpoints/last.ckpt")["env_steps"] == 128
    assert {"evaluator_iter/return_mean", "evaluator_step/return_mean"} <= set(event_scalars(run))
    assert "total_env_steps=128 reached" in capsys.readouterr().out


@pytest.mark.slow
def test_a_shipped_config_is_found_by_its_name_from_any_folder():
    for name in ("cartpole.yaml", "cartpole"):
        cli.main(["fit", "--config", name, "--trainer.max_epochs", "1", "--model.eval_freq", "0"])
    saved = yaml.safe_load(Path("lightning_logs/version_1/config.yaml").read_text())
    assert saved["model"]["network"]["init_args"]["encoder_sizes"] == [64, 64, 128]


def test_a_file_here_comes_before_a_shipped_one():
    Path("cartpole.yaml").write_text(yaml.safe_dump(SMALL))
    cli.main(["fit", "--config", "cartpole.yaml", "--trainer.max_epochs", "1"])
    saved = yaml.safe_load(Path("lightning_logs/version_0/config.yaml").read_text())
    assert saved["model"]["total_env_steps"] == 128


def test_an_environment_alone_is_enough():
    cli.main(["fit", "--model.env", "CartPole-v1", "--model.total_env_steps", "1", "--model.eval_freq", "0"])
    assert counters_in("lightning_logs/version_0/checkpoints/last.ckpt")["env_steps"] == 8 * 128


def test_the_command_line_comes_before_the_config(config):
    cli.main(["fit", "--config", config, "--model.total_env_steps", "64", "--seed_everything", "5"])
    counters = counters_in("lightning_logs/version_0/checkpoints/last.ckpt")
    assert (counters["env_steps"], counters["run_seed"]) == (64, 5)


def test_a_run_reproduces_itself_and_another_seed_does_not(config):
    for seed in ("1", "1", "2"):
        cli.main(["fit", "--config", config, "--seed_everything", seed, "--trainer.log_every_n_steps", "1"])
    weights = [read_checkpoint(f"lightning_logs/version_{i}/checkpoints/last.ckpt")["state_dict"] for i in range(3)]
    assert same_bits(weights[0], weights[1])
    assert not same_bits(weights[0], weights[2])
    one, same = (event_scalars(f"lightning_logs/version_{i}") for i in range(2))
    del one["time/env_steps_per_second"], same["time/env_steps_per_second"]
    assert repr(one) == repr(same)


def test_the_saved_config_reproduces_the_run(run):
    cli.main(["fit", "--config", str(run / "config.yaml")])
    again = Path("lightning_logs/version_1")
    weights = [read_checkpoint(path / "checkpoints/last.ckpt")["state_dict"] for path in (run, again)]
    assert same_bits(*weights)


@pytest.mark.slow
def test_hyperparameters_are_in_the_run(run):
    hyperparameters = yaml.safe_load((run / "hparams.yaml").read_text())
    assert hyperparameters["env"]["id"] == "CartPole-v1"
    assert hyperparameters["network"]["class_path"] == "pl_rl.networks.MLPActorCritic"


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
@pytest.mark.parametrize("checkpoint", ["last", "best.ckpt", "lightning_logs/version_0/checkpoints/last.ckpt"])
def test_a_checkpoint_is_evaluated_and_nothing_is_left_behind(verb, checkpoint, run, capsys):
    before = files_in(".")
    cli.main([verb, "--ckpt_path", checkpoint])
    out = capsys.readouterr().out
    assert {"validate": "2 episodes", "test": "2 episodes", "predict": "episode"}[verb] in out
    # A bare name may mean any run, so the one chosen is named.
    assert ("checkpoint: lightning_logs/version_0/checkpoints/" in out) == ("/" not in checkpoint)
    assert files_in(".") == before


@pytest.mark.slow
def test_validate_shows_the_number_that_fit_logged(run, capsys):
    returns = [value for _, value in event_scalars(run)["evaluator_iter/return_mean"]]
    cli.main(["validate", "--ckpt_path", "best"])
    shown = re.search(r"│ mean\s+│\s+([\d.]+)", capsys.readouterr().out)
    assert float(shown[1]) == pytest.approx(max(returns), abs=0.005)


@pytest.mark.slow
def test_a_bare_name_means_the_newest_run(run, config, capsys):
    cli.main(["fit", "--config", config])
    capsys.readouterr()
    cli.main(["validate", "--ckpt_path", "last"])
    assert "checkpoint: lightning_logs/version_1/checkpoints/last.ckpt" in capsys.readouterr().out


@pytest.mark.slow
def test_version_10_is_newer_than_version_9(run, capsys):
    run.rename(run.with_name("version_10"))
    Path("lightning_logs/version_9").mkdir()
    cli.main(["validate", "--ckpt_path", "last"])
    assert "checkpoint: lightning_logs/version_10/" in capsys.readouterr().out


@pytest.mark.slow
def test_predict_plays_as_many_episodes_as_asked_for(run, capsys):
    cli.main(["predict", "--ckpt_path", "last", "--model.eval_episodes", "3"])
    rows = re.findall(r"^\W*(\d+|mean)\s*│\s*([\d.]+)\s*│\s*([\d.]+)", capsys.readouterr().out, re.MULTILINE)
    assert [name for name, _, _ in rows][:4] == ["0", "1", "2", "mean"]
    returns = [float(episode_return) for _, episode_return, _ in rows]
    assert returns[3] == pytest.approx(sum(returns[:3]) / 3, abs=0.005)


@pytest.mark.slow
def test_predict_writes_a_video_of_each_episode(run, capsys):
    cli.main(["predict", "--ckpt_path", "last", "--video", "clips"])
    assert "videos: clips" in capsys.readouterr().out
    clips = sorted(Path("clips").iterdir())
    assert [clip.name for clip in clips] == ["CartPole-v1-episode-0.mp4", "CartPole-v1-episode-1.mp4"]
    for clip in clips:
        content = clip.read_bytes()
        assert content[4:8] == b"ftyp", "the signature of an MP4 file"
        assert len(content) > 1000


@pytest.mark.slow
def test_predict_writes_an_animated_picture_of_each_episode(run, capsys):
    cli.main(["predict", "--ckpt_path", "last", "--gif", "pictures", "--model.eval_episodes", "1"])
    assert "videos: pictures" in capsys.readouterr().out
    (picture,) = Path("pictures").iterdir()
    assert picture.name == "CartPole-v1-episode-0.gif"
    assert picture.read_bytes()[:6] == b"GIF89a"


@pytest.mark.slow
def test_a_checkpoint_brings_its_settings_and_the_command_line_comes_first(run, tmp_path, monkeypatch, capsys):
    checkpoint = (run / "checkpoints/last.ckpt").absolute()
    # Away from the run and from its config.
    moved = tmp_path / "elsewhere" / "policy.ckpt"
    moved.parent.mkdir()
    moved.write_bytes(checkpoint.read_bytes())
    monkeypatch.chdir(moved.parent)
    cli.main(["predict", "--ckpt_path", "policy.ckpt", "--model.eval_num_envs", "1"])
    assert "mean" in capsys.readouterr().out


@pytest.mark.slow
def test_print_config_prints_what_fit_would_use(config, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["fit", "--config", config, "--model.gamma", "0.5", "--print_config"])
    assert ended.value.code in (0, None)
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["gamma"] == 0.5
    assert printed["model"]["num_steps"] == 16
    Path("printed.yaml").write_text(yaml.safe_dump(printed))
    cli.main(["fit", "--config", "printed.yaml", "--trainer.max_epochs", "1"])
    assert Path("lightning_logs/version_0/checkpoints/last.ckpt").is_file()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--help"], ["fit", "validate", "test", "predict", "plot"]),
        (["fit", "--help"], ["--model.total_env_steps", "Length of a run in transitions", "--checkpoint.keep_last_n"]),
        (["fit", "--help"], ["halfcheetah", "--help_trainer", "--pretrained.path", "--auto_resume"]),
        (["fit", "--help_trainer"], ["--trainer.precision", "--trainer.logger"]),
        (["predict", "--help"], ["--render", "--video", "Folder for an MP4 file of each episode"]),
        (["plot", "--help"], ["RUN_DIR", "--output"]),
    ],
)
def test_help_is_written_from_the_docstrings(args, words, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(args)
    assert ended.value.code in (0, None)
    text = " ".join(capsys.readouterr().out.split())
    for word in words:
        assert word in text


@pytest.mark.slow
def test_help_has_first_what_is_asked_for_most_and_lightning_s_options_on_request(warm_server):
    texts = {}
    for option in ("--help", "--help_trainer"):
        # A process of its own: help lists the networks that there are, those of other tests, too.
        command = [sys.executable, "-m", "pl_rl", "fit", option]
        texts[option] = warm_server.run(command, env={**os.environ, "COLUMNS": "80"}).stdout
        assert not re.search(r":[a-z]+:`|``", texts[option]), "marks for Sphinx"
    own, trainer = texts["--help"], texts["--help_trainer"]
    assert "--trainer." not in own and "--data" not in own and "--model." not in trainer
    order = [own.index(f"\n  {name} ") for name in ("--model.env", "--ckpt_path", "--pretrained.path", "-c CONFIG,")]
    assert order == sorted(order)
    assert len(own.splitlines()) < 220
    assert "(type: bool | constant | linear | cosine | function, default:" in " ".join(own.split())
    assert not re.search(r"Union\[|Optional\[|Literal\[", own), "Python's names for choices"


FIT = ["fit", "--config", "small.yaml"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "a verb is missing; the verbs are fit, validate, test, predict, plot"),
        (["fti"], "there is no verb 'fti'; the verbs are"),
        (["fit"], "no environment is named; add --model.env ID or --config FILE"),
        (["fit", "--model.env", "CartPol-v1"], "no environment 'CartPol-v1'; the nearest names are.*CartPole-v1"),
        (["fit", "--model.env", "PlRlTest/Images-v0"], "needs vector observations.*FlattenObservation"),
        ([*FIT, "--model.gama", "0.9"], r"--model\.gama.*did you mean --model\.gamma\?"),
        ([*FIT, "--zzz", "1"], "[Uu]nrecognized.*--zzz"),
        ([*FIT, "--model.gamma", "high"], "--model.gamma is 'high' and must be a number"),
        ([*FIT, "--seed_everything", "-1"], "seed_everything=-1 is no seed; use a number from 0 to 4294967295"),
        ([*FIT, "--model.gamma", "2"], "gamma=2.0 must lie between 0 and 1"),
        ([*FIT, "--model.num_envs", "2.5"], "--model.num_envs is '2.5' and must be a whole number"),
        ([*FIT, "--model.minibatch_size", "60"], "by minibatch_size=60; use --model.minibatch_size 32 or 64"),
        ([*FIT, "--model.network.class_path", "no_such_module.Net"], "model.network.*no_such_module"),
        ([*FIT, "--model.network.init_args.widths", "[3]"], "widths"),
        ([*FIT, "--model.env.vectorization", "fast"], "is 'fast' and must be one of 'auto', 'sync', 'async'"),
        ([*FIT, "--model.env.kwargs", "{colour: red}"], "kwargs.*cannot be made.*colour"),
        ([*FIT, "--checkpoint.keep_last_n", "0"], "keep_last_n=0"),
        ([*FIT, "--trainer.precision", "3"], "precision"),
        ([*FIT, "--trainer.strategy", "x"], "the trainer cannot be made so: .*strategy='x'"),
        ([*FIT, "--trainer.strategy", "fsdp"], "the trainer cannot be made so: .*fsdp.*requires a GPU"),
        ([*FIT, "--trainer.accelerator", "x"], "the trainer cannot be made so: .*accelerator='x'"),
        ([*FIT, "--trainer.devices", "x"], "the trainer cannot be made so: .*devices"),
        ([*FIT, "--trainer.num_nodes", "0"], "the trainer cannot be made so: .*num_nodes"),
        ([*FIT, "--trainer.gradient_clip_val", "0.5"], "gradient_clip_val=0.5 .*use --model.max_grad_norm 0.5"),
        ([*FIT, "--trainer.accumulate_grad_batches", "2"], "accumulate_grad_batches=2 .*larger minibatch_size"),
        ([*FIT, "--trainer.default_root_dir", 300 * "x"], "xxx'... is longer than a file system takes"),
        ([*FIT, "--ckpt_path", "nosuch.ckpt"], "there is no file 'nosuch.ckpt' here"),
        ([*FIT, "--ckpt_path", "folder/nosuch.ckpt"], "checkpoint 'folder/nosuch.ckpt' does not exist"),
        ([*FIT, "--ckpt_path", "./empty"], "'./empty' is a folder; name a checkpoint in it, as in RUN_DIR/checkpoints"),
        ([*FIT, "--ckpt_path", "small.yaml"], "'.*small.yaml' is no checkpoint, or a damaged one"),
        (["fit", "--config", "nosuch.yaml"], "no config file 'nosuch.yaml' here.*shipped are.*cartpole.yaml"),
        (["fit", "--config", "wrong_key.yaml"], r"model.num_env', in line .*did you mean model\.num_envs\?"),
        (["fit", "--config", "wrong_type.yaml"], "num_envs, in line [0-9]+ of .*, is 'many' and must be"),
        (["fit", "--config", "no_yaml.yaml"], "is not valid YAML"),
        (["fit", "--config", "binary.yaml"], "config file 'binary.yaml' is not text in UTF-8: .* at byte 4"),
        (["fit", "--config", "blank.yaml"], "config file 'blank.yaml' holds nothing, where there are to be settings"),
        (["fit", "--config", "list.yaml"], "config file 'list.yaml' holds a list, where there are to be settings"),
        (["validate"], "validate needs a trained policy; add --ckpt_path last"),
        (["test", "--config", "small.yaml"], "test needs a trained policy"),
        (["predict", "--ckpt_path", "last"], "there is no file 'last' here, and no run under 'lightning_logs'"),
        (["predict", "--ckpt_path", "foreign.ckpt"], "is not a checkpoint of pl_rl"),
        (["plot"], "there is no run under .lightning_logs.; name a run.s directory"),
        (["plot", "nosuch"], "there is no run directory 'nosuch'"),
        (["plot", "empty"], "'empty' holds no evaluation"),
    ],
)  # fmt: skip
def test_bad_input_is_answered_in_one_sentence(args, message, config, capsys):
    text = yaml.safe_dump(SMALL)
    Path("wrong_key.yaml").write_text(text.replace("num_envs: 4", "num_env: 4"))
    Path("wrong_type.yaml").write_text(text.replace("num_envs: 4", "num_envs: many"))
    Path("no_yaml.yaml").write_text("model: [1, 2\n")
    Path("binary.yaml").write_bytes(b"abcd\xff")
    Path("blank.yaml").write_text("# to be written\n")
    Path("list.yaml").write_text("- model\n")
    Path("empty").mkdir()
    torch.save({"state_dict": {}}, "foreign.ckpt")
    with pytest.raises(SystemExit) as ended:
        cli.main(args)
    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert re.fullmatch(r"error: [^\n]+\n", err), err
    assert re.search(message, err), err
    assert not Path("lightning_logs").exists(), "nothing was begun"


def test_a_slurm_job_of_several_tasks_without_srun_is_refused(config, capsys, monkeypatch):
    for name, value in {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "4"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        cli.main(FIT)
    assert ended.value.code == 2
    assert (
        "error: the SLURM job has 4 tasks, and this process is none that srun has started; use srun"
        in capsys.readouterr().err
    )


@pytest.mark.slow
def test_a_checkpoint_that_is_cut_off_is_named(run, capsys):
    path = run / "checkpoints/last.ckpt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SystemExit) as ended:
        cli.main(["validate", "--ckpt_path", str(path)])
    assert ended.value.code == 2
    assert re.fullmatch(r"error: '.*last\.ckpt' is no checkpoint, or a damaged one: [^\n]+\n", capsys.readouterr().err)


@pytest.mark.slow
def test_plot_writes_pictures_of_a_run(run, capsys):
    cli.main(["plot", str(run), "--output", "pictures"])
    assert files_in("pictures") == ["evaluator_iter.png", "evaluator_step.png"]
    assert capsys.readouterr().out.split() == ["pictures/evaluator_iter.png", "pictures/evaluator_step.png"]


def module(*args):
    return subprocess.run([sys.executable, "-m", "pl_rl", *args], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_module_runs_as_a_process(config, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    done = module("fit", "--config", config, "--model.total_env_steps", "64", "--trainer.limit_val_batches", "1")
    assert done.returncode == 0, done.stderr
    # One batch, where ``1.0`` would be all; which it becomes hangs on who is the first to import ``int | float``.
    assert "  limit_val_batches: 1\n" in Path("lightning_logs/version_0/config.yaml").read_text()
    assert "Traceback" not in done.stderr
    assert Path("lightning_logs/version_0/checkpoints/last.ckpt").is_file()


@pytest.mark.slow  # a process
def test_bad_input_ends_a_process_with_status_2(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    done = module("fit", "--model.env", "CartPole-v1", "--model.minibatch_size", "300")
    assert done.returncode == 2
    assert done.stderr == (
        "error: num_envs*num_steps=1024 is not divisible by minibatch_size=300; use --model.minibatch_size 256 or 512\n"
    )
    assert done.stdout == ""


def test_a_terminal_is_told_at_once_and_a_log_is_not(monkeypatch, capsys):
    for is_terminal in (True, False):
        monkeypatch.setattr(sys.stderr, "isatty", lambda is_terminal=is_terminal: is_terminal)
        with pytest.raises(SystemExit):
            cli.main(["fit", "--config", "nosuch"])
        assert capsys.readouterr().err.startswith("loading ...\r" if is_terminal else "error: ")
