"""When updates and rollouts are compiled, what makes them eager again, and the audit of what was compiled."""

import dataclasses
import random

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from pl_rl import PPO, CNNActorCritic, MLPActorCritic, RunFailure, UsageError
from pl_rl.callbacks import RunCheckpoint
from pl_rl.compiled.backend import CompiledLearner
from pl_rl.compiled.rounding import excess_difference
from tests.algorithm.test_settings import Change
from tests.resume import test_resume
from tests.support import MemoryLogger, fit, same_bits, small_ppo

LONG = 10**6  # env steps, of which a run compiles
GLOBAL = {"training": 1.0, "evaluation": 1.0}


@dataclasses.dataclass
class Config:
    scale: float = 1.0


class Scaled(MLPActorCritic):
    """Its outputs depend on much that is no tensor, and on what cannot be seen from it."""

    def __init__(self, *spaces):
        super().__init__(*spaces, actor_sizes=(8,), critic_sizes=(8,))
        self.scale = 1.0
        self.config = Config()
        self.scales = [1.0]
        self.array = np.ones(2, dtype=np.float32)
        self.by_name = {"scales": {"scale": 1.0}}
        self.negative = False
        self.register_buffer("temperature", torch.ones(()))

    def _act(self, features):
        scale = self.scale * self.config.scale * self.scales[0] * self.by_name["scales"]["scale"]
        scale *= GLOBAL["training" if self.training else "evaluation"]
        outputs = super()._act(features) * scale * float(self.array[0]) * self.temperature
        return -outputs if self.negative else outputs


def train(network=Scaled, change=None, max_epochs=4, model_class=PPO, **settings):
    """A model after a few iterations, and the ways in which it made its updates."""
    ways = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            ways.append(pl_module.numerics()["updates"].partition(" ")[0])

    model = small_ppo(network=network, model_class=model_class, **settings)
    logger = MemoryLogger()
    model.trainer_of_test = fit(
        model, max_epochs=max_epochs, logger=logger, callbacks=[Watch(), *([Change(change)] if change else [])]
    )
    return model, ways, logger


def with_network(change, base=Scaled):
    """A network that something is done to when it is made."""

    class Changed(base):
        def __init__(self, *spaces):
            super().__init__(*spaces)
            change(self)

    return Changed


def transpose(network):
    network.critic[0].weight = nn.Parameter(network.critic[0].weight.detach().t().contiguous().t())


def count_calls(module, inputs):
    module.calls = getattr(module, "calls", 0) + 1


def make_forward(forward):
    """A network whose forward pass does something more."""

    class Changed(Scaled):
        def _act(self, features):
            return forward(self, super()._act(features))

    return Changed


def count_runs(network, outputs):
    network.runs = getattr(network, "runs", 0) + 1
    return outputs


def keep(network, outputs):
    network.by_name["latest"] = outputs
    return outputs


def replace_buffer(network, outputs):
    network.temperature = network.temperature * 1.0
    return outputs


def fail(network, outputs):
    if isinstance(outputs.detach(), torch._subclasses.FakeTensor):
        raise IndexError("Replacement index 2 out of range")
    return outputs


