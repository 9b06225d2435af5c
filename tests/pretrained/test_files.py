import io
import os
import pickle
import zipfile

import pytest
import torch

from pl_rl.errors import UsageError
from pl_rl.pretrained import files, read_weights
from tests.pretrained.support import DATA, Bomb
from tests.pretrained.support import files as real_files

REAL = [
    path
    for library in ("cleanrl", "di_engine", "rsl_rl", "stable_baselines3")
    for path in real_files(library)
    if path.suffix != ".pkl"
]
MODEL = DATA / "cleanrl" / "ppo.cleanrl_model"


def refusal(path):
    """The sentence in which a file is refused."""
    with pytest.raises(UsageError) as refused:
        read_weights(path)
    sentence = str(refused.value)
    assert sentence.startswith(repr(str(path))) and "\n" not in sentence
    return sentence


def written(path, data):
    path.write_bytes(data)
    return path


def archive(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, data in members.items():
            target.writestr(name, data)
    return path


def test_what_is_no_file_is_refused(tmp_path):
    assert "does not exist" in refusal(tmp_path / "missing.pt")
    assert "is a folder" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "no ordinary file" in refusal(tmp_path / "pipe")


def test_a_file_that_holds_no_weights_is_refused(tmp_path):
    assert "is empty" in refusal(written(tmp_path / "a", b""))
    assert "begins with b'some words" in refusal(written(tmp_path / "b", b"some words and no weights"))
    assert "begins with b'x'" in refusal(written(tmp_path / "c", b"x"))
    assert "zip archive of something else: 'a.txt'" in refusal(archive(tmp_path / "d", {"a.txt": "text"}))
    torch.save([1, 2], tmp_path / "e")
    assert "holds a list" in refusal(tmp_path / "e")
    torch.save({}, tmp_path / "f")
    assert "entries that belong to no known policy" in refusal(tmp_path / "f")


def test_the_first_names_of_unknown_tensors_are_told(tmp_path):
    torch.save({f"layer{i}.weight": torch.zeros(1) for i in range(9)}, tmp_path / "weights.pt")
    sentence = refusal(tmp_path / "weights.pt")
    assert "'layer0.weight', 'layer1.weight'" in sentence and "'layer5.weight' and 3 more" in sentence


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_what_torch_saved_is_not_run(zipped, tmp_path):
    marker = tmp_path / "executed"
    torch.save({"weights": Bomb(marker)}, tmp_path / "bomb.pt", _use_new_zipfile_serialization=zipped)
    assert "more than tensors and plain data" in refusal(tmp_path / "bomb.pt")
    assert not marker.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_not_opened(protocol, tmp_path):
    marker = tmp_path / "executed"
    refusal(written(tmp_path / "bomb.pkl", pickle.dumps(Bomb(marker), protocol)))
    assert not marker.exists()


def test_a_torchscript_program_is_refused(tmp_path):
    members = {"policy/data.pkl": b"", "policy/constants.pkl": b"", "policy/code/policy.py": b""}
    assert "TorchScript program" in refusal(archive(tmp_path / "policy.pt", members))


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_a_truncated_file_is_refused(path, tmp_path):
    data = path.read_bytes()
    for size in (2, 100, len(data) // 2, len(data) - 1):
        refusal(written(tmp_path / path.name, data[:size]))


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_a_flipped_bit_in_the_weights_is_found(path, tmp_path):
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(io.BytesIO(data)) as source:
        largest = max(source.infolist(), key=lambda member: member.file_size)
    data[largest.header_offset + 200 + largest.file_size // 2] ^= 1
    assert "is damaged: the checksum" in refusal(written(tmp_path / path.name, data))


def test_what_unpacks_to_too_much_is_not_unpacked(tmp_path):
    path = archive(tmp_path / "model.zip", {"data": b"{}", "policy.pth": bytes(2_000_000)})
    assert path.stat().st_size < 10_000
    assert "unpacks to 2,000,002 bytes" in refusal(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_BYTES", 100)
    assert "more than the 100 of any policy" in refusal(MODEL)
