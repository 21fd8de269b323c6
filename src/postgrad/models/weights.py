"""Weights from files, as safetensors, PyTorch or Chainer wrote them, without running anything that a file holds."""

from __future__ import annotations

import os
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from postgrad.errors import UserError
from postgrad.models.chainer import is_chainer_snapshot, read_chainer_snapshot

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_SHOWN = 8


def load_weights(model: nn.Module, file: str | os.PathLike[str]) -> None:
    """Load a file's weights into a network, all of them or none.

    >>> load_weights(create_model("seed-cnn", num_classes=10), "snapshot_iter_91016")

    Takes .safetensors; .pt and .pth (a state dict, alone or under "state_dict", "model_state_dict" or "model"; prefixes
    left by DDP and `torch.compile` are stripped); and Chainer's archives of seed-cnn, whatever their name. Raises
    `UserError` that names each missing, unexpected or differently shaped tensor, and each that holds NaN or infinity.
    """
    fit_weights(model, read_weights(file), where=str(file))


def read_weights(file: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The named tensors of a weights file, on the CPU."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if is_chainer_snapshot(path):
        return read_chainer_snapshot(path)
    if path.suffix in (".pt", ".pth", ".ckpt", ".bin"):
        return _state_dict(_read_torch(path), path)
    if path.read_bytes()[:2] == b"PK":
        raise UserError(f"{path}: this archive is damaged, cut off or of another kind; a Chainer snapshot was expected")
    raise UserError(f"{path}: weights are read from .safetensors, .pt, .pth and Chainer snapshots, this is neither")


def fit_weights(model: nn.Module, weights: Mapping[str, Tensor], *, where: str) -> None:
    """Copy named tensors into a network if every one of them fits; `where` begins the message if not."""
    expected = model.state_dict()
    given = _without_wrappers(weights, expected)
    check_finite(given, where)
    faults = [
        *_listed("missing", [key for key in expected.keys() - given.keys() if not _may_be_missing(key)]),
        *_listed("unexpected", given.keys() - expected.keys()),
        *_listed("shape", [_shapes(key, given, expected) for key in expected if _differ(key, given, expected)]),
    ]
    if faults:
        raise UserError(f"{where} does not fit the network: {'; '.join(faults)}. Nothing was loaded")
    complete = OrderedDict(given)
    # Some layers look for their version in what torch notes beside weights, and files of tensors do not keep it.
    complete._metadata = expected._metadata  # type: ignore[attr-defined]
    model.load_state_dict(complete, strict=False)


def check_finite(weights: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights with NaN or infinity in them, by name."""
    broken = [key for key, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        names = ", ".join(_listed("NaN or infinity", broken))
        raise UserError(f"{where} holds weights that are not numbers: {names}; take an earlier checkpoint")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged or cut off ({error}); fetch or save it again") from error


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's note on the pickle protocol of files that it refuses anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: holds Python objects besides tensors and is not opened, since that could run code; "
            f"where you trust it, save its state dict alone: torch.save(model.state_dict(), file)"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError, OSError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"{path}: damaged, cut off or not a PyTorch state dict ({reason})") from error


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path}: holds a {type(content).__name__}, not a state dict (names of parameters and tensors)")
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise UserError(f"{path}: not a state dict: {', '.join(_listed('not a tensor', others))}")
    return {str(key): value for key, value in content.items()}


def _without_wrappers(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without what `torch.compile` and DDP put in front, unless the network itself has such names."""
    given = {re.sub(r"(^|\.)_orig_mod\.", r"\1", key): value for key, value in weights.items()}
    if given and all(key.startswith("module.") for key in given) and not any(k.startswith("module.") for k in expected):
        given = {key.removeprefix("module."): value for key, value in given.items()}
    return {re.sub(r"^_orig_mod\.", "", key): value for key, value in given.items()}


def _may_be_missing(key: str) -> bool:
    """Files from before PyTorch 0.4.1 lack batch normalisation's step counter, which evaluation does not use."""
    return key.endswith("num_batches_tracked")


def _differ(key: str, given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return key in given and given[key].shape != expected[key].shape


def _shapes(key: str, given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    return f"{key} is {tuple(given[key].shape)}, the network has {tuple(expected[key].shape)}"


def _listed(what: str, items: Any) -> list[str]:
    """One phrase with the first few items, none if there are none."""
    names = sorted(items)
    if not names:
        return []
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"{what}: {', '.join(names[:_SHOWN])}{more}"]
