"""A checkpoint's tree is what it should be, entry by entry, before anything of it is used."""

import functools
import re
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer

import pl_rl
from pl_rl.callbacks import PretrainedCheckpoint, RunCheckpoint
from pl_rl.checkpoints.format import FORMAT_VERSION, check_content, read_checkpoint
from pl_rl.deploy.policy import read_trained
from pl_rl.envs import EnvConfig
from pl_rl.files.schema import Misfit, fields, like, mapping, maybe, number, record, sequence, whole
from pl_rl.pretrained import read_weights
from pl_rl.runs.directory import newest_sound_checkpoint
from pl_rl.tools.inspection import describe_checkpoint
from tests.data.checkpoints import make
from tests.example_networks import LinearValue
from tests.support import small_ppo

FOLDER = Path(make.__file__).parent
REPLAY = "pl_rl.collector.environments.state[0]"
ENVS = {"CartPole-v1": "pl_rl.collector.environments.state", "Pendulum-v1": REPLAY}
GENERATOR = "pl_rl.collector.generator"

# By the place of an entry: what it becomes.
BROKEN = {
    "": [None, [], 3, "text"],
    "pl_rl": [None, [], {}],
    "pl_rl.format_version": [0, -1, "1", None, True, 10**30],
    "pl_rl.counters": [None, {}, []],
    "pl_rl.counters.env_steps": [-1, 10**30, 1.5, "1", True, None, torch.tensor(1)],
    "pl_rl.counters.elapsed_seconds": [-1.0, float("nan"), float("inf"), "1", 10**400],
    "pl_rl.counters.run_seed": [None, -1, 2**64, 1.0],
    "pl_rl.collector": [None, {}],
    "pl_rl.collector.obs": [None, torch.zeros(()), torch.zeros(3, 4), torch.zeros(2, 4).bfloat16(), [[1.0]]],
    "pl_rl.collector.episodes.open_returns": [torch.zeros(2), torch.zeros(3).double(), [0.0, 0.0], None],
    "pl_rl.collector.episodes.open_lengths": [torch.zeros(1, dtype=torch.int64), torch.zeros(2)],
    "pl_rl.collector.episodes.recent": [None, [(1.0,)], [1.0], [(1.0, 2.0)], [("1", 2)], [(1.0, -1)], {}],
    "pl_rl.collector.episodes.total": [-1, None],
    GENERATOR: [torch.zeros(5056).byte(), torch.zeros(16).byte(), torch.zeros(5056), None, b"x"],
    "pl_rl.collector.environments": [{}, [], {"class": 3, "state": None}],
    "pl_rl.random": [None, {}],
    "pl_rl.random.python": [None, (3, (1, 2), None), (9, (), None), [3]],
    "pl_rl.random.numpy": [None, {}, {"bit_generator": "PCG64", "state": {}}],
    "pl_rl.random.numpy.state": [{"key": torch.zeros(3, dtype=torch.int64), "pos": 1}, None],
    "pl_rl.random.torch": [torch.zeros(3, dtype=torch.uint8), None],
    "pl_rl.random.cuda": [None, [None], [torch.zeros(3)]],
    "pl_rl.platform": [None, {"torch": 2}, {3: "x"}],
    "pl_rl.between_iterations": [None, 1, "yes"],
    "pl_rl.ended_by_callback": [None],
    "pl_rl.parent": ["x", {}, {"checkpoint": None, "train_iter": 1, "env_steps": 1}],
    "pl_rl.seed_everything": [None, "0"],
    "pl_rl.run_id": [3], "pl_rl.spaces": ["x"],
    "pl_rl.callback_settings": [[], {"Own": {"a": torch.eye(2).to_sparse()}}],
    "pl_rl.network": ["x", [3], ["x"]],
    "pl_rl_logs": [None, {}, [3], [{"class": "x"}], [{"class": "x", "folder": ".", "reached": {"a": -1}}]],
    "callbacks": [None, [], {3: {}}],
    "callbacks.PeriodicEvaluation": [{}, None, {"latest": {}, "best_return": 0.0, "train_iter": 3}],
    "callbacks.PeriodicEvaluation.latest": [None, {"return_mean": "x"}, {"return_mean": 1.0}],
    "callbacks.PeriodicEvaluation.best_return": [None, "x"],
    "callbacks.RunCheckpoint": [{}, {"best_model_score": None, "kept": []}, {"best_model_score": 1.0, "kept": [None]}],
    "callbacks.PretrainedCheckpoint": [{"path": 3}, []],
    "hyper_parameters": [None, {}],
    "hyper_parameters.env": [None, "x", {"id": 3}],
    "hyper_parameters.env.kwargs": [{1: 2}, {"a": torch.zeros(1)}, []],
    "hyper_parameters.network": [None, {"class_path": 3, "init_args": {}}, {"class_path": "x"}],
    "hyper_parameters.total_env_steps": [None, "x", -1],
    "hyper_parameters.num_envs": [None, 1.5, 3, 10**9],
    "hyper_parameters.own": [torch.zeros(1), b"x", {1: 2}],
    "state_dict": [None, []],
    "state_dict.own": [None, 3],
    "optimizer_states": [None, {}, [None], [{}], [{"state": {}, "param_groups": 3}]],
    "loops": [None, []],
    "lr_schedulers": [None, [3]],
    "epoch": [None, -1], "global_step": [None, "x", 10**30],
    "pytorch-lightning_version": [None, 3, "x", "1.0"],
}  # fmt: skip
ENV_STATE = {
    "CartPole-v1": {
        "state": [None, torch.zeros(4, 3).double(), torch.zeros(8).double()],
        "steps": [torch.zeros(2), torch.zeros(3, dtype=torch.int32)],
        "prev_done": [torch.zeros(2)],
        "generator": [
            None,
            {},
            {"bit_generator": "PCG64", "state": {"state": -1, "inc": 1}},
            {"bit_generator": "MT19937"},
        ],
    },
    "Pendulum-v1": {
        "first_seed": [None, -1, "x"],
        "anchors": [-1, 10**30, 0.5],
        "actions": [None, torch.zeros(()), [1.0], torch.zeros(3).bfloat16()],
        "resets": [None, [None], [-1], 3],
        "lasting": [3, [3], [{"mean": 3}]],
        "digest": [1.5, [], torch.zeros(1)],
    },
}


