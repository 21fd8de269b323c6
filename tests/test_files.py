"""Files that are never half written, directories that are never reused, and locks that die with their process."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from postgrad.errors import UserError
from postgrad.files import atomic_path, disk_errors, fresh_directory, locked, sha256, write_atomic


def test_text_and_bytes_are_written_with_the_folders_they_need(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a" / "b" / "text", "Äffchen")
    write_atomic(str(tmp_path / "bytes"), b"\x00\xff")
    assert (tmp_path / "a" / "b" / "text").read_text(encoding="utf-8") == "Äffchen"
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff"


def test_what_fails_half_way_leaves_the_old_file_alone(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    with pytest.raises(KeyError):
        half_written(file)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def half_written(file: Path) -> None:
    with atomic_path(file) as temporary:
        temporary.write_text("ne")
        raise KeyError


def test_a_process_killed_half_way_leaves_the_old_file_alone(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    code = (
        "import os, sys; from postgrad.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as temporary:\n    temporary.write_text('ne'); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, file], check=False).returncode == -9
    assert file.read_text() == "old"


def test_a_full_disk_is_the_users_to_solve(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"cannot write {tmp_path}: the disk is full"), disk_errors(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_other_errors_of_the_system_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Input/output error"), disk_errors(tmp_path):
        raise OSError(errno.EIO, "Input/output error")


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*taken/file: .*another place with --out"):
        write_atomic(tmp_path / "taken" / "file", "text")


def test_a_really_full_disk() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full to stand for a full disk")
    with pytest.raises(UserError, match="the disk is full"), disk_errors(Path("/dev/full")):
        Path("/dev/full").write_text("text")


def test_a_full_disk_is_known_by_what_libraries_make_of_it(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full to stand for a full disk")
    with pytest.raises(UserError, match="the disk is full"), disk_errors(tmp_path), open(full, "wb") as file:
        torch.save({"weights": torch.zeros(1000)}, file)
    with pytest.raises(UserError, match="the disk is full"), disk_errors(tmp_path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_a_mistake_inside_is_no_error_of_the_disk(tmp_path: Path) -> None:
    """Negative control: an error of another kind that came of one of the system, and one that did not."""
    for mistake in (KeyError("inner"), RuntimeError("inner")):
        mistake.__cause__ = OSError(errno.ENOSPC, "No space left on device")
        with pytest.raises(type(mistake), match="inner"), disk_errors(tmp_path):
            raise mistake


def test_fresh_directories_are_numbered_from_2(tmp_path: Path) -> None:
    made = []
    for _ in range(3):
        made.append(fresh_directory(tmp_path / "run"))
        (made[-1] / "results.json").write_text("{}")
    assert [path.name for path in made] == ["run", "run-2", "run-3"]


def test_an_empty_directory_is_taken_and_a_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    assert fresh_directory(tmp_path / "empty") == tmp_path / "empty"
    assert fresh_directory(tmp_path / "file") == tmp_path / "file-2"


def test_the_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fresh_directory("~/run") == tmp_path / "run"


def test_a_second_holder_is_told_of_the_first(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(UserError, match=rf"being written by another process \(process {os.getpid()}\)"),
    ):
        locked(tmp_path).__enter__()
    with locked(tmp_path):
        pass


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys, time; from postgrad.files import locked\n"
        "with locked(sys.argv[1]):\n    print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {holder.pid}"):
            locked(tmp_path).__enter__()
        holder.kill()
        holder.wait()
    time.sleep(0.05)
    with locked(tmp_path):
        pass


def test_sha256_is_hashlibs(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc" * 100_000)
    assert sha256(tmp_path / "file") == hashlib.sha256(b"abc" * 100_000).hexdigest()
