"""Parameters that do not learn at the beginning of a run that starts from a file."""

from functools import partial

import lightning as L
import pytest
import torch

from pl_rl import MLPActorCritic, UsageError
from pl_rl.callbacks import PretrainedCheckpoint, RunCheckpoint
from tests.pretrained.support import DATA
from tests.resume.test_resume import differences, last_of, train
from tests.support import fit, read_checkpoint, same_bits, small_ppo

MODEL = DATA / "stable_baselines3" / "ppo_cartpole.zip"
SEPARATE = partial(MLPActorCritic, actor_sizes=[32, 32], critic_sizes=[32, 32])
SHARED = partial(MLPActorCritic, encoder_sizes=[8], actor_sizes=[8], critic_sizes=[8])


class Moved(L.Callback):
    """Notes the parameters that each iteration moved."""

    def __init__(self):
        self.iterations = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.before = {name: tensor.clone() for name, tensor in pl_module.network.state_dict().items()}

    def on_train_epoch_end(self, trainer, pl_module):
        after = pl_module.network.state_dict()
        self.iterations.append({name for name, tensor in self.before.items() if not after[name].equal(tensor)})


def moved(iterations, path=MODEL, network=SEPARATE, **options):
    """The parameters that each iteration of a run moved, and those of the network."""
    model, note = small_ppo(network=network), Moved()
    fit(model, max_epochs=iterations, callbacks=[PretrainedCheckpoint(str(path), **options), note])
    assert all(parameter.requires_grad for parameter in model.network.parameters())
    return note.iterations, {name for name, _ in model.network.named_parameters()}


def parts(names, *beginnings):
    return {name for name in names if name.startswith(beginnings)}


@pytest.fixture
def shared(tmp_path):
    """A file of a policy that shares an encoder with its critic."""
    path = tmp_path / "shared.pt"
    torch.save(small_ppo(network=SHARED).network.state_dict(), path)
    return path


def test_frozen_parameters_learn_after_their_iterations_only():
    iterations, names = moved(3, freeze=["actor.0.*", "critic.2.bias"], freeze_iterations=2)
    frozen = parts(names, "actor.0.", "critic.2.bias")
    assert frozen and iterations == [names - frozen, names - frozen, names]


def test_parameters_can_be_frozen_for_the_whole_run():
    iterations, names = moved(2, freeze=["actor.*"])
    assert iterations == [parts(names, "critic.")] * 2


def test_the_value_function_learns_alone_while_the_critic_warms_up():
    iterations, names = moved(2, critic_warmup=1)
    assert iterations == [parts(names, "critic."), names]


def test_an_encoder_that_the_policy_depends_on_is_held_too(shared):
    iterations, names = moved(2, shared, SHARED, critic_warmup=1)
    assert parts(names, "encoder.") and iterations == [parts(names, "critic."), names]


def test_freezing_and_warming_up_add_up(shared):
    options = {"critic_warmup": 1, "freeze": ["critic.0.*", "encoder.*"], "freeze_iterations": 2}
    iterations, names = moved(3, shared, SHARED, **options)
    assert iterations == [parts(names, "critic.2."), parts(names, "critic.2.", "actor."), names]


def test_a_parameter_that_its_owner_froze_stays_frozen():
    model, note = small_ppo(network=SEPARATE), Moved()
    model.network.actor[0].weight.requires_grad_(False)
    fit(
        model, max_epochs=2, callbacks=[PretrainedCheckpoint(str(MODEL), freeze=["actor.*"], freeze_iterations=1), note]
    )
    assert "actor.0.weight" not in note.iterations[1] and "actor.0.bias" in note.iterations[1]
    assert not model.network.actor[0].weight.requires_grad


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("cut", [1, 2, 4])
def test_a_resume_goes_on_holding_bit_for_bit(tmp_path, cut, compiled, capsys):
    """Without the options too: they are those of the run's beginning, which the checkpoint remembers."""
    hold = {"critic_warmup": 2, "freeze": ["actor.0.*"], "freeze_iterations": 3}

    def go(root, until, ckpt_path=None, **options):
        saving = RunCheckpoint(last_every_n_iterations=1)
        callbacks = [PretrainedCheckpoint(**options), saving]
        train(root, until, ckpt_path, callbacks=callbacks, network=SEPARATE, compile_update=compiled)

    go(tmp_path / "whole", 6, path=str(MODEL), **hold)
    go(tmp_path / "parts", cut, path=str(MODEL), **hold)
    go(tmp_path / "parts", 6, last_of(tmp_path / "parts"))
    assert "fidelity: exact" in capsys.readouterr().out
    assert differences(tmp_path / "whole", tmp_path / "parts") == {}
    steps = {float(state["step"]) for state in optimizer_state(tmp_path / "whole").values()}
    assert steps == {12.0, 16.0, 24.0}


@pytest.mark.slow
def test_what_a_resume_changes_of_it_takes_effect_and_is_listed(tmp_path, capsys):
    note = Moved()
    for until, ckpt_path, iterations, callbacks in [(1, None, 1, []), (4, last_of(tmp_path), 3, [note])]:
        held = PretrainedCheckpoint(str(MODEL), freeze=["actor.*"], freeze_iterations=iterations)
        train(tmp_path, until, ckpt_path, callbacks=[held, *callbacks, RunCheckpoint()], network=SEPARATE)
    assert "changed: pretrained.freeze_iterations: 1 -> 3\n" in capsys.readouterr().out
    assert [any(name.startswith("actor.") for name in moved) for moved in note.iterations] == [False, False, True]


def optimizer_state(root):
    return read_checkpoint(last_of(root))["optimizer_states"][0]["state"]


def test_a_new_fit_of_the_model_holds_nothing():
    model, note = small_ppo(network=SEPARATE), Moved()
    fit(model, max_epochs=1, callbacks=[PretrainedCheckpoint(str(MODEL), freeze=["actor.*"])])
    fit(model, max_epochs=1, callbacks=[PretrainedCheckpoint(), note])
    assert note.iterations == [{name for name, _ in model.network.named_parameters()}]


def refusal(network=SEPARATE, path=MODEL, **options):
    model = small_ppo(network=network)
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    with pytest.raises(UsageError) as refused:
        PretrainedCheckpoint(path and str(path), **options).check(model)
    assert same_bits(model.network.state_dict(), before)
    return str(refused.value)


def test_holds_that_cannot_be_are_refused(tmp_path):
    assert "--pretrained.freeze has 'actr.*', which matches none of" in refusal(freeze=["actr.*"])
    assert "--pretrained.freeze leaves no parameter that learns in iteration 0" in refusal(freeze=["*"])
    message = refusal(freeze=["critic.*"], critic_warmup=3)
    assert "--pretrained.critic_warmup leaves no parameter that learns in iteration 0" in message
    assert "freeze_iterations is -1 and must not be negative" in refusal(freeze_iterations=-1)
    assert "add --pretrained.path FILE" in refusal(path=None, critic_warmup=1)
