"""The readers: each makes a mutated file in a folder, and gives what reads it.

What a reader may raise is ours, a :class:`pl_rl.UsageError` or a :class:`pl_rl.RunFailure`, or the end of the command
line with status 2.
"""

import contextlib
import functools
import hashlib
import io
import json
import traceback
import zipfile

import lightning as L
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import TensorBoardLogger
from rich.markup import escape, render
from tensorboard.summary.writer.record_writer import RecordWriter

import pl_rl
from pl_rl.checkpoints.format import check_content, load_sound
from pl_rl.checkpoints.schema import LOGS
from pl_rl.cli.parsing import ConfigFile
from pl_rl.cli.trainer_verbs import TrainerParser
from pl_rl.deploy.policy import TrainedPolicy, file_metadata, load_weights, read_trained
from pl_rl.files.plain_yaml import read_yaml
from pl_rl.files.schema import Misfit
from pl_rl.files.terminal import printable
from pl_rl.pretrained import read_weights
from pl_rl.runs.directory import run_begun_by
from pl_rl.runs.identity import mark
from pl_rl.runs.logs import continue_logs
from pl_rl.tools.inspection import describe_checkpoint
from pl_rl.tools.plotting import plot_runs, read_segments
from tests.fuzz.mutations import EXTREMES, mutated_archive, mutated_bytes, mutated_text, mutated_tree, places, saved
from tests.fuzz.sound import ITERATIONS, KINDS, model, trainer


def checkpoint_bytes(rng, sound, folder):
    """Checkpoints with flipped and foreign bytes, checksums right again for most."""
    name = rng.choice([name for name in sound.weights if name.endswith(".ckpt")])
    data = sound.weights[name]
    path = _written(
        folder / "a.ckpt",
        mutated_archive(rng, data, rng.random() < 0.8) if rng.random() < 0.8 else mutated_bytes(rng, data),
    )
    return functools.partial(_describe, path)


def checkpoint_trees(rng, sound, folder):
    """Checkpoints with other entries, checksums right."""
    path = _mutated_checkpoint(rng, sound, folder, list(sound.checkpoints))
    return functools.partial(rng.choice((_describe, _describe, _export, _lightning_load)), path)


def weights_bytes(rng, sound, folder):
    """All formats of weights with flipped and foreign bytes."""
    data = sound.weights[rng.choice(list(sound.weights))]
    archive = data.startswith(b"PK") and rng.random() < 0.8
    path = _written(
        folder / "a.pt", mutated_archive(rng, data, rng.random() < 0.2) if archive else mutated_bytes(rng, data)
    )
    return functools.partial(_read_weights, path, rng.random())


def weights_trees(rng, sound, folder):
    """All formats of weights with other entries."""
    if rng.random() < 0.3:
        path = _mutated_checkpoint(rng, sound, folder, list(sound.checkpoints))
        return functools.partial(_read_weights, path, rng.random())
    name = rng.choice(list(sound.trees))
    tree = sound.trees[name]
    if name.endswith(".zip"):
        data = _mutated_model(rng, tree)
    else:
        data = saved(mutated_tree(rng, tree, sound.paths[name]), checksum=False)
    return functools.partial(_read_weights, _written(folder / "a.pt", data), rng.random())


def configs(rng, sound, folder):
    """Configurations, as texts and as trees; also in the place of a run's note of its command."""
    text = rng.choice(sound.configs)
    if rng.random() < 0.7:
        text = mutated_text(rng, text)
    else:
        tree = yaml.safe_load(text)
        with contextlib.suppress(yaml.YAMLError):
            text = yaml.safe_dump(_yaml_tree(rng, tree))
    path = folder / "version_0" / "command.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text.encode(rng.choice(("utf-8", "utf-8", "utf-8", "utf-16", "utf-8-sig")), "surrogatepass"))
    return functools.partial(_read_config, path)


