"""Files that are never left half written: atomic writes, fresh directories, locks and checksums."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from postgrad.errors import DiskError, UserError

_DISK_ERRORS = {
    errno.ENOSPC: "the disk is full; free some space, or choose another place with --out",
    errno.EDQUOT: "the disk quota is used up; free some space, or choose another place with --out",
    errno.EACCES: "no permission to write there; choose another place with --out",
    errno.EPERM: "no permission to write there; choose another place with --out",
    errno.EROFS: "the file system is read-only; choose another place with --out",
    errno.ENOENT: "no folder can be made there; choose another place with --out",
    errno.ENOTDIR: "a part of that path is a file, not a folder; choose another place with --out",
    errno.EEXIST: "a file of that name is in the way; choose another place with --out",
    errno.EFBIG: "the file would be larger than this system allows; choose another place with --out",
}


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's word on a full or forbidden disk into a `DiskError` that names the path."""
    try:
        yield
    except Exception as error:
        reason = _DISK_ERRORS.get(_system_error(error))
        if reason is None:
            raise
        raise DiskError(f"cannot write {path}: {reason}") from error


def _system_error(error: Exception) -> int:
    """The operating system's error number, 0 if there is none.

    torch's writer says something of its own while the system's error is handled; safetensors keeps the number only in
    its text.
    """
    found = error.__context__ if isinstance(error, RuntimeError) else error
    if isinstance(found, OSError):
        return found.errno or 0
    number = re.search(r"\(os error (\d+)\)", str(error))
    return int(number[1]) if number else 0


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary name beside `path`; the file written there takes the name `path` only when the block ends well.

    >>> with atomic_path("model.safetensors") as temporary:
    ...     save_file(tensors, temporary)
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def write_atomic(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a whole file or nothing: `content` never stands half written under `path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def fresh_directory(path: str | os.PathLike[str]) -> Path:
    """Make a new, empty directory: `path`, or `path-2`, `path-3`, … where that holds something already."""
    wanted = Path(path).expanduser()
    candidate, number = wanted, 1
    with disk_errors(wanted):
        while candidate.exists() and (not candidate.is_dir() or any(candidate.iterdir())):
            number += 1
            candidate = wanted.with_name(f"{wanted.name}-{number}")
        candidate.mkdir(parents=True, exist_ok=True)
    return candidate


@contextlib.contextmanager
def locked(directory: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a run directory for one process; a second one is told which process holds it.

    The lock is the operating system's (`flock`), so it is gone with its process, also after `kill -9`.
    """
    path = Path(directory) / ".lock"
    with disk_errors(path):
        file = open(path, "a+")  # noqa: SIM115 (closed by the `with` below; only opening may be refused)
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise UserError(
                f"{directory} is being written by another process ({holder}); wait for it, or choose another --out"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield
        file.truncate(0)


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