CASES = [("CartPole-v1", place, values) for place, values in BROKEN.items()] + [
    (env, f"{ENVS[env]}.{name}", values) for env, parts in ENV_STATE.items() for name, values in parts.items()
]


def changed(content, place, value):
    """The content with another value at a dotted place."""
    if not place:
        return value
    inner, last = entry(content, place)
    inner[last] = value
    return content


def entry(content, place):
    """What holds the entry at a dotted place, and the entry's name in it."""
    *parts, last = place.replace("[0]", ".0").split(".")
    for part in parts:
        content = content[int(part) if isinstance(content, list) else part]
    return content, last


@functools.cache
def _bytes(env):
    return (FOLDER / f"format_1_{env}.ckpt").read_bytes()


def written(env, place, value):
    Path("sound.ckpt").write_bytes(_bytes(env))
    content = read_checkpoint(Path("sound.ckpt"))  # in the present format
    path = Path("broken.ckpt")
    torch.save(changed(content, place, value), path)
    return path


@pytest.mark.parametrize(("env", "place", "values"), CASES, ids=[place for _, place, _ in CASES])
def test_an_entry_that_is_something_else_is_one_sentence(env, place, values):
    for value in values:
        path = written(env, place, value)
        for read in (read_checkpoint, describe_checkpoint, read_trained, read_weights):
            with pytest.raises(pl_rl.UsageError) as error:
                read(path)
            assert "\n" not in str(error.value)
            if "." in place:
                assert place.split(".")[1] in str(error.value)


def nodes(tree, path=()):
    for key, item in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        if key != "loops":
            yield (*path, key)
            yield from nodes(item, (*path, key))


@pytest.mark.parametrize("name", ["pl_rl.run_id", "pl_rl.spaces", "pl_rl.callback_settings", f"{REPLAY}.digest"])
def test_what_older_formats_lack_is_there_in_the_present_one(name):
    content = torch.load(FOLDER / "format_2_Pendulum-v1.ckpt", weights_only=True)
    inner, last = entry(content, name)
    del inner[last]
    with pytest.raises(pl_rl.UsageError, match=f"{re.escape(name)} is absent"):
        check_content("cut.ckpt", content)


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, FORMAT_VERSION])
@pytest.mark.parametrize("env", ENVS)
def test_whatever_is_missing_is_one_sentence_or_not_needed(env, number):
    content = torch.load(FOLDER / f"format_{number}_{env}.ckpt", weights_only=True)
    refused = 0
    for path in list(nodes(content)):
        parent = functools.reduce(lambda part, key: part[key], path[:-1], content)
        if isinstance(parent, dict):
            taken = parent.pop(path[-1])
            torch.save(content, "cut.ckpt")
            parent[path[-1]] = taken
            try:
                describe_checkpoint(Path("cut.ckpt"))
            except pl_rl.UsageError as error:
                assert "\n" not in str(error)
                refused += 1
    assert refused > 40


