"""Random growth of small networks of every family, one mutation on top of another: proved, or refused without a trace.

    python docs/growth_fuzz.py --mutations 1000 --json docs/ledger/raw/growth-fuzz.json   # goes on where it was
    python docs/growth_fuzz.py --mutations 20 --only swin                                  # one family, printed

What an operator returns is checked by a comparison of its own, on other images than those of its certificate; after a
refusal every tensor must be the same object with the same content. Anything else that happens is a failure.
"""

from __future__ import annotations

import argparse
import collections
import copy
import functools
import json
import random
import re
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from postgrad._compat import prepare_torchvision
from postgrad.errors import UserError
from postgrad.files import write_atomic
from postgrad.growth._probes import leaves
from postgrad.growth.certificate import Certificate
from postgrad.growth.words import OPERATORS
from postgrad.models.registry import create_model

prepare_torchvision()
from torchvision import models  # noqa: E402
from torchvision.models.convnext import CNBlockConfig  # noqa: E402
from torchvision.models.efficientnet import FusedMBConvConfig, MBConvConfig  # noqa: E402
from torchvision.models.regnet import BlockParams, RegNet  # noqa: E402
from torchvision.models.resnet import BasicBlock, Bottleneck  # noqa: E402
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2  # noqa: E402
from torchvision.models.vgg import make_layers  # noqa: E402

LENGTH = 5
"""Mutations of one network, before the next one begins."""
MOST_PARAMETERS = 12_000_000
CLASSES = 10
WEIGHTS = {
    "widen": 10, "deepen": 4, "grow_kernel": 3, "branch": 3, "add_skip": 3, "insert_group": 2, "insert_dropout": 1,
    "insert_pool": 1, "group_layer": 1,
}  # fmt: skip
"""How often each operator is drawn."""

Network = tuple[Callable[[], nn.Module], Callable[[], Any]]


def _vgg() -> nn.Module:
    model = models.VGG(make_layers([8, "M", 12, "M"], batch_norm=True), num_classes=CLASSES, init_weights=False)
    model.avgpool = nn.AdaptiveAvgPool2d(2)
    model.classifier = nn.Sequential(nn.Linear(48, 20), nn.ReLU(True), nn.Dropout(), nn.Linear(20, CLASSES))
    return model


def _inverted(*stages: tuple[type[Any], int, int, int, int]) -> list[Any]:
    return [kind(expand, 3, stride, into, out, 1) for kind, expand, stride, into, out in stages]


def _small() -> dict[str, Callable[[], nn.Module]]:
    """One small network of each of torchvision's families, and our own."""
    classes = {"num_classes": CLASSES}
    fused, mobile = FusedMBConvConfig, MBConvConfig
    window = {"patch_size": [2, 2], "embed_dim": 12, "depths": [1, 2], "num_heads": [2, 4], "window_size": [4, 4]}
    return {
        "seed-cnn": lambda: create_model("seed-cnn", num_classes=CLASSES, in_channels=3),
        "resnet20": lambda: create_model("resnet20", num_classes=CLASSES),
        "vgg": _vgg,
        "resnet": lambda: models.ResNet(BasicBlock, [1, 2, 1, 1], **classes),
        "bottleneck": lambda: models.ResNet(Bottleneck, [1, 1, 1, 1], **classes),
        "resnext": lambda: models.ResNet(Bottleneck, [1, 1, 1, 1], groups=4, width_per_group=8, **classes),
        "densenet": lambda: models.DenseNet(8, (2, 2, 2, 2), 16, **classes),
        "googlenet": lambda: models.GoogLeNet(CLASSES, aux_logits=False, init_weights=False),
        "squeezenet": lambda: models.SqueezeNet("1_1", CLASSES),
        "mobilenet_v2": lambda: models.mobilenet_v2(width_mult=0.25, **classes),
        "mobilenet_v3": lambda: models.mobilenet_v3_small(width_mult=0.5, **classes),
        "shufflenet": lambda: models.ShuffleNetV2([2, 3, 2], [8, 16, 24, 32, 64], **classes),
        "mnasnet": lambda: models.MNASNet(0.35, **classes),
        "efficientnet": lambda: models.EfficientNet(
            _inverted((mobile, 1, 1, 8, 8), (mobile, 4, 2, 8, 16), (mobile, 4, 1, 16, 16)), 0.2, **classes
        ),
        "efficientnet_v2": lambda: models.EfficientNet(
            _inverted((fused, 1, 1, 8, 8), (fused, 4, 2, 8, 16), (mobile, 4, 1, 16, 16)), 0.2, **classes
        ),
        "regnet": lambda: RegNet(BlockParams([1, 2], [16, 32], [8, 8], [1.0, 1.0], [2, 2], 0.25), **classes),
        "convnext": lambda: models.ConvNeXt([CNBlockConfig(12, 16, 2), CNBlockConfig(16, None, 1)], 0.1, **classes),
        "vit": lambda: models.VisionTransformer(32, 8, 2, 2, 12, 20, **classes),
        "swin": lambda: models.SwinTransformer(**window, **classes),
        "swin_v2": lambda: models.SwinTransformer(
            **window, **classes, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2
        ),
        "maxvit": lambda: models.MaxVit((32, 32), 8, 4, [8, 16], [1, 1], 4, 0.1, **classes),
    }


