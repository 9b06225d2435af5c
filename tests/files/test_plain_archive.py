"""A file is not more than the bytes that it has."""

import io
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import hypothesis.strategies as some
import numpy as np
import pytest
import torch
from hypothesis import given

import pl_rl
from pl_rl.checkpoints.format import load_sound, with_checksum
from pl_rl.files.plain_archive import CERTAIN_DTYPES, is_sure_to_load, load_plain
from pl_rl.pretrained import read_weights
from pl_rl.tools.inspection import describe_checkpoint
from tests.data.checkpoints import make

SOUND = Path(make.__file__).with_name("format_1_Pendulum-v1.ckpt")


def written(content, checksum=True):
    file = io.BytesIO()
    torch.save(content, file)
    return file_of(file.getvalue(), checksum)


def file_of(data, checksum=True):
    path = Path("a.ckpt")
    path.write_bytes(with_checksum(data) if checksum else data)
    return path


def sound():
    return torch.load(SOUND, weights_only=True)


def rezipped(content, compression=zipfile.ZIP_STORED, before=b"", times=1):
    file = io.BytesIO()
    torch.save(content, file)
    packed = io.BytesIO()
    packed.write(before)
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(packed, "a" if before else "w", compression) as target:
        for part in source.infolist():
            target.writestr(part.filename, source.read(part))
    return packed.getvalue()


def shared_lists():
    value = [0] * 10
    for _ in range(9):
        value = [value] * 10
    return value


def deep_lists():
    value = []
    for _ in range(100):
        value = [value]
    return value


def episodes(content):
    return content["pl_rl"]["collector"]["episodes"]


CLAIMS = {
    "observations": lambda c: c["pl_rl"]["collector"].update(obs=torch.zeros(1).expand(2, 2 * 10**9)),
    "returns": lambda c: episodes(c).update(open_returns=torch.zeros(1).double().expand(10**12)),
    "weights": lambda c: c["state_dict"].update({"network.x": torch.zeros(1, 1).expand(10**6, 10**6)}),
    "no numbers": lambda c: c["state_dict"].update({"network.x": torch.empty(10**6, 10**6, device="meta")}),
    "lists": lambda c: c["hyper_parameters"]["env"].update(kwargs={"a": shared_lists()}),
    "long text": lambda c: c.update(own=["x" * 10**5] * 10**5),
    "deep": lambda c: c.update(own=deep_lists()),
}  # fmt: skip


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("read", [load_sound, describe_checkpoint, read_weights])
def test_what_claims_to_be_more_than_its_file_is_refused(claim, read):
    content = sound()
    CLAIMS[claim](content)
    with pytest.raises(pl_rl.UsageError, match=r"bytes claim to be|without numbers|nest deeper than"):
        read(written(content))


@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("read", [load_sound, read_weights])
def test_compressed_parts_are_not_unpacked(checksum, read, monkeypatch):
    path = file_of(rezipped({**sound(), "own": torch.zeros(10**7)}, zipfile.ZIP_DEFLATED), checksum)
    assert path.stat().st_size < 200_000
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("it was opened"))
    with pytest.raises(pl_rl.UsageError, match=r"its parts are compressed|unpacks to"):
        read(path)


def test_parts_that_lie_over_one_another_are_refused():
    data = bytearray(rezipped(sound()))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [part.filename for part in archive.infolist()]
        first, second = (archive.getinfo(name) for name in names if name.endswith(("data/1", "data/2")))
    # Its entry in the list of all parts, which says where it begins.
    entry = data.rindex(second.filename.encode()) - 46
    data[entry + 42 : entry + 46] = first.header_offset.to_bytes(4, "little")
    with pytest.raises(pl_rl.UsageError, match="lie over one another"):
        load_sound(file_of(bytes(data)))
    with pytest.raises(pl_rl.UsageError, match="something lies before them"):
        load_sound(file_of(rezipped(sound(), before=b"PK" + bytes(100))))


