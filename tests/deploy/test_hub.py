"""Policies for a model hub; the hub itself is never asked."""

import json
import os
import socket
from pathlib import Path

import pytest

from pl_rl import UsageError
from pl_rl.deploy.export import export
from pl_rl.pretrained import read_weights
from tests.support import same_bits
from tests.trained import NORMALIZED, POLICIES, checkpoint, observations, policy_of

huggingface_hub = pytest.importorskip("huggingface_hub")
hub = pytest.importorskip("pl_rl.deploy.hub")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def connect(*args):
        raise AssertionError("somebody phones home")

    monkeypatch.setattr(socket.socket, "connect", connect)


def card_of(folder):
    return huggingface_hub.ModelCard.load(Path(folder, "README.md"))


@pytest.mark.parametrize("settings", [*POLICIES.values(), *NORMALIZED.values()], ids=[*POLICIES, *NORMALIZED])
def test_a_folder_comes_back_bit_for_bit(settings):
    path = checkpoint(**settings)
    export(path, "hub", Path("folder"))
    assert {file.name for file in Path("folder").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    ours, theirs = policy_of(path), hub.HubPolicy.from_pretrained("folder")
    assert same_bits(ours.state_dict(), theirs.state_dict()) and not theirs.training
    obs = observations(ours, 7)
    for one, other in zip(ours(obs), theirs(obs), strict=True):
        assert one.equal(other)
    theirs.save_pretrained("again")
    for file in Path("folder").iterdir():
        assert Path("again", file.name).read_bytes() == file.read_bytes()


def test_its_weights_can_be_started_from():
    path = checkpoint()
    export(path, "hub", Path("folder"))
    assert same_bits(read_weights(Path("folder/model.safetensors")).tensors, policy_of(path).network.state_dict())


def test_the_card_has_the_result_in_the_standard_metadata():
    export(checkpoint(eval_freq=2, eval_episodes=3), "hub", Path("folder"))
    card, config = card_of("folder"), json.loads(Path("folder/config.json").read_text())
    (result,) = card.data.eval_results
    evaluation = config["training"]["evaluation"]
    assert result.metric_value == f"{evaluation['return_mean']:.2f} +/- {evaluation['return_std']:.2f}"
    assert (result.task_type, result.dataset_name, result.metric_type) == (
        "reinforcement-learning",
        "CartPole-v1",
        "mean_reward",
    )
    assert card.data.library_name == "pl_rl" and card.data.pipeline_tag == "reinforcement-learning"
    assert {"CartPole-v1", "reinforcement-learning", "pytorch_model_hub_mixin"} <= set(card.data.tags)
    assert f"Return {result.metric_value} (mean and standard deviation of 3 episodes" in card.text
    assert "minibatch_size: 32" in card.text and config["training"]["source_sha256"] in card.text


def test_a_result_of_earlier_weights_is_not_claimed():
    export(checkpoint(eval_freq=1000, eval_episodes=1), "hub", Path("folder"))
    assert card_of("folder").data.eval_results is None
    assert "These are later weights: the evaluation was made after 0 gradient updates." in card_of("folder").text
    export(checkpoint(), "hub", Path("other"))
    assert card_of("other").data.eval_results is None and "It has not been evaluated." in card_of("other").text


def test_the_cards_example_runs():
    export(checkpoint(env="Pendulum-v1", norm_obs=True), "hub", Path("folder"))
    code = card_of("folder").text.partition("```python\n")[2].partition("```")[0]
    played = {}
    exec(compile(code.replace("OWNER/NAME", "folder"), "README.md", "exec"), played)
    assert played["env"].action_space.contains(played["action"])


def test_pushing_uploads_the_folder(monkeypatch):
    uploads = {}

    def create_repo(self, repo_id, **arguments):
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, repo_id, folder_path, **arguments):
        uploads[repo_id] = {file.name: file.read_bytes() for file in Path(folder_path).iterdir()}

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    path = checkpoint(eval_freq=2, eval_episodes=3)
    hub.HubPolicy.from_checkpoint(path).push_to_hub("somebody/cartpole")
    export(path, "hub", Path("folder"))
    assert uploads == {"somebody/cartpole": {file.name: file.read_bytes() for file in Path("folder").iterdir()}}