def _images(side: int = 32) -> Tensor:
    return torch.randn(2, 3, side, side)


NETWORKS: dict[str, Network] = {
    name: (make, functools.partial(_images, 24 if name == "seed-cnn" else 32)) for name, make in _small().items()
}


def awake(model: nn.Module, inputs: Any) -> nn.Module:
    """The network in evaluation mode, no part of it silent, with the statistics of a batch."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.abs().max() < 1e-3:  # a last layer or a scale that begins at nothing
                parameter.normal_(0, 0.1)
        model.train()(*(inputs if isinstance(inputs, tuple) else (inputs,)))
    return model.eval()


def drawn_call(model: nn.Module, dice: random.Random) -> tuple[str, dict[str, Any]]:
    """An operator, and arguments that fit it more or less."""
    name = dice.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    modules = {path: module for path, module in model.named_modules() if path}
    convolutions = [path for path, module in modules.items() if isinstance(module, nn.Conv2d)]
    layers = [path for path, module in modules.items() if isinstance(module, (nn.Conv2d, nn.Linear))]
    some = dice.choice(layers if name == "widen" or dice.random() < 0.3 else list(modules))
    if name == "widen":
        weight = modules[some].weight
        width = int(weight.shape[0])
        to = width * 2 if dice.random() < 0.5 else width + dice.randint(1, width)
        return name, {"layer": some, "to": to, "init": dice.choice(["replicate"] * 4 + ["fanout_zero"])}
    if name == "deepen":
        return name, {"after": some, "kind": dice.choice(["residual", "identity"])}
    if name == "grow_kernel":
        return name, {"layer": dice.choice(convolutions or layers), "to": dice.choice([3, 5, 7])}
    if name == "branch":
        return name, {"layer": some, "ways": dice.choice([2, 3]), "kind": dice.choice(["add", "concat", "gated"])}
    if name == "add_skip":
        return name, {"source": some, "target": dice.choice(list(modules))}
    if name == "group_layer":
        return name, {"layer": dice.choice(convolutions or layers), "groups": 2}
    if name == "insert_group":
        return name, {"after": some, "groups": dice.choice([2, 3, 4])}
    return name, {"after": some, **({"p": 0.3} if name == "insert_dropout" else {})}


def outputs(model: nn.Module, inputs: Any) -> Tensor:
    """What a copy gives in float64 in evaluation mode, as one tensor."""
    inputs = tuple(each.double() for each in inputs) if isinstance(inputs, tuple) else (inputs.double(),)
    with torch.no_grad():
        made = copy.deepcopy(model).double().eval()(*inputs)
    return torch.cat([each.flatten() for each in leaves(made)])


def difference(before: Tensor, after: Tensor) -> float:
    """The greatest difference, by the spread of what was."""
    return ((after - before).abs().max() / before.std()).item()


def mutated(model: nn.Module, inputs: Any, others: Any, dice: random.Random) -> dict[str, Any]:
    """One mutation: what was tried, and what came of it ("certified", "refused" or "failed")."""
    operator, arguments = drawn_call(model, dice)
    record: dict[str, Any] = {"operator": operator, "arguments": arguments}
    before = outputs(model, others)
    tensors = {name: (id(tensor), tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    said, modes, chance = repr(model), [module.training for module in model.modules()], torch.get_rng_state()
    started = time.process_time()
    try:
        certificate: Certificate = OPERATORS[operator].load()(model, **arguments, example=inputs)
    except UserError as error:
        after = model.state_dict(keep_vars=True)
        same = after.keys() == tensors.keys() and all(
            id(tensor) == tensors[name][0] and torch.equal(tensor, tensors[name][1]) for name, tensor in after.items()
        )
        same = same and repr(model) == said and [module.training for module in model.modules()] == modes
        record |= {"outcome": "refused" if same else "failed", "reason": str(error)}
    except Exception:
        record |= {"outcome": "failed", "reason": traceback.format_exc(limit=-4)}
    else:
        error_ = difference(before, outputs(model, others))
        limit = 1e-4 if "rounding" in certificate.errors else 1e-9
        proved = not certificate.exact or error_ <= limit
        record |= {"outcome": "certified" if proved else "failed", "error": error_, "exact": certificate.exact}
        record |= {"max_error": certificate.max_error, "mode": certificate.mode}
    if not torch.equal(torch.get_rng_state(), chance):
        record |= {"outcome": "failed", "reason": f"the random state is another; {record.get('reason', '')}"}
    return record | {"seconds": round(time.process_time() - started, 2)}


def sequence(number: int, name: str, network: Network, length: int) -> Iterator[dict[str, Any]]:
    """The mutations of one network, each on top of those before it."""
    dice = random.Random(number)
    torch.manual_seed(number)
    make, example = network
    model, inputs, others = awake(make(), example()), example(), example()
    for _ in range(length):
        record = {"sequence": number, "network": name, **mutated(model, inputs, others, dice)}
        yield record
        if record["outcome"] == "failed" or sum(each.numel() for each in model.parameters()) > MOST_PARAMETERS:
            return


def summary(records: list[dict[str, Any]]) -> str:
    """A table by operator, the worst error, the most frequent reasons of refusals, and all failures."""
    lines = [f"{'operator':15s} {'tried':>6s} {'certified':>10s} {'refused':>8s} {'failed':>7s} {'worst error':>12s}"]
    for operator in WEIGHTS:
        mine = [record for record in records if record["operator"] == operator]
        by = collections.Counter(record["outcome"] for record in mine)
        errors = [record["max_error"] for record in mine if record.get("exact")]
        worst = f"{max(errors):.1e}" if errors else "—"
        lines.append(
            f"{operator:15s} {len(mine):6d} {by['certified']:10d} {by['refused']:8d} {by['failed']:7d} {worst:>12s}"
        )
    reasons = collections.Counter(
        re.sub(r"[\w.#]*\d[\w.#]*", "…", record["reason"]) for record in records if record["outcome"] == "refused"
    )
    lines += ["", *(f"{count:5d} × {reason}" for reason, count in reasons.most_common(12))]
    failures = [record for record in records if record["outcome"] == "failed"]
    return "\n".join([*lines, *(f"\nFAILED {json.dumps(each, indent=1)}" for each in failures)])


def page(records: list[dict[str, Any]]) -> str:
    """What came of it, as a page of the ledger."""
    by = collections.Counter(record["outcome"] for record in records)
    networks = sorted({record["network"] for record in records})
    return f"""# Random growth

