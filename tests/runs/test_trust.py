"""What a stranger's file names is neither imported nor called, whichever way it comes in."""

import ast
import contextlib
import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import pl_rl
from pl_rl import cli
from pl_rl.callbacks import RunCheckpoint
from pl_rl.checkpoints.format import read_checkpoint
from pl_rl.checkpoints.saving import DurableCheckpointIO
from pl_rl.deploy.export import export
from pl_rl.deploy.policy import TrainedPolicy, read_trained
from pl_rl.envs.spaces import describe_spaces, make_spaces
from pl_rl.errors import RunFailure
from pl_rl.runs import trust
from tests import doors, places
from tests import example_networks as own
from tests.support import small_ppo

CHECKPOINT = places.CHECKPOINT


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with a stranger's run, a stranger's hub folder, and the module that leaves marks."""
    folder = tmp_path_factory.mktemp("prepared")
    with contextlib.chdir(folder):
        doors.prepare()
    return folder


@pytest.fixture
def theirs(prepared, tmp_path, monkeypatch):
    """Brings the working directory into that state, again and again."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def again():
        for path in tmp_path.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
        doors.clean_up()

    again()
    yield again
    doors.clean_up()


@pytest.fixture
def python(warm_server):
    """Runs the command line in a process of its own."""
    return lambda *args: warm_server.run([sys.executable, "-m", "pl_rl", *args], family=True)


