"""`postgrad export`: a network as one file for use elsewhere, checked against the original."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from postgrad.cli.console import prepared, print_json
from postgrad.cli.options import File, MachineOptions, Name, required
from postgrad.cli.options import Spec as Model
from postgrad.errors import UserError, unknown_name

FORMATS = ("safetensors", "pt2", "onnx")


@dataclass(frozen=True)
class Options:
    """Export a network, and check that the file gives the same answers.

    postgrad export --model runs/demo/base --format onnx --out base.onnx
    """

    model: Model = None
    """A saved network: RUN or RUN/ARM."""
    format: Name = None
    """safetensors (the weights), pt2 (torch.export), onnx (pip install 'postgrad[export]'). Default: FILE's ending."""
    out: File = None
    """The file to write."""
    machine: MachineOptions = field(default_factory=MachineOptions)


def run(options: Options) -> int:
    """Load, export, check, and say how close the copy is."""
    model = required(options.model, "--model")
    out = required(options.out, "--out")
    form = options.format or out.suffix.removeprefix(".")
    if form not in FORMATS:
        raise unknown_name("format", form, FORMATS)
    with prepared(options.machine):
        error = _export(model, out, form)
    if options.machine.json:
        print_json({"file": out, "format": form, "max_error": error})
    else:
        print(f"{out}: largest difference from the original {error:.1e}")
    return 0


def _export(model: str, out: Any, form: str) -> float:
    import torch
    from torch import nn

    from postgrad._loading import load
    from postgrad.models.export import export
    from postgrad.models.source import source_of

    network = load(model)
    if not isinstance(network, nn.Module):
        raise UserError(f"{model} is a second-stage classifier, not one network; export the network it stands on")
    source = source_of(network)
    if source is None:
        raise UserError(f"{model} does not say for which images it was made; save it again with create_model's network")
    images = torch.rand(2, source.in_channels, *source.image_size, generator=torch.Generator().manual_seed(0))
    preprocess: Any = network.preprocess
    return export(network, out, format=form, example=preprocess(images))
