"""Arrays beyond the memory budget: filled once, mapped again, never half written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from postgrad.data.cache import cache_folder, key_of, nameless_file, resident_or_mapped
from postgrad.errors import UserError


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Filler:
    """Counts its calls, skips row 1 of four."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, target: np.ndarray) -> dict[int, str]:
        self.calls += 1
        target[:3] = np.arange(6).reshape(3, 2)
        return {1: "broken"}


@pytest.mark.parametrize("budget", [8, 7])
def test_filled_in_memory_or_in_a_file(budget: int) -> None:
    filler = Filler()
    array, failures = resident_or_mapped((4, 2), filler, budget=budget, key=lambda: "k")
    np.testing.assert_array_equal(array, np.arange(6).reshape(3, 2))
    assert failures == {1: "broken"}
    assert isinstance(array, np.memmap) == (budget == 7)


def test_a_mapped_array_is_filled_once() -> None:
    filler = Filler()
    first, _ = resident_or_mapped((4, 2), filler, budget=0, key=lambda: "k")
    first[0] = 99
    again, failures = resident_or_mapped((4, 2), filler, budget=0, key=lambda: "k")
    np.testing.assert_array_equal(again, np.arange(6).reshape(3, 2))
    assert failures == {1: "broken"}
    assert filler.calls == 1
    resident_or_mapped((4, 2), filler, budget=0, key=lambda: "other")
    assert filler.calls == 2


def test_an_interrupted_fill_leaves_nothing() -> None:
    def interrupted(target: np.ndarray) -> dict[int, str]:
        target[0] = 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resident_or_mapped((4, 2), interrupted, budget=0, key=lambda: "k")
    assert list((cache_folder() / "decoded").iterdir()) == []


def test_a_full_disk_is_said_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 5))
    with pytest.raises(UserError, match="8 bytes of decoded images do not fit, 5 bytes are free"):
        resident_or_mapped((4, 2), Filler(), budget=0, key=lambda: "k")
    with pytest.raises(UserError, match="do not fit"):
        nameless_file((4, 2))


def test_the_key_changes_with_its_parts_and_files(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"one")
    keys = {key_of([16], [file]), key_of([24], [file]), key_of([16], [])}
    os.utime(file, ns=(1, 1))
    keys.add(key_of([16], [file]))
    file.write_bytes(b"four")
    os.utime(file, ns=(1, 1))
    keys.add(key_of([16], [file]))
    assert len(keys) == 5
    assert key_of([16], [file]) == key_of([16], [file])


def test_a_nameless_file_is_an_array_and_leaves_no_file() -> None:
    array = nameless_file((3, 2))
    array[:] = 7
    assert int(array.sum()) == 42
    assert list((cache_folder() / "decoded").iterdir()) == []
