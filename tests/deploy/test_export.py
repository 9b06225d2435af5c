"""Policies in files, on the way out and back."""

import os
import re
import sys
from functools import partial
from importlib import util
from pathlib import Path

import numpy as np
import pytest
import torch

import pl_rl
from pl_rl import MLPActorCritic, RunFailure, UsageError, cli
from pl_rl.algorithm.evaluation import evaluate
from pl_rl.callbacks import PretrainedCheckpoint
from pl_rl.checkpoints.format import read_checkpoint
from pl_rl.deploy.export import export
from pl_rl.deploy.policy import read_trained
from pl_rl.envs import EnvConfig
from pl_rl.errors import installation
from tests.example_networks import LinearValue
from tests.support import fit, same_bits, small_ppo
from tests.trained import NORMALIZED, POLICIES, checkpoint, observations, policy_of

PAGE = Path(pl_rl.__file__).parent / "deploy" / "README.md"
FORMATS = ["state_dict", "safetensors", "onnx", "hub"]


PACKAGES = {"state_dict": "torch", "safetensors": "safetensors", "onnx": "onnxscript", "hub": "huggingface_hub"}


@pytest.fixture(autouse=True)
def _packages(request):
    """Formats whose packages are not installed are left out."""
    to = getattr(request.node, "callspec", None) and request.node.callspec.params.get("to")
    if "package" not in request.fixturenames:
        pytest.importorskip(PACKAGES[to or ("onnx" if "graph" in request.node.name else "state_dict")])


def loaded(path):
    if path.read_bytes()[:2] == b"PK":
        return torch.load(path, weights_only=True)
    return pytest.importorskip("safetensors.torch").load_file(path)


def session_of(path):
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.mark.slow
@pytest.mark.parametrize("settings", [*POLICIES.values(), *NORMALIZED.values()], ids=[*POLICIES, *NORMALIZED])
@pytest.mark.parametrize("to", ["state_dict", "safetensors"])
def test_weights_come_back_bit_for_bit(settings, to):
    path = checkpoint(**settings)
    export(path, to, Path("weights"))
    model = small_ppo(seed=5, **settings)
    fit(model, max_epochs=0, callbacks=[PretrainedCheckpoint("weights")])
    policy = policy_of(path)
    assert same_bits(model.network.state_dict(), policy.network.state_dict())
    if policy.normalizer is not None:
        assert same_bits(model.normalizer.state_dict(), policy.normalizer.state_dict())
    obs = observations(policy, 7)
    for ours, theirs in zip(model.network(obs), policy.network(obs), strict=True):
        assert ours.equal(theirs)


@pytest.mark.parametrize("to", ["state_dict", "safetensors"])
def test_statistics_of_observations_are_written_and_those_of_rewards_are_not(to):
    path = checkpoint(**NORMALIZED["pendulum, normalized"])
    export(path, to, Path("weights"))
    tensors, saved = loaded(Path("weights")), read_checkpoint(path)["state_dict"]
    assert tensors["normalizer.mean"].dtype == torch.float64 and tensors["normalizer.count"] == 64
    assert same_bits(tensors, {n: t for n, t in saved.items() if not n.startswith("reward_scaler.")})


@pytest.mark.slow
def test_a_safetensors_file_says_what_it_is():
    safe_open = pytest.importorskip("safetensors").safe_open
    path = checkpoint(env="Pendulum-v1")
    export(path, "safetensors", Path("weights"))
    with safe_open("weights", "pt") as file:
        metadata = file.metadata()
    assert metadata["library"] == "pl_rl" and metadata["env"] == "Pendulum-v1" and metadata["format"] == "pt"
    assert '"class_path": "pl_rl.networks.MLPActorCritic"' in metadata["network"]
    assert metadata["source_sha256"] == read_trained(path).training["source_sha256"]


def test_the_activation_in_a_safetensors_file_is_checked():
    pytest.importorskip("safetensors")
    export(checkpoint(network=partial(MLPActorCritic, activation="relu")), "safetensors", Path("weights"))
    with pytest.raises(UsageError, match="trained with activation=relu and the model has tanh"):
        fit(small_ppo(), max_epochs=0, callbacks=[PretrainedCheckpoint("weights")])


def test_weights_alone_do_not_need_the_network_class():
    path = checkpoint(network=lambda *spaces: LinearValue(*spaces))
    export(path, "state_dict", Path("weights"))
    assert loaded(Path("weights")).keys() == {"network.slope", "network.offset", "network.outputs"}


@pytest.mark.slow
@pytest.mark.parametrize("settings", [*POLICIES.values(), *NORMALIZED.values()], ids=[*POLICIES, *NORMALIZED])
def test_the_graph_computes_what_torch_does(settings):
    path = checkpoint(**settings)
    export(path, "onnx", Path("policy.onnx"))
    policy, session = policy_of(path), session_of("policy.onnx")
    assert tuple(output.name for output in session.get_outputs()) == policy.outputs
    for batch in (1, 7):
        obs = observations(policy, batch)
        with torch.no_grad():
            expected = [tensor.numpy() for tensor in policy(obs)]
        for name, ours, theirs in zip(policy.outputs, expected, session.run(None, {"obs": obs.numpy()}), strict=True):
            assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
            tolerance = 0 if name == "action" and ours.dtype == np.int64 else 1e-5
            np.testing.assert_allclose(theirs, ours, rtol=0, atol=tolerance)