REASONS = {
    "transposed parameter": (with_network(transpose), "critic.0.weight is not contiguous"),
    "transposed buffer": (
        with_network(lambda network: network.register_buffer("m", torch.ones(4, 3).t())),
        "m is not contiguous",
    ),
    "forward hook": (
        with_network(lambda network: network.actor[0].register_forward_hook(lambda *_: None)),
        "network.actor.0 has a hook, which would not run",
    ),
    "forward pre-hook": (
        with_network(lambda network: network.actor.register_forward_pre_hook(count_calls)),
        "network.actor has a hook",
    ),
    "backward hook": (
        with_network(lambda network: network.critic[2].register_full_backward_hook(lambda *_: None)),
        "network.critic.2 has a hook",
    ),
    "hook of a parameter": (
        with_network(lambda network: network.critic[0].weight.register_hook(lambda gradient: 0 * gradient)),
        "network.critic.0.weight has a hook",
    ),
    "pruned": (with_network(lambda network: prune.l1_unstructured(network.actor[0], "weight", 0.5)), "has a hook"),
    "frozen": (with_network(lambda network: network.critic.requires_grad_(False)), "parameters that are frozen"),
    "a count": (make_forward(count_runs), "each time that the network runs, network.runs has changed"),
    "a memory": (make_forward(keep), "each time that the network runs, network.by_name.latest has changed"),
    "a buffer that is replaced": (make_forward(replace_buffer), "it replaces network.temperature as it runs"),
    "any failure": (make_forward(fail), "IndexError: Replacement index 2"),
    "dropout": (with_network(lambda network: network.actor.insert(1, nn.Dropout())), "draws random numbers"),
    "batch norm": (with_network(lambda network: network.actor.insert(1, nn.BatchNorm1d(8))), "changes its own state"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", REASONS)
def test_what_cannot_be_compiled_is_trained_eagerly(kind, caplog):
    network, reason = REASONS[kind]
    long, ways, _ = train(network, total_env_steps=LONG, max_epochs=2)
    assert ways == ["eager"] * 2
    assert caplog.text.count("Updates are not compiled: ") == 1
    eager, _, _ = train(network, total_env_steps=LONG, max_epochs=2, compile_update=False)
    assert same_bits(long.state_dict(), eager.state_dict()), "trying leaves nothing behind"
    with pytest.raises(UsageError, match=f"compile_update=true cannot be had: .*{reason}.*; use null or false"):
        train(network, compile_update=True)


def test_convolutions_in_channels_last_are_trained_eagerly():
    network = with_network(lambda network: network.to(memory_format=torch.channels_last), CNNActorCritic)
    with pytest.raises(
        UsageError, match=r"convolutions.0.weight is not contiguous, as after t\(\) or in channels_last"
    ):
        train(network, env="PlRlTest/Pictures-v0", compile_update=True)


def test_any_failure_of_generating_is_a_reason(monkeypatch):
    def generate(graph):
        raise IndexError("Replacement index 2 out of range")

    monkeypatch.setattr("pl_rl.compiled.generator.generate", generate)
    assert train(total_env_steps=LONG, max_epochs=1)[1] == ["eager"]
    with pytest.raises(UsageError, match=r"compile_update=true cannot be had: .*IndexError: Replacement index 2"):
        train(compile_update=True)


def test_hooks_of_an_optimizer_run():
    steps = []

    class Hooked(PPO):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            optimizer.register_step_post_hook(lambda *_: steps.append(1))
            return optimizer

    train(total_env_steps=LONG, model_class=Hooked, max_epochs=2)
    assert len(steps) == 8


def assign(**attributes):
    def change(model):
        for name, value in attributes.items():
            setattr(model.network, name, value)

    return change


def add_layer(model):
    layer = nn.Linear(8, 8)
    nn.init.dirac_(layer.weight.data.view(8, 8, 1)), nn.init.ones_(layer.bias)
    model.network.actor.insert(2, layer)


def add_hook_to_parameter(model):
    model.network.actor[0].weight.register_hook(lambda gradient: 0 * gradient)


CHANGES = {
    "a number": assign(scale=30.0),
    "a flag": assign(negative=True),
    "a number in an object": lambda model: setattr(model.network.config, "scale", 30.0),
    "an object": assign(config=Config(30.0)),
    "an item of a list": lambda model: model.network.scales.__setitem__(0, 30.0),
    "an item of a nested dictionary": lambda model: model.network.by_name["scales"].update(scale=30.0),
    "an array in place": lambda model: model.network.array.fill(30.0),
    "an array": assign(array=np.full(2, 30.0, dtype=np.float32)),
    "a layer": add_layer,
    "a function": lambda model: setattr(
        model.network, "policy", lambda obs: 0 * MLPActorCritic.policy(model.network, obs)
    ),
    "a hook": lambda model: model.network.actor[0].register_forward_hook(lambda module, inputs, output: output + 1),
    "a hook of a parameter": add_hook_to_parameter,
    "pruning": lambda model: prune.l1_unstructured(model.network.actor[0], "weight", 0.9),
    "a parametrization": lambda model: parametrizations.orthogonal(model.network.actor[-1]),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_that_machine_code_does_not_see_makes_a_run_eager(kind, caplog):
    compiled, ways, _ = train(change=CHANGES[kind], compile_update=True)
    assert ways == ["compiled"] * 2 + ["eager"] * 2
    assert caplog.text.count("Updates are eager from iteration 3 on: network.") == 1
    eager, _, _ = train(change=CHANGES[kind], compile_update=False)
    torch.testing.assert_close(compiled.state_dict(), eager.state_dict(), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        assign(temperature=torch.tensor(30.0)),
        lambda model: model.network.temperature.fill_(30.0),
        lambda model: setattr(model.network.critic[0].weight, "data", model.network.critic[0].weight.data + 1),
    ],
    ids=["a buffer", "a buffer in place", "a parameter's memory"],
)
def test_tensors_may_change_in_a_compiled_run(change):
    compiled, ways, _ = train(change=change, compile_update=True)
    assert ways == ["compiled"] * 4
    eager, _, _ = train(change=change, compile_update=False)
    torch.testing.assert_close(compiled.state_dict(), eager.state_dict(), rtol=1e-3, atol=1e-4)
    assert not same_bits(compiled.state_dict(), train(compile_update=True)[0].state_dict())


@pytest.mark.slow
def test_parameters_of_another_form_make_a_run_eager(caplog):
    def change(model):
        weight = model.network.actor[-1].weight
        weight.data = weight.data.t().contiguous().t()

    assert train(change=change, compile_update=True)[1] == ["compiled"] * 2 + ["eager"] * 2
    assert "network.actor.2.weight has another shape or type" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attribute", "change"),
    [
        (1.0, lambda cls: setattr(cls, "class_attribute", 30.0)),
        ([1.0], lambda cls: cls.class_attribute.__setitem__(0, 30.0)),
    ],
    ids=["a number", "an item of a list"],
)
def test_a_change_of_a_class_makes_a_run_eager(attribute, change, caplog):
    class Changed(Scaled):
        class_attribute = attribute

        def _act(self, features):
            scale = self.class_attribute
            return super()._act(features) * (scale[0] if isinstance(scale, list) else scale)

    _, ways, _ = train(Changed, lambda model: change(Changed), compile_update=True)
    assert ways == ["compiled"] * 2 + ["eager"] * 2
    assert "Changed.class_attribute" in caplog.text


@pytest.mark.slow
def test_random_numbers_of_python_are_not_compiled_and_trying_draws_none():
    def draw(network, outputs):
        return outputs * (1 + random.random() + float(np.random.rand()))

    random.seed(0)
    np.random.seed(0)
    long, ways, _ = train(make_forward(draw), total_env_steps=LONG, max_epochs=2)
    assert ways == ["eager"] * 2
    random.seed(0)
    np.random.seed(0)
    eager, _, _ = train(make_forward(draw), total_env_steps=LONG, max_epochs=2, compile_update=False)
    assert same_bits(long.state_dict(), eager.state_dict())


class Rescale(L.Callback):
    """Changes a number that machine code does not see, and knows that it did."""

    def on_train_start(self, trainer, pl_module):
        self.on_train_epoch_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer, pl_module):
        pl_module.network.scale = 30.0 if pl_module.iteration >= 3 else 1.0