Every operator, on places and with settings that are drawn, one on top of another, on small networks of
{len(networks)} families ({", ".join(networks)}) at reduced resolution:

`python docs/growth_fuzz.py --mutations {len(records)} --json docs/ledger/raw/growth-fuzz.json`

**{len(records)} mutations: {by["certified"]} certified, {by["refused"]} refused, {by["failed"]} failed.**
A certified one is checked once more by a comparison of its own, on other images than those of its certificate; after a
refusal every tensor must be the same object with the same content. Anything else counts as failed. The error is the
greatest difference of the outputs in float64 over their standard deviation; pooling and grouping are approximate and
have none. Below the table: what was refused most often, with names and numbers left out.

```text
{summary(records)}
```

Raw: [growth-fuzz.json](raw/growth-fuzz.json), every call with its outcome.
"""


def main() -> int:
    """Go on until there are so many mutations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=50)
    parser.add_argument("--only", choices=NETWORKS)
    parser.add_argument("--json", type=Path, help="read where it exists, and written after each network")
    parser.add_argument("--page", type=Path, help="the page of the ledger, written at the end")
    options = parser.parse_args()
    torch.set_num_threads(1)
    records: list[dict[str, Any]] = []
    if options.json and options.json.exists():
        records = json.loads(options.json.read_text(encoding="utf-8"))
    names = [options.only] if options.only else list(NETWORKS)
    number = 1 + max((record["sequence"] for record in records), default=-1)
    while len(records) < options.mutations:
        name = names[number % len(names)]
        length = min(LENGTH, options.mutations - len(records))
        for record in sequence(number, name, NETWORKS[name], length):
            records.append(record)
            arguments = ", ".join(f"{key}={value}" for key, value in record["arguments"].items())
            print(f"{len(records):5d} {name:16s} {record['operator']}({arguments}): {record['outcome']}", flush=True)
        if options.json:
            write_atomic(options.json, json.dumps(records, indent=1, ensure_ascii=False) + "\n")
        number += 1
    print(summary(records))
    if options.page:
        write_atomic(options.page, page(records))
    return int(any(record["outcome"] == "failed" for record in records))


if __name__ == "__main__":
    raise SystemExit(main())