@pytest.mark.slow
def test_a_graph_tells_its_origin_and_nothing_of_the_machine():
    path = checkpoint()
    export(path, "onnx", Path("policy.onnx"))
    assert session_of("policy.onnx").get_modelmeta().custom_metadata_map["env"] == "CartPole-v1"
    content = Path("policy.onnx").read_bytes()
    assert b".py" not in content and os.fsencode(Path(__file__).parents[2]) not in content
    export(path, "onnx", Path("again.onnx"))
    assert Path("again.onnx").read_bytes() == content


class Branching(LinearValue):
    """Decides by what it sees which way it computes."""

    def value(self, obs):
        return super().value(obs) if obs.sum() > 0 else super().value(-obs)


@pytest.mark.slow
def test_a_network_that_is_no_graph_is_refused():
    path = checkpoint(network=Branching)
    with pytest.raises(RunFailure, match=r"Branching cannot be turned into an ONNX graph: [^\n]+$") as failed:
        export(path, "onnx", Path("policy.onnx"))
    assert len(str(failed.value)) < 900 and not list(Path().glob("*.onnx*"))


@pytest.mark.slow
@pytest.mark.parametrize("to", FORMATS)
def test_what_is_there_is_not_overwritten(to):
    path = checkpoint()
    Path("policy").write_text("mine")
    with pytest.raises(UsageError, match="policy exists and is not overwritten; name another place with --output"):
        export(path, to, Path("policy"))
    assert Path("policy").read_text() == "mine"
    said = export(path, to)
    (written,) = {*Path().iterdir()} - {path, Path("policy")}
    assert written.name in said and written.name.startswith("last")
    with pytest.raises(UsageError, match="exists"):
        export(path, to)


@pytest.mark.parametrize("to", ["safetensors", "hub"])
def test_what_cannot_be_written_leaves_nothing(to, monkeypatch):
    path = checkpoint()
    for leftover in (Path(".a.partial"), Path("b/.c.partial")):  # of a kill, one a file and one a folder
        leftover.parent.mkdir(exist_ok=True)
        leftover.write_text("half") if to == "hub" else leftover.mkdir()
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device", "disk")))
        with pytest.raises(UsageError, match=r"a cannot be written \(No space left on device: disk\)"):
            export(path, to, Path("a"))
    assert not Path("a").exists() and not Path(".a.partial").exists()
    Path("precious").mkdir()
    Path(".d.partial").symlink_to("precious")
    export(path, to, Path("d"))
    assert not Path("d").is_symlink() and not list(Path("precious").iterdir())
    export(path, to, Path("b/c"))
    assert [child.name for child in Path("b").iterdir()] == ["c"]
    with pytest.raises(UsageError, match="cannot be written"):
        export(path, to, path / "c")


@pytest.mark.parametrize(
    ("to", "package", "extra"),
    [("safetensors", "safetensors.torch", "safetensors"), ("onnx", "onnxscript", "onnx"), ("hub", "", "hub")],
)
def test_without_a_package_its_installation_is_named(to, package, extra, monkeypatch):
    path = checkpoint()
    monkeypatch.setitem(sys.modules, package or "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "pl_rl.deploy.hub", raising=False)
    found = util.find_spec
    monkeypatch.setattr("pl_rl.deploy.export.find_spec", lambda name: None if name == package else found(name))
    with pytest.raises(UsageError, match=re.escape(installation(extra))):
        export(path, to)
    assert list(Path().iterdir()) == [path]


def test_a_file_that_is_no_checkpoint_is_refused():
    Path("text.ckpt").write_text("text")
    with pytest.raises(UsageError, match="is no checkpoint"):
        export(Path("text.ckpt"), "state_dict")


def test_the_command_says_what_it_wrote(capsys):
    checkpoint()
    cli.main(["export", "last.ckpt", "--to", "state_dict", "--output", "new/weights.pt"])
    assert re.fullmatch(
        r"Wrote new/weights\.pt: 12 tensors of the policy for CartPole-v1; [\d,]+ bytes\.\n", capsys.readouterr().out
    )
    for args, message in [
        (["last.ckpt", "--to", "keras"], "invalid choice: 'keras'"),
        (["last.ckpt"], "--to is missing"),
        (["none.ckpt", "--to", "onnx"], "no file 'none.ckpt'"),
    ]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["export", *args])
        assert ended.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.slow
def test_the_pages_player_returns_what_an_evaluation_does():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = checkpoint()
    export(path, "onnx", Path("policy.onnx"))
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (code,) = (block for block in blocks if "onnxruntime" in block)
    played = {}
    exec(compile(code, str(PAGE), "exec"), played)
    policy = policy_of(path)
    # One environment at a time, as the player has it, and the seed of its first episode.
    expected = evaluate(policy.network, EnvConfig("CartPole-v1", "sync"), 1, len(played["returns"]), seed=0)
    assert played["returns"][0] == expected.returns[0]
