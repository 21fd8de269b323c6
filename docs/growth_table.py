"""Which networks grow, and how far: every family of torchvision, and thirty networks of timm's; writes growth-table.md.

    python docs/growth_table.py                # one of each family: hours on one core; goes on where it was
    python docs/growth_table.py --all          # all of torchvision's classifiers
    python docs/growth_table.py resnet18       # what comes of some, printed

All widths of a network are analysed. Of each kind of width (by the layers that share it) one is widened, and each other
operator is tried on layers of the network; what is counted as grown has a certificate.
"""

from __future__ import annotations

import argparse
import collections
import copy
import json
import re
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from postgrad._compat import prepare_torchvision
from postgrad.errors import UserError
from postgrad.files import write_atomic
from postgrad.growth._algebra import axes_of, size_of
from postgrad.growth.axes import AxisGraph, WidthAxis, analyse
from postgrad.growth.words import OPERATORS
from postgrad.models.registry import create_model

HERE = Path(__file__).resolve().parent
RAW = HERE / "ledger" / "raw" / "growth-table.json"
PAGE = HERE / "growth-table.md"
CLASSES = 10
KINDS = 4
"""Of a network's widths, how many are really widened."""
LARGE = 100_000_000
"""Networks with more parameters are analysed, not grown."""
PIECES = re.compile(r"cuts it$|takes its units apart$|takes one of its units by its number$|viewed as one array$")
RETURNED = "it is what the network returns"

SIDES = {"inception_v3": 96, "maxvit_t": 224, "vit_h_14": 56}
"""Network -> the side of the images that it is tried on, where that is not 64."""
SIZED = {
    "torchvision:vit": "image_size",
    **{f"timm:{name}": "img_size" for name in ("mixer", "gmixer", "resmlp", "vit", "deit", "deit3", "levit")},
}
"""Families that are made for images of one size -> the argument that says it."""
FAMILIES = (
    "alexnet vgg11_bn resnet18 resnet50 resnext50_32x4d wide_resnet50_2 densenet121 googlenet inception_v3 "
    "squeezenet1_1 mobilenet_v2 mobilenet_v3_small shufflenet_v2_x0_5 mnasnet0_5 efficientnet_b0 efficientnet_v2_s "
    "regnet_x_400mf regnet_y_400mf convnext_tiny vit_b_16 vit_b_32 swin_t swin_v2_t maxvit_t"
)
TIMM = (
    "resnet18 resnetv2_50 seresnet18 regnetx_002 regnety_002 res2net50_26w_4s mobilenetv3_small_050 "
    "mobilenetv4_conv_small_035 efficientnet_lite0 ghostnet_050 repvgg_a0 dla34 vovnet39a cspresnet50 darknet53 "
    "hardcorenas_a tinynet_e lcnet_035 convnext_atto convnextv2_atto convmixer_768_32 mixer_s32_224 gmixer_24_224 "
    "resmlp_12_224 vit_tiny_patch16_224 deit_tiny_patch16_224 deit3_small_patch16_224 levit_128s poolformer_s12 "
    "edgenext_xx_small"
)

OTHERS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "deepen": [("after", {"kind": "residual"})],
    "deepen, identity": [("after", {"kind": "identity"})],
    "grow_kernel": [("layer", {"to": 5})],
    "branch": [("layer", {"ways": 2})],
    "insert_group": [("after", {"groups": 2})],
    "insert_dropout": [("after", {"p": 0.1})],
}
"""Operators beside widening: the argument that names a layer, and the others."""

HEAD = """# Which networks grow

One network of each of torchvision's families, and some of timm's, by `python docs/growth_table.py`, which wrote this
page. *Widths* are numbers of units inside the network that its layers share; those that it takes or returns, and
numbers of pieces (queries, keys and values), are not counted. *Can grow* are those that nothing holds; *by multiples*
those of them over which a mean is taken. Of each kind of width one was widened, *proved* out of those tried. The other
operators stand there where they were proved somewhere in the network. *Error* is the worst of all certificates, in
float64, of the outputs' spread. Why widths are held stands below.
"""


def networks(every: bool) -> list[str]:
    """The names of all networks, with their library."""
    names = FAMILIES.split()
    if every:
        prepare_torchvision()
        from torchvision import models

        names = models.list_models(module=models)
    return [*(f"torchvision:{name}" for name in names), *(f"timm:{name}" for name in TIMM.split())]


