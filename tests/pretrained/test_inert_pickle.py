import collections
import pickle
from fractions import Fraction

import pytest

from pl_rl.pretrained.inert_pickle import Record, load_inert
from pl_rl.pretrained.policy_weights import Unreadable
from tests.pretrained.support import Bomb


def test_builtins_are_as_they_were():
    value = {"a": [1, 2.5, None, True], "b": (b"bytes", {"set"}, "text")}
    assert load_inert(pickle.dumps(value)) == value


def test_an_object_is_a_record_of_what_it_was_made_from():
    record = load_inert(pickle.dumps(Fraction(1, 3)))
    assert (record.origin, record.args) == ("fractions.Fraction", (1, 3))


def test_items_of_other_containers_are_dropped():
    for container in (collections.OrderedDict(a=1), collections.deque([1, 2])):
        assert isinstance(load_inert(pickle.dumps(container)), Record)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_is_run(protocol, tmp_path):
    load_inert(pickle.dumps(Bomb(tmp_path / "executed"), protocol))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(S'touch executed'\ntR.",
        b"(S'touch executed'\nios\nsystem\n.",
        b"(cos\nsystem\nS'touch executed'\no.",
        b"\x80\x02cos\nsystem\nU\x0etouch executed\x85\x81.",
    ],
)
def test_no_opcode_that_calls_reaches_a_function(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = load_inert(program)
    assert (record.origin, record.args) == ("os.system", ("touch executed",))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02Pidentity\n.",
        b"\x80\x02]q\x00r\xff\xff\xff\x7f.",
        b"\x80\x02U\x03abcU\x01x\x85R.",
        b"\x80\x02cos\nsystem\n}b.",
        b"\x80\x04\x95",
        b"",
    ],
    ids=["persistent id", "memory", "call of a string", "state of a class", "truncated", "empty"],
)
def test_a_program_that_makes_no_sense_is_refused(program):
    with pytest.raises(Unreadable, match="damaged pickle"):
        load_inert(program)


def test_many_names_are_refused():
    data = b"\x80\x02(" + b"".join(b"cmodule\nname%d\n" % i for i in range(1100)) + b"l."
    with pytest.raises(Unreadable, match="more than 1000 classes"):
        load_inert(data)
    assert len(load_inert(b"\x80\x02(" + b"cmodule\nname\n" * 1100 + b"l.")) == 1100