@pytest.mark.slow
def test_a_run_that_became_eager_is_resumed_exactly(tmp_path):
    def callbacks():
        return [Rescale(), RunCheckpoint(last_every_n_iterations=1)]

    settings = {"network": Scaled, "total_env_steps": LONG, "compile_update": None}
    test_resume.train(tmp_path / "whole", 6, callbacks=callbacks(), **settings)
    for until in (2, 3, 4):
        root = tmp_path / f"parts {until}"
        test_resume.train(root, until, callbacks=callbacks(), **settings)
        model, _ = test_resume.train(root, 6, "last", callbacks=callbacks(), **settings)
        assert model._callbacks[0].losses == []
        assert test_resume.differences(tmp_path / "whole", root) == {}


@pytest.mark.slow
def test_another_optimizer_is_followed():
    def change(model):
        model.trainer.optimizers = [torch.optim.SGD(model.network.parameters(), lr=0.0)]
        seen.append({name: value.clone() for name, value in model.network.state_dict().items()})

    for compile_update in (False, True):
        seen = []
        model, ways, _ = train(change=change, compile_update=compile_update)
        assert same_bits(seen[0], model.network.state_dict()) and ways[-1] == "eager"


def test_a_network_left_in_evaluation_mode_is_trained_in_training_mode():
    modes = []
    network = make_forward(
        lambda network, outputs: modes.append(network.training and torch.is_grad_enabled()) or outputs
    )
    model, _, _ = train(network, change=lambda model: model.network.eval(), compile_update=False)
    assert modes.count(True) == model.train_iter
    assert not model.network.training


@pytest.mark.slow
def test_an_optimizer_of_a_part_clips_by_its_own_gradients():
    class ActorAlone(PPO):
        def configure_optimizers(self):
            return torch.optim.Adam(self.network.actor.parameters(), lr=1e-3, eps=1e-5, fused=True)

    norms = []
    for compile_update in (False, True):
        model, ways, logger = train(MLPActorCritic, model_class=ActorAlone, compile_update=compile_update)
        assert ways == [["eager"], ["compiled"]][compile_update] * 4
        norms.append(logger.values("losses/grad_norm"))
        assert all(parameter.grad is None for parameter in model.network.critic.parameters())
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)


def scale_globally(mode):
    return lambda model: GLOBAL.update({mode: 30.0})


@pytest.fixture
def _every_audit(monkeypatch):
    monkeypatch.setattr("pl_rl.compiled.backend.ITERATIONS_BETWEEN_AUDITS", 1)
    monkeypatch.setitem(GLOBAL, "training", 1.0)
    monkeypatch.setitem(GLOBAL, "evaluation", 1.0)