def refused(capsys, *args):
    """The sentence with which the command line refuses."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main([*args])
    assert end.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def through_all_places(theirs, door, places_to_try):
    """What went wrong, by place."""
    faults = {}
    for name, place in places_to_try.items():
        theirs()
        place()
        end = doors.enter(door)
        if any(doors.marks()) or end not in ("done", "refused"):
            faults[name] = (doors.marks(), end)
    return faults


def no_graph(*args, **kwargs):
    raise RunFailure("graphs are slow to make, and tested in test_export.py")


def no_picture(figure, file, **settings):
    file.write(b"drawn in test_plotting.py")


# Each takes seconds; the fast tests open runs by the other doors.
SLOW = [
    *(
        "fit",
        "fit --pretrained.path",
        "pl_rl.Trainer.fit",
        "lightning.Trainer.fit",
        "validate",
        "test",
        "predict",
        "plot",
    ),
    *(f"export --to {to}" for to in ("hub", "onnx", "safetensors", "state_dict")),
]


@pytest.mark.filterwarnings("ignore")  # of Lightning, about checkpoints as strange as these
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in doors.DOORS_OF_A_RUN]
)
def test_nothing_that_a_strangers_run_names_is_used(theirs, name, monkeypatch):
    monkeypatch.setattr(torch.onnx, "export", no_graph)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", no_picture)
    faults = through_all_places(theirs, doors.DOORS_OF_A_RUN[name], doors.places_of(name))
    assert faults == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*doors.DOORS_OF_A_HUB_FOLDER, *doors.DOORS_OF_WEIGHTS])
def test_nothing_that_a_strangers_policy_names_is_used(theirs, name):
    pytest.importorskip("huggingface_hub")
    door = {**doors.DOORS_OF_A_HUB_FOLDER, **doors.DOORS_OF_WEIGHTS}[name]
    assert through_all_places(theirs, door, doors.places_of(name)) == {}


@pytest.mark.slow  # processes
def test_nor_by_verify(theirs, python):
    places.PLACES_OF_A_RUN["env.imports"]()
    end = python(*doors.DOORS_OF_PROCESSES["verify"])
    assert (end.returncode, doors.marks()) == (2, (0, 0, False)) and "names the module 'evil'" in end.stderr


@pytest.mark.slow  # a process
def test_a_folder_that_is_called_like_the_module_is_no_consent(theirs, python):
    places.with_env(imports=["nice_run"])()
    places.RUN.rename("nice_run")
    Path("nice_run/__init__.py").write_text("from pathlib import Path; Path('imported').write_text('.')")
    end = python("validate", "--ckpt_path", "nice_run/checkpoints/last.ckpt")
    assert end.returncode == 2 and doors.marks() == (0, 0, False)
    assert "names the module 'nice_run' (env.imports)" in end.stderr and "Traceback" not in end.stderr


def test_a_folder_in_the_place_of_a_library_is_not_imported(theirs, capsys):
    Path("shimmy").mkdir()
    Path("shimmy/__init__.py").write_text("from pathlib import Path; Path('imported').write_text('.')")
    places.with_env(id="GymV26Environment-v0", kwargs={"env_id": "Pong-v0"})()
    said = refused(capsys, "validate", "--ckpt_path", str(CHECKPOINT))
    assert "shimmy/__init__.py could be imported" in said and "trust=" not in said
    assert doors.marks() == (0, 0, False)
    words = shlex.split(re.search(r"if you trust it, add (--model\.env\.imports .*)", said)[1])
    assert words == ["--model.env.imports", '["shimmy"]']
    with pytest.raises(pl_rl.UsageError, match=r"if you trust it, pass trust=\['shimmy'\]"):
        trust.checked({"env": "CartPole-v1"})
    with pytest.raises(pl_rl.UsageError, match=re.escape('add --model.env.imports \'["ale_py", "shimmy"]\'')):
        trust.checked({"env": {"id": "CartPole-v1", "imports": ["ale_py"]}}, way_out=trust.by_settings)


def test_a_folder_without_an_init_file_is_a_package_too(theirs, capsys):
    Path("jax").mkdir()
    Path("jax/numpy.py").write_text("from pathlib import Path; Path('imported').write_text('.')")
    places.with_env(id="phys2d/CartPole-v1")()
    assert re.search(
        r"for which \S*jax could be imported as jax", refused(capsys, "validate", "--ckpt_path", str(CHECKPOINT))
    )
    assert doors.marks() == (0, 0, False)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"state_dict": 5}, "state_dict is 5, and should be a dictionary"),
        ({"state_dict": {"a": 1}}, "state_dict.a is 1, and should be a tensor"),
        ({"state_dict": {}, "hyper_parameters": [1]}, "hyper_parameters is a list of 1, and should be a dictionary"),
    ],
)
def test_weights_and_settings_alone_are_compared_too(content, words):
    torch.save(content, "weights.ckpt")
    with pytest.raises(pl_rl.UsageError, match=re.escape(f"weights.ckpt holds no model: {words}")):
        pl_rl.PPO.load_from_checkpoint("weights.ckpt")


# What the user says is used.

NAMED = {
    "env.id": ({"env": {"id": "evil:Env-v0"}}, ["evil:Env-v0"]),
    "env.imports": ({"env": {"id": "CartPole-v1", "imports": ["evil"]}}, ["evil"]),
    "env.wrappers": ({"env": {"id": "CartPole-v1", "wrappers": [places.described("evil.Wrapper", n=1)]}}, ["evil"]),
    "env.train_wrappers": ({"env": {"id": "CartPole-v1", "train_wrappers": ["evil.Wrapper"]}}, ["evil.Wrapper"]),
    "network.class_path": ({"network": {"class_path": "evil.Network", "init_args": {}}}, ["evil.Network"]),
    "two": ({"env": {"id": "evil:Env-v0", "wrappers": ["evil.Wrapper"]}}, ["evil:Env-v0", "evil.Wrapper"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED)
def test_the_way_out_of_a_refusal_works_when_it_is_pasted(theirs, name, capsys):
    settings, names = NAMED[name]
    places.with_settings(**settings)()
    line = refused(capsys, "validate", "--ckpt_path", str(CHECKPOINT))
    assert re.search(r"lies outside of lightning_logs and names the \w+ 'evil", line) and doors.marks() == (0, 0, False)
    options = shlex.split(line.partition("if you trust it, add ")[2])
    doors.enter(lambda: cli.main(["validate", "--ckpt_path", str(CHECKPOINT), *options]))
    assert doors.marks()[0] == 1

    theirs()
    places.with_settings(**settings)()
    Path("mine.yaml").write_text(json.dumps({"model": settings}))
    doors.enter(lambda: cli.main(["validate", "--ckpt_path", str(CHECKPOINT), "--config", "mine.yaml"]))
    assert doors.marks()[0] == 1

    theirs()
    places.with_settings(**settings)()
    line = refused(capsys, "export", str(CHECKPOINT), "--to", "hub")
    options = shlex.split(line.partition("if you trust it, add ")[2])
    assert options[0] == "--trust"
    doors.enter(lambda: cli.main(["export", str(CHECKPOINT), "--to", "hub", *options]))
    assert doors.marks()[0] == 1 or name == "env.train_wrappers"

    theirs()
    places.with_settings(**settings)()
    with pytest.raises(pl_rl.UsageError) as refusal:
        pl_rl.PPO.load_from_checkpoint(CHECKPOINT)
    trusted = ast.literal_eval(str(refusal.value).partition("pass trust=")[2])
    assert {name.partition(":")[0].partition(".")[0] for name in trusted} == {"evil"}
    with contextlib.suppress(pl_rl.UsageError):  # the weights are another network's
        pl_rl.PPO.load_from_checkpoint(CHECKPOINT, trust=names)
    assert doors.marks()[0] == 1


@pytest.mark.parametrize(
    "args",
    [
        ["--trainer.default_root_dir", "evil"],
        ["--pretrained.path", "evil"],
        ["--model.network.init_args.activation", "evil"],
        ["--checkpoint.last_every_n_iterations", "evil"],
        ["--branch", "evil"],
    ],
)
def test_other_words_are_no_consent(theirs, args):
    places.with_env(imports=["evil"])()
    assert doors.enter(lambda: cli.main(["validate", "--ckpt_path", str(CHECKPOINT), *args])) == "refused"
    assert doors.marks() == (0, 0, False)


def test_settings_that_are_given_instead_need_no_trust(theirs):
    places.with_settings(env={"id": "evil:Env-v0"}, network={"class_path": "evil.Network", "init_args": {}})()
    model = pl_rl.PPO.load_from_checkpoint(CHECKPOINT, env="CartPole-v1", network=pl_rl.MLPActorCritic)
    assert model.env_config.id == "CartPole-v1" and doors.marks() == (0, 0, False)


def test_a_model_of_plain_data_asks_too(theirs):
    places.with_env(imports=["evil"])()
    with pytest.raises(pl_rl.UsageError, match="names the module 'evil'"):
        pl_rl.PPO(**read_checkpoint(CHECKPOINT)["hyper_parameters"])


def test_what_is_imported_already_needs_no_trust(theirs):
    settings = dict(small_ppo().hparams)
    network = {"class_path": "tests.example_networks.LinearValue", "init_args": {}}
    assert type(TrainedPolicy({**settings, "network": network}).network).__name__ == "LinearValue"
    # But not what a library has by another name.
    own.Video = gym.wrappers.RecordVideo
    try:
        with pytest.raises(pl_rl.UsageError, match="Video"):
            trust.checked({"env": {"id": "CartPole-v1", "wrappers": ["tests.example_networks.Video"]}})
    finally:
        del own.Video


def test_ones_own_run_may_name_anything(theirs):
    places.with_settings(network={"class_path": "evil.Network", "init_args": {}})()
    Path("lightning_logs").mkdir()
    places.RUN.rename("lightning_logs/version_0")
    doors.enter(lambda: cli.main(["validate", "--ckpt_path", "last"]))
    assert doors.marks()[0] == 1


@pytest.mark.slow
def test_links_do_not_make_a_run_ones_own(theirs, capsys):
    Path("lightning_logs").mkdir()
    Path("lightning_logs/version_0").symlink_to(places.RUN.absolute())
    places.with_env(imports=["evil"])()
    assert "names the module 'evil'" in refused(capsys, "validate", "--ckpt_path", "last")
    # Nor does a link to one of one's own make its surroundings one's own.
    theirs()
    shutil.copytree(places.RUN, "lightning_logs/version_0")
    CHECKPOINT.unlink()
    CHECKPOINT.symlink_to(Path("lightning_logs/version_0/checkpoints/last.ckpt").absolute())
    places.PLACES_OF_A_RUN["config.yaml: callbacks, text"]()
    assert doors.enter(doors.DOORS_OF_A_RUN["validate"]) == "done"
    assert "theirs/config.yaml is not used" in capsys.readouterr().out and doors.marks() == (0, 0, False)


def test_a_setting_that_there_is_none_of_is_one_sentence(theirs, capsys):
    places.with_settings(_instantiator="word")()
    line = refused(capsys, "validate", "--ckpt_path", str(CHECKPOINT))
    assert "has the setting '_instantiator', which pl_rl.PPO has not" in line


# Callbacks' states.


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:(Checkpoint directory|The dirpath has changed)")
def test_no_callback_removes_a_file_that_is_not_its_own(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    precious, memory = tmp_path / "precious.ckpt", fsspec.filesystem("memory")
    outside = tmp_path / "outside"
    outside.mkdir()

    def trainer(epochs):
        return pl_rl.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
            callbacks=[ModelCheckpoint(dirpath="mine", filename="{epoch}", save_top_k=1, save_last=True)],
            enable_model_summary=False,
        )  # fmt: skip

    trainer(1).fit(small_ppo())
    for path in ("mine/../precious.ckpt", "mine/link/precious.ckpt", "memory://precious.ckpt"):
        precious.write_text("mine")
        (outside / "precious.ckpt").write_text("mine")
        memory.pipe("/precious.ckpt", b"mine")
        shutil.rmtree("again", ignore_errors=True)
        content = torch.load("mine/epoch=0.ckpt", weights_only=True)
        link = tmp_path / "mine" / "link"
        link.unlink(missing_ok=True)
        link.symlink_to(outside)
        named = path if "://" in path else str(tmp_path / path)
        for key, state in content["callbacks"].items():
            if key.startswith("ModelCheckpoint"):
                state.update(best_model_path=named, last_model_path=named, dirpath=str(tmp_path / "mine"))
        torch.save(content, "theirs.ckpt")
        trainer(2).fit(small_ppo(), ckpt_path="theirs.ckpt")
        assert precious.exists() and (outside / "precious.ckpt").exists() and memory.exists("/precious.ckpt")
    # Its own it does remove.
    shutil.copy("mine/epoch=1.ckpt", "mine/theirs.ckpt")
    trainer(3).fit(small_ppo(), ckpt_path="mine/theirs.ckpt")
    assert not Path("mine/epoch=1.ckpt").exists() and Path("mine/epoch=2.ckpt").exists()


def test_kept_checkpoints_are_numbers():
    callback = RunCheckpoint()
    callback.load_state_dict({"best_model_score": 0.0, "kept": [3, "/../../precious", 5]})
    assert callback._kept == [3, 5]


# A policy without its environment.


def test_a_policy_is_made_without_its_environment(prepared, monkeypatch):
    hub = pytest.importorskip("pl_rl.deploy.hub")
    checkpoint = prepared / CHECKPOINT
    trained = read_trained(checkpoint)
    assert trained.spaces == describe_spaces(*make_spaces(trained.spaces))

    def make(*args, **kwargs):
        raise AssertionError("an environment is made")

    monkeypatch.setattr(gym, "make", make)
    for policy in (
        hub.HubPolicy.from_checkpoint(checkpoint),
        hub.HubPolicy.from_pretrained(str(prepared / "hub")),
        TrainedPolicy(trained.settings, trained.spaces),
    ):
        assert policy.spaces == trained.spaces
    export(checkpoint, "hub", Path("again"))
    with pytest.raises(pl_rl.UsageError, match="is made"):
        TrainedPolicy(trained.settings)


def test_the_environment_of_somebody_elses_policy_is_made_if_it_is_trusted(theirs):
    hub = pytest.importorskip("pl_rl.deploy.hub")
    places.in_hub(lambda config: config["settings"].update(env={"id": "evil:Env-v0"}))
    policy = hub.HubPolicy.from_pretrained("hub")
    with pytest.raises(pl_rl.UsageError, match=r"names the environment 'evil:Env-v0' .* trust=\['evil:Env-v0'\]"):
        policy.make_env()
    assert doors.marks() == (0, 0, False)
    policy.make_env(trust=["evil:Env-v0"]).close()
    assert doors.marks() == (1, 1, False)


def test_a_checkpoint_at_an_address_is_plain_data_too(monkeypatch):
    asked = []
    there = SimpleNamespace(exists=lambda path: True)
    monkeypatch.setattr("lightning.fabric.plugins.io.torch_io.get_filesystem", lambda path: there)
    monkeypatch.setattr(
        torch.hub, "load_state_dict_from_url", lambda url, **how: asked.append(how["weights_only"]) or {}
    )
    for how in ({}, {"weights_only": None}, {"weights_only": True}):
        DurableCheckpointIO().load_checkpoint("https://example.org/theirs.ckpt", **how)
    assert asked == [True, True, True]


def test_an_old_checkpoint_and_an_old_folder_ask_the_environment(theirs):
    hub = pytest.importorskip("pl_rl.deploy.hub")
    places.with_settings()()
    config = json.loads(Path("hub/config.json").read_text())
    assert "spaces" not in config and read_checkpoint(CHECKPOINT)["pl_rl"]["spaces"] is None
    spaces = hub.HubPolicy.from_pretrained("hub").spaces
    assert spaces["action"] == {"class": "Discrete", "n": 2, "start": 0, "dtype": "int64"}
    export(CHECKPOINT, "hub", Path("again"))
    assert json.loads(Path("again/config.json").read_text())["spaces"] == spaces