def fresh(network: str) -> tuple[nn.Module, Tensor]:
    """A network with drawn weights, none of them too small to matter, and an example of what it takes."""
    name = network.partition(":")[2]
    torch.manual_seed(0)
    side = SIDES.get(name, 64)
    argument = SIZED.get(network.partition("_")[0])
    if argument == "image_size":  # for create_model that is the size of what is stored
        prepare_torchvision()
        from torchvision import models

        model = models.get_model(name, num_classes=CLASSES, image_size=side).eval()
    else:
        model = create_model(network, num_classes=CLASSES, **({argument: side} if argument else {})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.abs().max() < 1e-3:
                parameter.normal_(0, 0.1)
    return model, torch.randn(1, 3, side, side)


def measured(network: str) -> dict[str, Any]:
    """All that the table says of a network."""
    started = time.process_time()
    model, example = fresh(network)
    record: dict[str, Any] = {"parameters": sum(each.numel() for each in model.parameters())}
    try:
        graph = analyse(model, example)
    except UserError as error:
        return record | {"refused": str(error)}
    widths = hidden(graph)
    free = [axis for axis in widths if not axis.fixed]
    reasons = collections.Counter(re.sub(r" in \S+", "", axis.fixed[0]) for axis in widths if axis.fixed)
    record |= {"widths": len(widths), "free": len(free), "even": sum(bool(axis.even) for axis in free)}
    record |= {"reasons": dict(reasons.most_common())}
    if record["parameters"] <= LARGE:
        record["widened"] = [grown(model, example, "widen", widening(graph, axis)) for axis in kinds(model, free)]
        record["others"] = {name: other(model, example, name) for name in OTHERS}
    return record | {"seconds": round(time.process_time() - started, 1)}


def hidden(graph: AxisGraph) -> list[WidthAxis]:
    """The axes that some layer makes, but for those that the network returns, and numbers of pieces."""
    found = []
    for axis in graph.axes:
        rows = [place for place in axis.places if not place.summed and graph.sums(place.weight)]
        is_kernel = all(place.dim > 1 for place in rows)
        is_count = "#" in axis.name and bool(axis.fixed) and all(map(PIECES.search, axis.fixed))
        if rows and not is_kernel and not is_count and set(axis.fixed) != {RETURNED}:
            found.append(axis)
    return found


def kinds(model: nn.Module, free: list[WidthAxis]) -> list[WidthAxis]:
    """One width of each kind: of layers of the same classes, under the same conditions."""
    modules = dict(model.named_modules())
    first: dict[Any, WidthAxis] = {}
    for axis in free:
        classes = frozenset(type(modules[layer]).__name__ for layer in axis.layers if layer in modules)
        first.setdefault((classes, bool(axis.even), bool(axis.scaled), "#" in axis.name), axis)
    return list(first.values())[:KINDS]


def widening(graph: AxisGraph, axis: WidthAxis) -> dict[str, Any]:
    """Twice as many units where all must become equally many, else a third more."""
    size = 2 * axis.size if axis.even or axis.scaled else axis.size + max(1, axis.size // 3)
    if "#" not in axis.name:
        rows = graph.rows(axis.name)
        if len(axes_of(rows)) == 1:
            size *= size_of(rows) // axis.size
    return {"layer": axis.name, "to": size}


def grown(model: nn.Module, example: Tensor, operator: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """What an operator gives on a copy."""
    try:
        certificate = OPERATORS[operator].load()(copy.deepcopy(model), **arguments, example=example)
    except UserError as error:
        return arguments | {"refused": str(error)}
    return arguments | {"max_error": certificate.max_error, "mode": certificate.mode}


def other(model: nn.Module, example: Tensor, name: str) -> dict[str, Any]:
    """What an operator gives on the first layer that it can be done to, of three spread over the network."""
    ((argument, options),) = OTHERS[name]
    wanted = (nn.Conv2d,) if name == "grow_kernel" else (nn.Conv2d, nn.Linear, nn.ReLU, nn.GELU, nn.SiLU)
    layers = [path for path, module in model.named_modules() if isinstance(module, wanted)][:-1]
    if name == "grow_kernel":
        layers = [path for path in layers if getattr(model.get_submodule(path), "kernel_size", None) == (3, 3)]
    result: dict[str, Any] = {"refused": "it has no such layer"}
    for path in layers[:: max(1, len(layers) // 3)][:3]:
        result = grown(model, example, name.partition(",")[0], {argument: path, **options})
        if "max_error" in result:
            break
    return result


def page(records: dict[str, dict[str, Any]]) -> str:
    """The table, and below it what holds widths."""
    lines = ["| network | widths | can grow | by multiples | proved | other operators | error |", "|---|" + "---:|" * 6]
    reasons: collections.Counter[str] = collections.Counter()
    for network, record in records.items():
        if "refused" in record:
            lines.append(f"| {network} | — | | | | {record['refused']} | |")
            continue
        reasons.update(record["reasons"])
        share = f"{record['free']} ({record['free'] / max(1, record['widths']):.0%})"
        lines.append(f"| {network} | {record['widths']} | {share} | {record['even']} | {_tried(record)} |")
    total = sum(record.get("widths", 0) for record in records.values())
    can = sum(record.get("free", 0) for record in records.values())
    lines += ["", f"Of all {total} widths {can} can grow ({can / max(1, total):.0%}). The others are held, by:", ""]
    lines += ["| widths | what holds them |", "|---:|---|"]
    lines += [f"| {count} | {reason} |" for reason, count in reasons.most_common()]
    return "\n".join([HEAD, *lines]) + "\n"


def _tried(record: dict[str, Any]) -> str:
    if "widened" not in record:
        return "too large to try | | "
    widened = record["widened"]
    proved = [each for each in widened if "max_error" in each]
    others = {name: each for name, each in record["others"].items() if "max_error" in each}
    errors = [each["max_error"] for each in (*proved, *others.values())]
    worst = f"{max(errors):.0e}" if errors else "—"
    return f"{len(proved)} of {len(widened)} | {', '.join(others)} | {worst}"


def main() -> int:
    """Measure what is not there yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help="names, printed and not written")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--json", type=Path, default=RAW, help="read where it exists, and written after each network")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    asked = [name if ":" in name else f"torchvision:{name}" for name in options.networks]
    records: dict[str, dict[str, Any]] = {}
    if options.json.exists() and not asked:
        records = json.loads(options.json.read_text(encoding="utf-8"))
    wanted = asked or networks(options.all)
    for network in wanted:
        if network not in records:
            records[network] = measured(network)
            print(f"{network}: {json.dumps(records[network], indent=1 if asked else None)}", flush=True)
            if not asked:
                write_atomic(options.json, json.dumps(records, indent=1, ensure_ascii=False) + "\n")
    shown = page({network: records[network] for network in wanted})
    if asked:
        print(shown)
    else:
        write_atomic(options.page, shown)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
