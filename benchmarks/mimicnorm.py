"""What a training step keeps in memory, and takes, under batch normalisation, MimicNorm and neither.

    python benchmarks/mimicnorm.py [--batch-size 256] [--timed-batch-size 16] [--repetitions 5] [--json FILE]

Networks for 32×32 images and 100 classes, as in the paper: torchvision's, with a stem of stride 1, VGG's classifier on
one pixel, and SqueezeNet with a normalisation after each convolution. `kept` is what the forward pass keeps for the
backward pass, at its peak: every storage once, parameters and buffers left out, the centred weights counted. It is
counted on torch's meta device, which computes nothing. `in all` adds parameters, their gradients and momentum; the
paper's figures (its table 1) are of a GPU's whole memory at batch 256. `step` is process CPU time of forward, backward
and SGD on one thread, the median of repetitions in turn. Changes are relative to batch normalisation.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.files import write_atomic
from postgrad.methods._surgery import replace_modules
from postgrad.methods.mimicnorm import apply_mimicnorm
from postgrad.methods.normalisation import remove_normalisation
from postgrad.models.registry import create_model

CLASSES = 100


def vgg16() -> nn.Module:
    model = create_model("torchvision:vgg16_bn", num_classes=CLASSES)
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.classifier[0] = nn.Linear(512, 4096)
    return model


def resnet18() -> nn.Module:
    model = create_model("torchvision:resnet18", num_classes=CLASSES)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def shufflenet() -> nn.Module:
    model = create_model("torchvision:shufflenet_v2_x1_0", num_classes=CLASSES)
    model.conv1[0] = nn.Conv2d(3, 24, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def squeezenet() -> nn.Module:
    model = create_model("torchvision:squeezenet1_1", num_classes=CLASSES)
    model.features[0] = nn.Conv2d(3, 64, 3, padding=1)
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    replace_modules(model, {layer: nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels)) for layer in layers})
    return model


NETWORKS = {"VGG16": vgg16, "ResNet-18": resnet18, "ShuffleNetV2": shufflenet, "SqueezeNet": squeezenet}
PUBLISHED = {"VGG16": 3489 / 3745, "ResNet-18": 4157 / 4447, "ShuffleNetV2": 3141 / 3915, "SqueezeNet": 2693 / 3687}
"""Memory under MimicNorm over that under batch normalisation, table 1."""
WAYS: dict[str, Callable[[nn.Module], object]] = {
    "BN": lambda model: None,
    "MimicNorm": lambda model: apply_mimicnorm(model, seed=0),
    "none": remove_normalisation,
}


def kept_bytes(model: nn.Module, batch_size: int) -> int:
    """What the forward pass of a training step keeps, each storage once, without the network's own tensors."""
    model = copy.deepcopy(model).to("meta")
    x, y = torch.empty(batch_size, 3, 32, 32, device="meta"), torch.empty(batch_size, dtype=torch.long, device="meta")
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}  # holding the tensors keeps their storages from being given out again

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        F.cross_entropy(model(x), y)
    return sum(tensor.untyped_storage().nbytes() for storage, tensor in kept.items() if storage not in own)


def step_seconds(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> float:
    began = time.process_time()
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    return time.process_time() - began


def measure(name: str, batch_size: int, timed_batch_size: int, repetitions: int) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    x, y = torch.randn(timed_batch_size, 3, 32, 32), torch.randint(CLASSES, (timed_batch_size,))
    arms = {}
    for way, change in WAYS.items():
        model = NETWORKS[name]().train()
        change(model)
        arms[way] = (model, torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9))
    seconds: dict[str, list[float]] = {way: [] for way in arms}
    for repetition in range(repetitions + 1):
        for way, (model, optimizer) in arms.items():
            taken = step_seconds(model, optimizer, x, y)
            if repetition:  # the first step allocates
                seconds[way].append(taken)
    rows = []
    for way, (model, _) in arms.items():
        kept = kept_bytes(model, batch_size)
        state = 3 * sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        step = statistics.median(seconds[way])
        rows.append({"network": name, "way": way, "kept": kept, "in_all": kept + state, "step_seconds": step})
    for row in rows:
        for key in ("kept", "in_all", "step_seconds"):
            row[f"{key}_change"] = row[key] / rows[0][key] - 1
    return rows


def line(row: dict[str, Any]) -> str:
    published = f"{PUBLISHED[row['network']] - 1:+.0%}" if row["way"] == "MimicNorm" else ""
    return (
        f"| {row['network']} | {row['way']} | {row['kept'] / 2**20:.1f} | {row['kept_change']:+.0%} "
        f"| {row['in_all'] / 2**20:.1f} | {row['in_all_change']:+.0%} | {published} "
        f"| {row['step_seconds'] * 1e3:.0f} | {row['step_seconds_change']:+.0%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=256, help="of the memory")
    parser.add_argument("--timed-batch-size", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, {platform.machine()}, one thread; memory at batch {options.batch_size}, "
        f"process CPU time at batch {options.timed_batch_size}, median of {options.repetitions} repetitions\n"
    )
    print("| network | way | kept, MiB | change | in all, MiB | change | published | step, ms | change |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    rows = []
    for name in options.networks:
        found = measure(name, options.batch_size, options.timed_batch_size, options.repetitions)
        rows += found
        print("\n".join(line(row) for row in found), flush=True)
    if options.json is not None:
        setting = {key: value for key, value in vars(options).items() if key != "json"} | {"torch": torch.__version__}
        write_atomic(options.json, json.dumps({"setting": setting, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
