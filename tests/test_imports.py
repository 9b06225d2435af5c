"""Imports that collect no garbage."""

import gc

import pytest

from pl_rl.imports import quick_imports


def test_garbage_is_collected_afterwards_even_if_an_import_fails():
    with pytest.raises(ImportError), quick_imports():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()


def test_who_collects_none_goes_on_so():
    gc.disable()
    try:
        with quick_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