def test_a_pickle_cannot_make_copies_of_a_text_again_and_again():
    text = b"X" + (10**5).to_bytes(4, "little") + b"x" * 10**5 + b"q\x01"
    copies = (b"c_codecs\nencode\n" + b"h\x01X\x06\0\0\0latin1\x86R") * 2000
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + text + b"(" + copies + b"l.")
        archive.writestr("archive/version", b"3\n")
    for read in (load_sound, read_weights):
        with pytest.raises(pl_rl.UsageError, match="could be made 2,000 copies of 100,000 bytes"):
            read(file_of(data.getvalue()))


def test_large_and_unusual_files_are_read():
    network = {f"layer{i}": torch.randn(100, 100) for i in range(30)}
    content = {
        **network, "tied": network["layer0"], "expanded": torch.zeros(1).expand(1000), "plain": [{"name": "x"}] * 1000,
        "half": torch.zeros(3).bfloat16(), "bytes": b"abc", "empty": torch.zeros(0), "view": network["layer1"][3:],
        "parameter": torch.nn.Parameter(torch.zeros(2)), "complex": torch.zeros(2, dtype=torch.complex64),
        "sparse": torch.eye(3).to_sparse(), "replay": torch.zeros(10**6, dtype=torch.uint8), "size": torch.Size([1]),
    }  # fmt: skip
    read = load_sound(written(content))
    assert read.keys() == content.keys() and read["view"].equal(content["view"])


def with_attribute(value):
    value.note = np.float64(1)
    return value


def archive_of(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@pytest.mark.parametrize(
    "value",
    [
        np.float64(1), np.int64(1), np.zeros(2), {1}, b"x", 1j, 2**2050, torch.Size([1]), torch.float32, Path("a"), len,
        Counter("a"), torch.eye(3).to_sparse(), torch.zeros(2, dtype=torch.complex64), torch.empty(2, device="meta"),
        with_attribute(torch.zeros(2)), with_attribute(OrderedDict()), shared_lists() * 9, deep_lists(),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_of_what_torch_may_refuse_nobody_is_sure(value):
    """Alone, as a key where that is possible, and wherever a list is looked into."""
    size = 10**4
    assert is_sure_to_load([{"a": (1, "b")}], size)
    assert not is_sure_to_load(value, size)
    assert not is_sure_to_load([OrderedDict(a=({"b": value},))], size)


tensors = some.builds(
    lambda dtype, shape, parameter: (
        torch.nn.Parameter(torch.ones(shape).to(dtype), False) if parameter else torch.ones(shape).to(dtype)[..., :1]
    ),
    some.sampled_from(CERTAIN_DTYPES),
    some.sampled_from([(1,), (2, 3), (0, 4)]),
    some.booleans(),
)
plain = some.none() | some.booleans() | some.integers(-(2**2000), 2**2000) | some.floats() | some.text()
odd = some.sampled_from([np.float64(1), {1}, b"x", 1j, 2**2050, torch.Size([1]), Path("a"), Counter("a")])


@given(
    some.recursive(
        plain | tensors | odd,
        lambda inner: (
            some.lists(inner, max_size=4)
            | some.lists(inner, max_size=4).map(tuple)
            | some.dictionaries(some.text(max_size=2) | some.integers(), inner, max_size=4)
            | some.dictionaries(some.text(max_size=2), inner, max_size=4).map(OrderedDict)
        ),
        max_leaves=8,
    )
)
def test_what_is_sure_to_be_opened_is(value):
    content = archive_of(value)
    if is_sure_to_load(value, len(content)):
        read = load_plain(content)
        assert type(read) is type(value) and archive_of(read) == content


def test_attributes_of_a_dictionary_count_as_what_is_in_it():
    content = sound()
    content["state_dict"].own = shared_lists()
    with pytest.raises(pl_rl.UsageError, match="bytes claim to be"):
        load_sound(written(content))


def test_what_is_meant_for_others_is_named(tmp_path):
    pointer = Path("model.pt")
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 4567890\n")
    for read in (load_sound, read_weights):
        with pytest.raises(pl_rl.UsageError, match="is a Git LFS pointer and not the file itself"):
            read(pointer)
    model = Path(make.__file__).parents[1] / "pretrained" / "stable_baselines3" / "ppo_cartpole.zip"
    with pytest.raises(pl_rl.UsageError, match=r"a model of Stable-Baselines3, from which --pretrained\.path starts"):
        load_sound(model)