def quiet(trainer_class, until=3, **settings):
    return trainer_class(
        accelerator="cpu",
        max_epochs=until,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def resumed(env, path, trainer_class, callbacks=()):
    model = small_ppo(env=env, **{name: make.SETTINGS[name] for name in ("network", "num_envs")})
    quiet(trainer_class, until=9, callbacks=list(callbacks), enable_checkpointing=False).fit(model, ckpt_path=path)


@pytest.mark.parametrize("trainer_class", [pl_rl.Trainer, L.Trainer])
@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("pl_rl.counters.train_iter", -1),
        (GENERATOR, torch.zeros(3, dtype=torch.uint8)),
        ("pl_rl.format_version", "x"),
        ("callbacks.PeriodicEvaluation", {}),
        ("pl_rl_logs", None),
        ("own", [[[0] * 100] * 1000] * 1000),
    ],
)
def test_lightnings_way_in_is_guarded_too(place, value, trainer_class):
    path = written("CartPole-v1", place, value)
    with pytest.raises(pl_rl.UsageError, match="is no checkpoint, or a damaged one"):
        resumed("CartPole-v1", path, trainer_class)
    with pytest.raises(pl_rl.UsageError, match="is no checkpoint, or a damaged one"):
        check_content("x", torch.load(path, weights_only=True))


def adam(content):
    return content["optimizer_states"][0]


OPTIMIZERS = {
    "none": lambda c: c.update(optimizer_states=[]),
    "two": lambda c: c["optimizer_states"].append(adam(c)),
    "fewer parameters": lambda c: adam(c)["param_groups"][0]["params"].pop(),
    "another shape": lambda c: adam(c)["state"][0].update(exp_avg=torch.zeros(3)),
    "no average": lambda c: adam(c)["state"][0].pop("exp_avg_sq"),
    "no number": lambda c: adam(c)["state"][0].update(exp_avg=None),
    "no count": lambda c: adam(c)["state"][0].update(step="x"),
    "no state": lambda c: adam(c)["state"].update({0: torch.zeros(3)}),
    "a state that is none": lambda c: adam(c)["state"].update({0: None}),
    "a state of no parameter": lambda c: adam(c)["state"].update({99: None}),
    "rate": lambda c: adam(c)["param_groups"][0].update(lr=float("nan")),
    "negative rate": lambda c: adam(c)["param_groups"][0].update(lr=-1.0),
    "text for a rate": lambda c: adam(c)["param_groups"][0].update(lr="0.1"),
    "betas": lambda c: adam(c)["param_groups"][0].update(betas=3),
    "no betas": lambda c: adam(c)["param_groups"][0].pop("betas"),
    "switch on": lambda c: adam(c)["param_groups"][0].update(amsgrad=True),
    "two switches on": lambda c: adam(c)["param_groups"][0].update(foreach=True),
    "switch": lambda c: adam(c)["param_groups"][0].update(fused="x"),
    "neither on nor off": lambda c: adam(c)["param_groups"][0].update(maximize=None),
    "loop": lambda c: c["loops"].update(fit_loop=None),
    "progress": lambda c: c["loops"]["fit_loop"].update(epoch_progress={}),
    "negative progress": lambda c: c["loops"]["fit_loop"]["epoch_progress"]["current"].update(completed=-5),
    "batches": lambda c: c["loops"]["fit_loop"]["epoch_loop.state_dict"].update(_batches_that_stepped="x"),
    "early stopping": lambda c: c["callbacks"].update({EarlyStopping("evaluator/return_mean").state_key: {}}),
    "timer": lambda c: c["callbacks"].update(Timer={"time_elapsed": {"train": "x"}}),
}


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("change", OPTIMIZERS)
def test_what_lightning_restores_fits_what_is_to_have_it(change):
    content = torch.load(FOLDER / "format_1_CartPole-v1.ckpt", weights_only=True)
    OPTIMIZERS[change](content)
    torch.save(content, "broken.ckpt")
    callbacks = [EarlyStopping("evaluator/return_mean"), Timer("00:01:00:00")]
    with pytest.raises(pl_rl.UsageError, match=r"cannot be continued here: .* should be|is no checkpoint"):
        resumed("CartPole-v1", "broken.ckpt", pl_rl.Trainer, callbacks)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_callback_whose_settings_changed_has_a_state_that_is_none():
    content = torch.load(FOLDER / "format_2_CartPole-v1.ckpt", weights_only=True)
    stopping = EarlyStopping("evaluator/return_mean", patience=3)
    content["pl_rl"]["callback_settings"][stopping.state_key] = {"patience": 99}
    content["callbacks"][stopping.state_key] = torch.zeros(3)
    torch.save(content, "broken.ckpt")
    with pytest.raises(pl_rl.UsageError, match=r"cannot be continued here: callbacks.EarlyStopping"):
        resumed("CartPole-v1", "broken.ckpt", pl_rl.Trainer, [stopping])


