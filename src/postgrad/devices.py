"""The device of a name, such as auto, cpu or cuda:1."""

from __future__ import annotations

import torch

from postgrad.errors import UserError


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """The device of a name: "auto" is the first GPU if there is one, else Apple's, else the processor.

    >>> pick_device("auto")
    device(type='cpu')

    Others are "cpu", "cuda", "cuda:1" and "mps". One that this machine does not have is a `UserError`.
    """
    if name == "auto":
        found = next((kind for kind in ("cuda", "mps") if _count(kind)), "cpu")
        return torch.device(found)
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device '{name}'; write auto, cpu, cuda, cuda:1 or mps") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"unknown device '{name}'; write auto, cpu, cuda, cuda:1 or mps")
    if (device.index or 0) >= _count(device.type):
        raise UserError(f"device '{name}' is not on this machine; --device auto takes what there is")
    return device


def _count(kind: str) -> int:
    if kind == "cuda":
        return torch.cuda.device_count()
    return 1 if kind == "cpu" else int(torch.backends.mps.is_available())