def test_a_weight_that_the_file_lacks_is_not_left_at_random():
    save_file = pytest.importorskip("safetensors.torch").save_file
    path = checkpoint()
    export(path, "hub", Path("folder"))
    tensors = policy_of(path).state_dict()
    del tensors["network.actor.0.weight"]
    save_file(tensors, "folder/model.safetensors")
    with pytest.raises(UsageError, match=r"network\.actor\.0\.weight"):
        hub.HubPolicy.from_pretrained("folder")


def test_settings_that_nobody_can_make_a_network_from_are_refused():
    export(checkpoint(), "hub", Path("folder"))
    config = json.loads(Path("folder/config.json").read_text())
    config["settings"]["network"]["class_path"] = "os.system"
    Path("folder/config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"names the class 'os\.system' .* pass trust=\['os\.system'\]"):
        hub.HubPolicy.from_pretrained("folder")
    with pytest.raises(UsageError, match=r"'os\.system' is not a network"):
        hub.HubPolicy.from_pretrained("folder", trust=["os.system"])


def with_setting(**settings):
    def damage(text):
        config = json.loads(text)
        config["settings"].update(settings)
        return json.dumps(config).encode()

    return damage


def with_spaces(change):
    def damage(text):
        config = json.loads(text)
        change(config["spaces"])
        return json.dumps(config).encode()

    return damage


DAMAGES = {
    "no JSON": ("config.json", lambda text: b"{"),
    "deep": ("config.json", lambda text: b"[" * 100_000),
    "a list": ("config.json", lambda text: b"[]"),
    "empty": ("config.json", lambda text: b""),
    "no text": ("config.json", lambda text: b"\xff"),
    "many digits": ("config.json", lambda text: b'{"settings": ' + b"1" * 5000 + b"}"),
    "other settings": ("config.json", lambda text: b'{"settings": 3, "training": null}'),
    "norm_obs": ("config.json", with_setting(norm_obs=[1])),
    "norm_obs on": ("config.json", with_setting(norm_obs=True)),
    "network": ("config.json", with_setting(network=[1])),
    "dtype": ("config.json", with_spaces(lambda spaces: spaces["observation"].update(dtype="(2,f4"))),
    "long dtype": ("config.json", with_spaces(lambda spaces: spaces["observation"].update(dtype="f16"))),
    "empty weights": ("model.safetensors", lambda data: b""),
    "cut weights": ("model.safetensors", lambda data: data[:-10]),
    "other weights": ("model.safetensors", lambda data: b"x" * len(data)),
    "no file": ("model.safetensors", lambda data: None),
    "no config": ("config.json", lambda data: None),
}


def test_a_damaged_folder_is_one_sentence():
    export(checkpoint(), "hub", Path("folder"))
    for what, (name, damage) in DAMAGES.items():
        path = Path("folder", name)
        sound = path.read_bytes()
        damaged = damage(sound)
        path.unlink() if damaged is None else path.write_bytes(damaged)
        with pytest.raises(UsageError) as error:
            hub.HubPolicy.from_pretrained("folder")
        assert "\n" not in str(error.value) and len(str(error.value)) < 700, what
        path.write_bytes(sound)
    for name in ("config.json", "model.safetensors"):
        path = Path("folder", name)
        sound = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(UsageError, match=f"has no file {name}"):
            hub.HubPolicy.from_pretrained("folder")
        path.unlink()
        path.write_bytes(sound)
    hub.HubPolicy.from_pretrained("folder")


def test_saving_into_a_folder_follows_no_link():
    policy = hub.HubPolicy.from_checkpoint(checkpoint())
    Path("folder").mkdir()
    Path("precious").write_text("mine")
    os.link("precious", "folder/model.safetensors")
    Path("folder/config.json").symlink_to(Path("precious").absolute())
    policy.save_pretrained("folder")
    assert Path("precious").read_text() == "mine"
    hub.HubPolicy.from_pretrained("folder")