def arguments(rng, sound, folder):
    """Configurations and values as the command line's parser has them."""
    text = mutated_text(rng, rng.choice(sound.configs))
    path = _written(folder / "a.yaml", text.encode("utf-8", "surrogatepass"))
    args = ["--config", str(path)]
    if rng.random() < 0.3:
        value = mutated_text(rng, rng.choice(("{a: 1}", "[1, 2]", "3", "CartPole-v1", "{id: CartPole-v1, kwargs: {}}")))
        args = [
            f"--{rng.choice(('env', 'env.kwargs', 'num_envs', 'learning_rate', 'network', 'network.init_args'))}",
            value,
        ]
    return functools.partial(_parse, args)


def events(rng, sound, folder):
    """Event files with flipped bytes, or other records with right checksums."""
    data = rng.choice(sound.events)
    if rng.random() < 0.5:
        data = mutated_bytes(rng, data)
    else:
        records = _records(data)
        at = rng.randrange(len(records))
        records[at] = mutated_bytes(rng, records[at])
        rng.random() < 0.2 and rng.shuffle(records)
        file = io.BytesIO()
        writer = RecordWriter(file)
        for record in records:
            writer.write(record)
        data = file.getvalue()
    number = rng.choice(("1", "9" * 25, "x", ""))
    _written(folder / f"events.out.tfevents.{number}.a", data)
    return functools.partial(_plot, folder, rng.random() < 0.02)


