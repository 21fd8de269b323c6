"""Fetching published files with torchvision's own helper, whole or not at all."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from postgrad import progress
from postgrad._compat import prepare_torchvision
from postgrad.files import disk_errors

_TIMEOUT_SECONDS = 20.0


@dataclass(frozen=True)
class Remote:
    """A file to fetch: an archive is unpacked into `folder` (below the data folder), any other file is put there."""

    url: str
    md5: str | None
    folder: str


def download(remotes: Sequence[Remote], data_folder: Path) -> str:
    """Fetch files that are not there yet; returns why that failed, or nothing if it went well.

    Files get their names when they are complete and their checksums are right, so that an interrupted download leaves
    nothing behind that looks like data.
    """
    prepare_torchvision()
    from torchvision.datasets.utils import download_url

    made = not data_folder.exists()
    with disk_errors(data_folder):
        data_folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=data_folder, prefix=".fetching-") as temporary, _patience():
            for remote in remotes:
                _say(f"fetching {remote.url}")
                name = remote.url.rsplit("/", 1)[1]
                try:
                    download_url(remote.url, temporary, filename=name, md5=remote.md5)
                    _place(Path(temporary) / name, data_folder / remote.folder)
                # No network, no such file, no space; a wrong checksum; an archive that writes outside its folder.
                except (OSError, RuntimeError, tarfile.TarError) as error:
                    return f"{remote.url}: {error}"
    finally:
        if made and not any(data_folder.iterdir()):
            data_folder.rmdir()
    return ""


def _place(file: Path, folder: Path) -> None:
    """Move a fetched file, or what an archive holds, to where it belongs."""
    folder.mkdir(parents=True, exist_ok=True)
    if not file.name.endswith(".tar.gz"):
        os.replace(file, folder / file.name)
        return
    unpacked = file.with_suffix(".unpacked")
    with tarfile.open(file) as archive:
        archive.extractall(unpacked, filter="data")
    for path in sorted(unpacked.rglob("*")):
        target = folder / path.relative_to(unpacked)
        if path.is_dir():
            target.mkdir(exist_ok=True)
        else:
            os.replace(path, target)


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """Give up on a silent server after a while, and keep the helper's own bar quiet when asked to."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_SECONDS)
    try:
        with contextlib.redirect_stderr(io.StringIO()) if progress.quiet else contextlib.nullcontext():
            yield
    finally:
        socket.setdefaulttimeout(before)


def _say(message: str) -> None:
    if not progress.quiet:
        print(message, file=sys.stderr, flush=True)