class Own(L.Callback):
    """Saves what it likes."""

    def state_dict(self):
        return {"tensor": torch.zeros(3), "list": [1, (2, None)], 3: {"x": 1.0}}

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        checkpoint["own"] = {"text": "x", "nested": [{"a": torch.eye(2).to_sparse()}]}


class Sgd(pl_rl.PPO):
    """Another optimizer in two groups, and a state beside the tensors."""

    def configure_optimizers(self):
        first, *others = self.network.parameters()
        return torch.optim.SGD([{"params": [first]}, {"params": others, "lr": 0.1}], lr=0.01, momentum=0.9)


class Factored(pl_rl.PPO):
    """An optimizer whose states have not the shapes of the parameters."""

    def configure_optimizers(self):
        return torch.optim.Adafactor(self.network.parameters(), lr=0.01)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("trainer_class", [pl_rl.Trainer, L.Trainer])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"model_class": Sgd},
        {"model_class": Factored},
        {"env": "Pendulum-v1", "norm_obs": True, "norm_reward": True},
        {"env": {"id": "Pendulum-v1", "wrappers": ["gymnasium.wrappers.NormalizeReward"]}},
        {"network": functools.partial(LinearValue, slope=2.0, offset=1.0)},
    ],
    ids=["plain", "sgd", "adafactor", "normalized", "lasting", "own network"],
)
def test_every_sound_checkpoint_passes(settings, trainer_class):
    settings = {"eval_freq": 4, "eval_episodes": 1, "eval_num_envs": 1, "compile_update": False, **settings}

    def callbacks():
        stopping = EarlyStopping("evaluator/return_mean", patience=9)
        return [Own(), PretrainedCheckpoint(), stopping, Timer("00:01:00:00"), ModelCheckpoint("saved", save_last=True)]

    quiet(trainer_class, callbacks=callbacks()).fit(small_ppo(**settings))
    path = Path("saved/last.ckpt")
    for read in (read_checkpoint, describe_checkpoint, read_trained):
        read(path)
    model = small_ppo(**settings)
    trainer = trainer_class(
        accelerator="cpu",
        max_epochs=4,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks(),
    )
    trainer.fit(model, ckpt_path=str(path))
    assert model.iteration == 4


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_checkpoints_of_other_precisions_pass(precision):
    settings = {"precision": precision, "enable_checkpointing": False}
    trainer = quiet(pl_rl.Trainer, until=1, **settings)
    trainer.fit(small_ppo())
    trainer.save_checkpoint("last.ckpt", weights_only=False)
    describe_checkpoint(Path("last.ckpt"))
    quiet(pl_rl.Trainer, until=2, **settings).fit(small_ppo(), ckpt_path="last.ckpt")


@pytest.mark.slow
def test_statistics_are_whole_and_of_one_number():
    trainer = quiet(pl_rl.Trainer, until=1, enable_checkpointing=False)
    trainer.fit(small_ppo(env="Pendulum-v1", norm_obs=True, norm_reward=True))
    trainer.save_checkpoint("sound.ckpt", weights_only=False)
    for name in (
        "normalizer.count",
        "normalizer.clip",
        "reward_scaler.var",
        "reward_scaler.count",
        "reward_scaler.mean",
    ):
        for value in (None, torch.zeros(3), torch.tensor(torch.nan)):
            content = torch.load("sound.ckpt", weights_only=True)
            if value is None:
                del content["state_dict"][name]
            elif name.endswith(("count", "var")):
                content["state_dict"][name] = value
            else:
                continue
            torch.save(content, "broken.ckpt")
            with pytest.raises(pl_rl.UsageError, match=rf"state_dict\.{name} is .*should be"):
                describe_checkpoint(Path("broken.ckpt"))


