"""Fetching files: whole or not at all. The server is on this machine."""

from __future__ import annotations

import hashlib
import io
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from postgrad import progress
from postgrad.data.download import Remote, download


@pytest.fixture
def offer(tmp_path: Path, serve: Callable[[Path], str]) -> Callable[..., Remote]:
    """Put a file on the server: `offer("a.bin", b"hello", folder="raw")`."""

    def put(name: str, content: bytes, *, folder: str = "", md5: str | None = None) -> Remote:
        file = tmp_path / "server" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
        return Remote(serve(file), md5 or hashlib.md5(content).hexdigest(), folder)

    return put


def tar(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def test_files_go_to_their_folders(tmp_path: Path, offer) -> None:
    target = tmp_path / "data"
    remotes = [offer("a.bin", b"hello", folder="one/raw"), offer("b.bin", b"world", folder="two")]
    assert download(remotes, target) == ""
    assert sorted(path.relative_to(target).as_posix() for path in target.rglob("*.bin")) == [
        "one/raw/a.bin",
        "two/b.bin",
    ]
    assert not list(target.glob(".fetching*"))


def test_a_wrong_checksum_leaves_nothing(tmp_path: Path, offer) -> None:
    failure = download([offer("a.bin", b"hello", md5="0" * 32)], tmp_path / "data")
    assert "a.bin" in failure
    assert not (tmp_path / "data").exists()


def test_a_missing_file_is_a_reason(tmp_path: Path, serve) -> None:
    failure = download([Remote(serve(tmp_path / "missing.bin"), None, "")], tmp_path / "data")
    assert "missing.bin: HTTP Error 404" in failure
    assert not (tmp_path / "data").exists()
    assert socket.getdefaulttimeout() is None


def test_a_silent_server_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("postgrad.data.download._TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        failure = download([Remote(f"http://127.0.0.1:{port}/a.bin", None, "")], tmp_path / "data")
    assert "timed out" in failure


def test_an_archive_is_unpacked(tmp_path: Path, offer) -> None:
    packed = tar({"set/a.bin": b"hello", "set/deep/b.bin": b"world"})
    assert download([offer("set.tar.gz", packed)], tmp_path / "data") == ""
    assert (tmp_path / "data/set/a.bin").read_bytes() == b"hello"
    assert (tmp_path / "data/set/deep/b.bin").read_bytes() == b"world"


def test_an_archive_cannot_write_elsewhere(tmp_path: Path, offer) -> None:
    failure = download([offer("set.tar.gz", tar({"../../../escaped.bin": b"x"}))], tmp_path / "data")
    assert "outside the destination" in failure
    assert not list(tmp_path.rglob("escaped.bin"))


def test_quiet_says_nothing(tmp_path: Path, offer, monkeypatch, capfd: pytest.CaptureFixture[str]) -> None:
    remote = offer("a.bin", b"hello")
    download([remote], tmp_path / "loud")
    assert "fetching http:" in capfd.readouterr().err
    monkeypatch.setattr(progress, "quiet", True)
    download([remote], tmp_path / "data")
    output = capfd.readouterr()
    assert output.out + output.err == ""
