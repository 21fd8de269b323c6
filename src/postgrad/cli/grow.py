"""`postgrad grow`: a larger network that computes the same, as a checkpoint with its certificate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from postgrad.cli.console import prepared, print_json, say, table
from postgrad.cli.options import (
    DataOptions,
    Folder,
    MachineOptions,
    ModelOptions,
    Name,
    PreprocessOptions,
    Repeated,
    Seed,
    Text,
    preprocess_flags,
    required,
)
from postgrad.errors import UserError
from postgrad.files import fresh_directory, write_atomic

PICTURE, CERTIFICATE = "network.svg", "certificate.json"


def _repeated(metavar: str) -> Any:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="(repeatable)")


@dataclass(frozen=True)
class GrowthOptions:
    """What is grown, in the order given. In a layer's name * stands for anything, dots too: 'layer*.conv1'."""

    widen: Annotated[Repeated, _repeated("LAYER=SIZE")] = ()
    """To so many channels, with all layers coupled to it: conv1=96, or 'layer*.conv1=1.5x'."""
    deepen: Annotated[Repeated, _repeated("AFTER[=KIND]")] = ()
    """One more block behind a module: layer3. KIND: residual (default) | identity."""
    kernel: Annotated[Repeated, _repeated("LAYER=SIZE")] = ()
    """A larger kernel: conv1=9, or conv1=3x7."""
    branch: Annotated[Repeated, _repeated("LAYER[=WAYS]")] = ()
    """Several ways of one module: layer1.0 (two), or layer1.0=3."""
    skip: Annotated[Repeated, _repeated("SOURCE:TARGET")] = ()
    """A skip connection: layer1:layer3."""
    group: Annotated[Repeated, _repeated("AFTER=GROUPS")] = ()
    """A grouped convolution behind a module: layer2=4."""
    init: Name = None
    """What new channels of --widen start as: replicate (default) | fanout_zero | random (which is not exact)."""
    seed: Seed = None
    """Of what is drawn. Default: 0."""
    explain: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Print which widths are coupled, in which steps they grow, or why they do not."""
    example_size: Text = None
    """Channels, height and width of the images on which it is checked, such as 3x64x64. Default: those of the model."""
    out: Folder = None
    """Where it goes; one that holds something is left alone, and DIR-2, ... is used. Default: runs/grow."""


@dataclass(frozen=True)
class Options:
    """Grow a trained network without changing what it computes, and prove it.

    postgrad grow --model runs/demo/base --widen 'c*=1.5x' --explain --out runs/grown
    """

    growth: GrowthOptions = field(default_factory=GrowthOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    preprocess: PreprocessOptions = field(default_factory=PreprocessOptions)
    machine: MachineOptions = field(default_factory=MachineOptions)
    words: tyro.conf.Suppress[tuple[str, ...]] = ()
    """The command line itself, which alone says in which order the operators stand."""


def run(options: Options) -> int:
    """Load, grow, write, tell."""
    required(options.model.model, "--model")
    calls = operations(options.growth, options.words)
    if not calls and not options.growth.explain:
        raise UserError("nothing to grow; give --widen, --deepen, --kernel, --branch, --skip or --group, or --explain")
    with prepared(options.machine):
        document, text = _grow(options, calls)
    if options.machine.json:
        print_json(document)
    else:
        print(text)
    return 0


def operations(options: GrowthOptions, words: Sequence[str]) -> list[Any]:
    """The operators that were asked for, in the order in which they stand on the command line."""
    from postgrad.growth.words import Operation

    left = {name: list(getattr(options, name)) for name in _FORMS}
    found = []
    for word in words:
        name = word.removeprefix("--").partition("=")[0] if word.startswith("--") else ""
        if left.get(name):
            found.append(Operation(*_FORMS[name](left[name].pop(0), options)))
    return [call.checked() for call in found]


def _widening(word: str, options: GrowthOptions) -> tuple[str, dict[str, Any]]:
    layer, size = _pair("--widen", word, "=", "conv1=96 or 'layer*.conv1=1.5x'")
    init = {"init": options.init} if options.init is not None else {}
    return "widen", {"layer": layer, "to": size if size.endswith(("x", "×")) else _whole("--widen", word, size), **init}


def _deepening(word: str, options: GrowthOptions) -> tuple[str, dict[str, Any]]:
    after, _, kind = word.partition("=")
    return "deepen", {"after": after, **({"kind": kind} if kind else {})}


def _kernel(word: str, options: GrowthOptions) -> tuple[str, dict[str, Any]]:
    layer, size = _pair("--kernel", word, "=", "conv1=9 or conv1=3x7")
    sizes = tuple(_whole("--kernel", word, each) for each in size.split("x"))
    return "grow_kernel", {"layer": layer, "to": sizes[0] if len(sizes) == 1 else sizes}


def _branching(word: str, options: GrowthOptions) -> tuple[str, dict[str, Any]]:
    layer, _, ways = word.partition("=")
    return "branch", {"layer": layer, **({"ways": _whole("--branch", word, ways)} if ways else {})}


def _skip(word: str, options: GrowthOptions) -> tuple[str, dict[str, Any]]:
    source, target = _pair("--skip", word, ":", "layer1:layer3")
    return "add_skip", {"source": source, "target": target}


def _group(word: str, options: GrowthOptions) -> tuple[str, dict[str, Any]]:
    after, groups = _pair("--group", word, "=", "layer2=4")
    return "insert_group", {"after": after, "groups": _whole("--group", word, groups)}


_FORMS = {
    "widen": _widening,
    "deepen": _deepening,
    "kernel": _kernel,
    "branch": _branching,
    "skip": _skip,
    "group": _group,
}
"""Option -> what reads its word into an operator of `postgrad.growth` and its options."""


def _pair(option: str, word: str, sign: str, form: str) -> tuple[str, str]:
    first, _, second = word.partition(sign)
    if not first or not second:
        raise UserError(f"{option}: cannot read '{word}'; write it as {form}")
    return first, second


def _whole(option: str, word: str, number: str) -> int:
    if not number.isdecimal():
        raise UserError(f"{option}: cannot read '{word}'; '{number}' is no whole number")
    return int(number)


def _grow(options: Options, calls: Sequence[Any]) -> tuple[dict[str, Any], str]:
    from postgrad.cli.growing import network_and_example
    from postgrad.growth.axes import analyse
    from postgrad.growth.explain import HEADINGS, coupled_widths, picture
    from postgrad.growth.operations import grow

    choice = options.growth
    seed = choice.seed or 0
    found = network_and_example(
        options.model,
        options.data,
        preprocess_flags(options.preprocess),
        size=choice.example_size,
        seed=seed,
        device=options.machine.device or "cpu",
        untrained=not calls,
    )
    say(f"checked on {found.described}")
    before = _parameters(found.network)
    document: dict[str, Any] = {"model": found.name, "example": found.described, "seed": seed}
    texts: list[str] = []
    if choice.explain:
        widths = coupled_widths(found.network, analyse(found.network, found.example))
        document["widths"] = [_width(each) for each in widths]
        texts.append(table(HEADINGS, [each.row() for each in widths]))
    grown = grow(found.network, calls, example=found.example, seed=seed, say=say)
    directory = fresh_directory(choice.out or Path("runs/grow"))
    after = _parameters(found.network)
    document |= {"parameters": {"before": before, "after": after}, "steps": [_step(each) for each in grown]}
    files = [PICTURE]
    write_atomic(directory / PICTURE, picture(found.network, analyse(found.network, found.example), found.name))
    if calls:
        found.save(directory)
        write_atomic(directory / CERTIFICATE, _certificate(document, grown))
        files = ["model.safetensors", "manifest.json", CERTIFICATE, PICTURE]
        texts.append(table(_GROWN, [_row(each) for each in grown]))
        texts.append(f"{before:,} parameters before, {after:,} after")
    texts.append(f"{directory}: {', '.join(files)}")
    return {"out": directory, **document, "files": files}, "\n\n".join(texts)


_GROWN = ("operator", "module", "change", "coupled with", "max error", "mode", "seconds")


def _row(grown: Any) -> tuple[str, ...]:
    """One operator that was carried out, for a table."""
    more = f" (+{len(grown.coupled) - 2} more)" if len(grown.coupled) > 2 else ""
    certificate = grown.certificate
    mode = certificate.mode if certificate.exact else "approximate"
    coupled = f"{', '.join(grown.coupled[:2])}{more}"
    return (
        grown.operation.name,
        grown.place,
        grown.change,
        coupled,
        f"{certificate.max_error:.1e}",
        mode,
        f"{grown.seconds:.1f}",
    )


def _step(grown: Any) -> dict[str, Any]:
    certificate = grown.certificate
    return {
        "operation": str(grown.operation),
        "change": grown.change,
        "coupled": list(grown.coupled),
        "parameters": grown.parameters,
        "max_error": certificate.max_error,
        "exact": certificate.exact,
        "mode": certificate.mode,
        "seconds": grown.seconds,
    }


def _width(width: Any) -> dict[str, Any]:
    return {
        "axis": width.name,
        "size": width.size,
        "layers": list(width.layers),
        "step": None if width.number is None else width.step,
        "reasons": list(width.reasons),
    }


def _certificate(document: dict[str, Any], grown: Sequence[Any]) -> str:
    """The proof of each step, with all its errors, and the journal of all growth."""
    steps = [step | {"errors": each.certificate.errors} for step, each in zip(document["steps"], grown, strict=True)]
    whole = {
        "model": document["model"],
        "example": document["example"],
        "parameters": document["parameters"],
        "max_error": max(each.certificate.max_error for each in grown),
        "exact": all(each.certificate.exact for each in grown),
        "steps": steps,
        "journal": grown[-1].certificate.journal,
    }
    return json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _parameters(network: Any) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