def test_a_checkpoint_with_a_broken_entry_is_passed_over(capsys):
    folder = Path("run/checkpoints")
    folder.mkdir(parents=True)
    (folder / "previous.ckpt").write_bytes(_bytes("CartPole-v1"))
    written("CartPole-v1", "pl_rl.counters.iteration", -1).rename(folder / "last.ckpt")
    assert newest_sound_checkpoint(Path("run")).name == "previous.ckpt"
    assert "pl_rl.counters.iteration is -1, and should be a whole number from 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("schema", "fine", "wrong"),
    [
        (whole(1, 3), [1, 3], [0, 4, True, 1.0, "1", None]),
        (number(0, 1), [0, 1, 0.5], [-0.1, float("nan"), True, 10**400, "0"]),
        (number(), [float("nan"), -float("inf"), 3], [10**30, None]),
        (maybe(whole()), [None, 3], [-1]),
        (record({"a": whole()}), [{"a": 1}, {"a": 1, "b": [2]}], [{}, {"a": None}, {"a": 1, 3: 4}, []]),
        (mapping(whole()), [{}, {"a": 1}], [{"a": None}, {1: 1}, []]),
        (sequence(whole()), [[], [1], (1, 2)], [[None], 3, {}]),
        (fields(whole(), maybe(whole())), [(1, None), [1, 2]], [(1,), (None, 1), 3]),
        (like({"a": (1, True), "b": 0.5}), [{"a": (2, False), "b": 1}], [{"a": (1, 2), "b": 1}, {"a": (1, True)}]),
    ],
)
def test_schemas(schema, fine, wrong):
    for value in fine:
        schema(value, "x")
    for value in wrong:
        with pytest.raises(Misfit, match=r"^(a name in )?x"):
            schema(value, "x")


class Documented(pl_rl.PPO):
    """Saves its arguments as Lightning documents it."""

    def __init__(self, env, beta=1.0, network=LinearValue, layer=None, **settings):
        super().__init__(env, network, **settings)
        self.beta = beta
        self.save_hyperparameters()


class Forgets(pl_rl.PPO):
    """Writes what a resume refuses."""

    def on_save_checkpoint(self, checkpoint):
        checkpoint["hyper_parameters"]["env"] = "CartPole-v1"
        super().on_save_checkpoint(checkpoint)


@pytest.mark.parametrize("env", ["CartPole-v1", EnvConfig("CartPole-v1", kwargs={"sutton_barto_reward": False})])
@pytest.mark.parametrize("trainer_class", [pl_rl.Trainer, L.Trainer])
def test_a_subclass_may_save_its_own_arguments(env, trainer_class, tmp_path):
    last = tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt"
    for steps in (128, 192):
        ppo = small_ppo(model_class=Documented, env=env, beta=2.0, layer=torch.tanh, total_env_steps=steps)
        trainer = trainer_class(
            accelerator="cpu", default_root_dir=tmp_path, max_epochs=-1, callbacks=[RunCheckpoint()],
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(ppo, ckpt_path=last if steps == 192 else None)
    assert ppo.iteration == 192 // (ppo.num_envs * ppo.num_steps)
    restored = Documented.load_from_checkpoint(last)
    assert restored.beta == 2.0 and restored.env_config == ppo.env_config
    assert isinstance(restored.network, LinearValue)
    assert restored.hparams.env["id"] == "CartPole-v1" and "tanh" in restored.hparams.layer
    restored.env_config = EnvConfig("CartPole-v1", timeout=3.0)
    assert restored.hparams.env["timeout"] == 3.0


@pytest.mark.parametrize("trainer_class", [pl_rl.Trainer, L.Trainer])
def test_a_run_whose_checkpoints_would_be_refused_ends_when_it_begins(trainer_class, tmp_path):
    ppo = small_ppo(model_class=Forgets)
    trainer = trainer_class(
        accelerator="cpu", default_root_dir=tmp_path, max_epochs=-1, callbacks=[RunCheckpoint()],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(pl_rl.RunFailure, match=r"hyper_parameters\.env is 'CartPole-v1', and should be a dictionary"):
        trainer.fit(ppo)
    assert ppo.iteration == 0 and not list(tmp_path.rglob("*.ckpt"))
