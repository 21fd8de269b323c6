"""Devices, precision and several processes: Lightning Fabric, made quietly."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import torch

from postgrad._compat import prepare_torchvision
from postgrad.devices import pick_device
from postgrad.errors import UserError

if TYPE_CHECKING:
    from lightning.fabric import Fabric

_STRATEGIES = ("auto", "ddp", "ddp_spawn", "ddp_fork", "ddp_find_unused_parameters_true")


def make_fabric(
    device: str | torch.device = "auto",
    devices: int = 1,
    strategy: str = "auto",
    precision: str = "32-true",
    num_nodes: int = 1,
) -> Fabric:
    """Lightning's Fabric on a device, launched, without its banners and its own deprecation warnings.

    >>> fabric = make_fabric()                                            # one process on the best device
    >>> fabric = make_fabric("cpu", devices=2, strategy="ddp")            # starts a second process of this script

    `devices` counts those of each machine, `num_nodes` the machines. The strategies are those that keep whole weights
    on every device: auto, ddp and its variants.
    """
    if strategy not in _STRATEGIES:
        raise UserError(f"unknown strategy '{strategy}'; it is one of {', '.join(_STRATEGIES)}")
    chosen = pick_device(device)
    which: Any = [chosen.index] if devices == 1 and chosen.index is not None and chosen.type != "cpu" else devices
    fabric_class = _import_fabric()
    try:
        fabric = fabric_class(
            accelerator=chosen.type,
            devices=which,
            strategy=strategy,
            precision=precision,  # type: ignore[arg-type]
            num_nodes=num_nodes,
        )
    except ValueError as error:
        raise UserError(f"precision '{precision}', strategy '{strategy}', {devices} devices: {error}") from error
    fabric.launch()
    return fabric


def _import_fabric() -> type[Fabric]:
    """Import it at its first use (one to two seconds); it warns about its own use of torch's pytree."""
    prepare_torchvision()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"lightning\.")
        warnings.filterwarnings("ignore", message=r".*`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
        from lightning.fabric import Fabric
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    return Fabric