@pytest.mark.slow
@pytest.mark.usefixtures("_every_audit")
@pytest.mark.parametrize(
    ("mode", "what"),
    [("training", "the gradient differs from PyTorch's"), ("evaluation", "the policy's outputs differ from PyTorch's")],
)
def test_an_audit_finds_what_nobody_noticed(mode, what):
    sentence = (
        rf"compiled updates are wrong in iteration 3: {what} by [\d.e+-]+ of (its|their) length "
        r"\(they agreed in iteration 2\); no checkpoint was saved; continue it with --model.compile_update false"
    )
    with pytest.raises(RunFailure, match=sentence):
        train(change=scale_globally(mode), compile_update=True)


@pytest.mark.slow
@pytest.mark.usefixtures("_every_audit")
def test_an_audit_finds_wrong_actions(monkeypatch):
    def sample(self, outputs, noise):
        return (outputs + noise + torch.tensor([0.0, GLOBAL["evaluation"]])).argmax(-1)

    monkeypatch.setattr("pl_rl.networks.distributions.Categorical.sample", sample)
    monkeypatch.setitem(GLOBAL, "evaluation", 0.0)

    class Plain(MLPActorCritic):
        pass

    with pytest.raises(RunFailure, match="the actions differ from those that PyTorch samples"):
        train(Plain, change=scale_globally("evaluation"), compile_update=True)


@pytest.mark.slow
def test_an_evaluation_is_a_reason_for_an_audit():
    with pytest.raises(RunFailure, match="wrong in iteration 4"):
        train(change=scale_globally("training"), compile_update=True, eval_freq=16, eval_episodes=1, max_epochs=8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"env": "CartPole-v1", "network": MLPActorCritic},
        {"env": "Pendulum-v1", "network": MLPActorCritic, "norm_obs": True, "clip_vloss": True},
        {"env": "PlRlTest/Pictures-v0", "network": CNNActorCritic, "total_env_steps": 128},
    ],
    ids=["discrete", "continuous", "pixels"],
)
def test_audits_change_nothing_and_agree(settings, monkeypatch):
    results = []
    for every in (1, 10**6):
        monkeypatch.setattr("pl_rl.compiled.backend.ITERATIONS_BETWEEN_AUDITS", every)
        audits = []
        with monkeypatch.context() as counting:
            counting.setattr(CompiledLearner, "audit", counted(CompiledLearner.audit, audits))
            model, _, _ = train(compile_update=True, max_epochs=8, learning_rate=0.01, **settings)
        assert len(audits) == (model.iteration if every == 1 else 1)
        assert all(parameter.grad is None for parameter in model.parameters())
        results.append((model.state_dict(), model.trainer_of_test.optimizers[0].state_dict(), torch.get_rng_state()))
    (weights, adam, random), (other_weights, other_adam, other_random) = results
    assert same_bits(weights, other_weights) and torch.equal(random, other_random)
    torch.testing.assert_close(adam, other_adam, rtol=0, atol=0)


def counted(function, calls):
    def count(*arguments):
        calls.append(1)
        return function(*arguments)

    return count


ONES = torch.ones(100)


@pytest.mark.parametrize(
    ("actual", "expected", "nearby", "fault"),
    [
        (ONES + 1e-5, ONES, 2 * ONES, None),
        (0 * ONES + 1e-8, 0 * ONES, 0 * ONES, None),  # no gradient, but for rounding
        (ONES + 0.1, ONES, ONES + 0.1, None),  # as far as slightly other parameters would be
        (ONES * torch.nan, ONES * torch.nan, ONES, None),  # a run that is lost says so itself
        (ONES + 0.1, ONES, ONES + 1e-4, pytest.approx(0.1)),
        (ONES * torch.nan, ONES, 2 * ONES, pytest.approx(torch.nan, nan_ok=True)),
        (0 * ONES, ONES, ONES + 1e-4, pytest.approx(1.0)),
    ],
)
def test_rounding_is_no_fault(actual, expected, nearby, fault):
    assert excess_difference(actual, expected, lambda: nearby) == fault


@pytest.mark.slow
def test_acting_is_audited_while_parameters_are_frozen(monkeypatch):
    monkeypatch.setattr("pl_rl.compiled.backend.ITERATIONS_BETWEEN_AUDITS", 1)
    monkeypatch.setitem(GLOBAL, "evaluation", 1.0)

    def change(model):
        model.network.critic.requires_grad_(False)
        GLOBAL["evaluation"] = 30.0

    with pytest.raises(RunFailure, match="the policy's outputs differ"):
        train(change=change, compile_update=True)
