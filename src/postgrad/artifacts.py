"""Directories that hold a saved classifier: a manifest.json and tensors as safetensors, read without unpickling."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from postgrad.errors import UserError
from postgrad.files import atomic_path, write_atomic

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1


def write_manifest(directory: Path, kind: str, content: Mapping[str, Any]) -> None:
    """Write manifest.json, last of a directory's files: a directory without it is no saved classifier."""
    write_atomic(directory / "manifest.json", json.dumps({"format": FORMAT, "kind": kind, **content}, indent=1))


def read_manifest(path: str | os.PathLike[str], kind: str | None = None) -> dict[str, Any]:
    """Read the manifest of a saved classifier, and check its format and kind."""
    file = Path(path) / "manifest.json"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{path} holds no saved classifier (no manifest.json); give a directory that was saved"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}; save the classifier again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{file} is not a manifest of format {FORMAT}; it was saved by another version of postgrad")
    if kind is not None and manifest.get("kind") != kind:
        raise UserError(f"{path} holds a '{manifest.get('kind')}', not a '{kind}'; load it with postgrad.load")
    return manifest


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as one safetensors file, whole or not at all."""
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; a missing, truncated or corrupt one is a `UserError`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; save the classifier again") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or no safetensors file ({error}); save the classifier again") from error