def logs(rng, sound, folder):
    """Logs that a resume cuts back: event files, tables, and what a checkpoint says of them."""
    run = folder / "logs" / "version_0"
    run.mkdir(parents=True, exist_ok=True)
    table, event = rng.choice(sound.tables), rng.choice(sound.events)
    _written(run / "metrics.csv", mutated_bytes(rng, table) if rng.random() < 0.7 else table)
    _written(run / "events.out.tfevents.1.a", mutated_bytes(rng, event) if rng.random() < 0.5 else event)
    length = rng.choice((0, 1, len(event), len(event) // 2, 10**12))
    said = [
        {
            "class": "TensorBoardLogger",
            "folder": ".",
            "reached": {"events.out.tfevents.1.a": length},
            "digests": {"events.out.tfevents.1.a": hashlib.sha256(event[:length]).hexdigest()},
            "lost": ["events.out.tfevents.0.a"],
        },
        {
            "class": "CSVLogger",
            "folder": ".",
            "reached": {"metrics.csv": rng.choice((0, 1, 5, 10**9))},
            "digests": {"metrics.csv": hashlib.sha256().hexdigest()},
            "lost": [],
        },
    ]
    for log in said:
        for name in ("digests", "lost"):
            if rng.random() < 0.1:  # as the first format
                del log[name]
    if rng.random() < 0.7:
        said = mutated_tree(rng, said, places(said))
    return functools.partial(_continue, folder, run, said, "0" * 32 if rng.random() < 0.5 else None)


def restore(rng, sound, folder):
    """A whole resume of a checkpoint with other entries."""
    name = rng.choice(list(KINDS))
    path = _mutated_checkpoint(rng, sound, folder, [name])
    return functools.partial(_fit, name, path, rng.choice((pl_rl.Trainer, pl_rl.Trainer, L.Trainer)))


READERS = {
    reader.__name__: reader
    for reader in (
        checkpoint_bytes, checkpoint_trees, weights_bytes, weights_trees, configs, arguments, events, logs, restore
    )
}  # fmt: skip
SHARES = {
    "checkpoint_bytes": 20, "checkpoint_trees": 18, "weights_bytes": 20, "weights_trees": 15, "configs": 14,
    "arguments": 2, "events": 9, "logs": 1, "restore": 1,
}  # fmt: skip
"""Of a hundred files."""


def _describe(path):
    for name, value in describe_checkpoint(path):
        if not printable(value).isprintable():
            raise AssertionError(f"{name}: {value!r} is not for a terminal")
        render(escape(printable(value)))


def _export(path):
    trained = read_trained(path)
    file_metadata(trained.settings, trained.training)
    if trained.settings["env"]["id"] in KINDS:  # other names would be imported, which is another guard's
        with contextlib.suppress(TypeError):  # arguments of the network's own class
            load_weights(TrainedPolicy(trained.settings), trained.tensors)


def _lightning_load(path):
    check_content(str(path), load_sound(path))


def _read_weights(path, choice):
    names = {"encoder.weight", "actor.0.weight"} if choice < 0.1 else None
    read_weights(path, names, {"network.": ""} if choice > 0.9 else None)


def _read_config(path):
    run_begun_by(["fit"], path.parent.parent)
    read_yaml(path)


@functools.cache
def _parser():
    parser = TrainerParser(exit_on_error=True)
    parser.add_argument("--config", action=ConfigFile)
    parser.add_lightning_class_args(pl_rl.PPO, "model")
    return parser


def _parse(args):
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()):
        try:
            _parser().parse_args(
                [
                    arg.replace("--", "--model.") if arg not in ("--config",) and arg.startswith("--") else arg
                    for arg in args
                ]
            )
        except SystemExit as end:
            if end.code not in (0, 2):
                raise
    if not err.getvalue().removesuffix("\n").isprintable() or len(err.getvalue()) > 3000:
        raise AssertionError(f"not for a terminal: {err.getvalue()[:200]!r}")


def _plot(folder, draw):
    for group in ("evaluator_iter", "evaluator_step"):
        read_segments(folder, group)
    if draw:
        plot_runs([folder], folder / "out")


def _continue(folder, run, said, run_id):
    mark(run, run, "0" * 32)
    try:
        LOGS(said, "pl_rl_logs")
    except Misfit as error:  # when the checkpoint is opened
        raise pl_rl.UsageError(str(error)) from error
    loggers = trainer(folder, 1).loggers
    try:
        continue_logs(loggers, run, said, run_id)
    finally:
        for logger in loggers:
            if isinstance(logger, TensorBoardLogger) and logger._experiment is not None:
                logger._experiment.close()  # and its thread


def _fit(name, path, trainer_class):
    L.seed_everything(0, verbose=False)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            runner = trainer(path.parent, ITERATIONS + 1, trainer_class, logs=False)
            runner.fit(model(name), ckpt_path=str(path))
        except MisconfigurationException:
            pass  # the command line says it
        except Exception as error:
            # A plain Trainer opens and migrates a file before anything of ours is asked.
            files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
            if trainer_class is not L.Trainer or not any("cloud_io" in file or "migration" in file for file in files):
                raise


def _mutated_checkpoint(rng, sound, folder, names):
    name = rng.choice(names)
    data = None
    while data is None:
        data = saved(mutated_tree(rng, sound.checkpoints[name], sound.paths[name]), checksum=rng.random() < 0.9)
    return _written(folder / "a.ckpt", data)


def _mutated_model(rng, parts):
    """A model of Stable-Baselines3 with another setting, or a tensor less or more."""
    parts = dict(parts)
    settings = json.loads(parts["data"])
    if rng.random() < 0.7:
        key = rng.choice(list(settings))
        settings[key] = rng.choice([value for value in EXTREMES if not isinstance(value, bytes | complex)])
    parts["data"] = json.dumps(settings).encode("utf-8", "surrogatepass")
    if rng.random() < 0.5:
        name = rng.choice([name for name in parts if name.endswith(".pth")])
        parts[name] = (
            mutated_archive(rng, parts[name], False) if rng.random() < 0.5 else mutated_bytes(rng, parts[name])
        )
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return file.getvalue()


def _yaml_tree(rng, tree):
    return mutated_tree(rng, tree, places(tree))


def _records(data):
    records, at = [], 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        records.append(data[at + 12 : at + 12 + length])
        at += 16 + length
    return records


def _written(path, data):
    path.write_bytes(data or b"")
    return path
