"""What GradNet costs on networks of growing size, by the way in which it reads their gradients.

    python benchmarks/scale.py [--json FILE] [--plot FILE]          cost against parameters, then 1 GB on large networks
    python benchmarks/scale.py --accuracy [--data cifar10] [--json FILE]

Each figure comes from a process of its own, which first does the same on a tiny network, so that imports and compiled
code are there. Peak memory is the process's high-water mark (Linux counts it) above what it held with the network made,
from before `fit` until after `predict_proba`. Times are process CPU time on one thread for one image, in training (one
random label, forward, backward and update of GradNet) and in prediction (all labels).

`--accuracy` fits every way on the same half after the same base, with learning rates picked on validation images.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad import GradNet, UserError
from postgrad._compat import prepare_torchvision
from postgrad.data.datasets import load_dataset
from postgrad.data.preprocessing import Preprocessing
from postgrad.data.splits import stratified_split
from postgrad.files import write_atomic
from postgrad.models.registry import create_model

OPTIONS: dict[str, dict[str, Any]] = {
    "dense": {},
    "rank 2": {"rank": 2, "optimizer": "adam", "lr": 1e-3},
    "project 4096": {"project": 4096},
    "coordinates 20000": {"coordinates": 20_000},
}
SUBSETS = {"resnet18": ["layer1", "fc"], "vit": ["encoder.layers.encoder_layer_5.mlp", "heads"]}
WIDTHS = (16, 32, 64, 128, 256)
IMAGES = 300
STEPS = 12
PREDICTED = 48


class WideSeedCNN(nn.Module):
    """The seed's network with another number of filters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [nn.Conv2d(3, width, 5, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)]
        layers += [nn.Conv2d(width, width, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(36 * width, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x[:, :, 4:28, 4:28])


def vit() -> nn.Module:
    prepare_torchvision()
    from torchvision.models import VisionTransformer

    return VisionTransformer(
        image_size=32, patch_size=4, num_layers=6, num_heads=4, hidden_dim=192, mlp_dim=768, num_classes=10
    )


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "vit":
        return vit()
    if name == "resnet18":
        return create_model("torchvision:resnet18", num_classes=10)
    return WideSeedCNN(int(name.removeprefix("seed-cnn ×")))


def with_factors(model: nn.Module) -> list[str] | None:
    """The layers of a transformer that are linear or convolutions and are called as such; None is every layer."""
    if not any(isinstance(layer, nn.MultiheadAttention) for layer in model.modules()):
        return None
    return [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and not name.endswith("out_proj")
    ]


def images_and_labels(count: int) -> tuple[Tensor, Tensor]:
    train = load_dataset("cifar10", limit=count).train
    assert train is not None
    return train.images, train.labels


# --- one measurement, in a process of its own --------------------------------------------------------------------


def memory(field: str) -> float:
    """VmRSS or VmHWM of this process, in megabytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024 / 1e6


def above_now(work: Callable[[], None]) -> float:
    """The most memory, in megabytes, that some work took above what the process holds now."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    before = memory("VmRSS")
    work()
    return memory("VmHWM") - before


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Fit and predict in this process; a case that the memory budget refuses has the reason in place of figures."""
    # Images of 32 pixels as they are: torchvision's own preprocessing would make 224 of them.
    options = {**case["options"], "memory": case["memory"], "random_state": 0, "preprocess": Preprocessing()}
    x, y = images_and_labels(IMAGES)
    warm = WideSeedCNN(2)
    GradNet(warm, steps=2, **{**options, "layers": None, "memory": "1GB"}).fit(x[:50], y[:50]).predict_proba(x[:8])
    model = network(case["network"]).eval()
    classifier = GradNet(model, steps=case["steps"], **options)
    seconds: dict[str, float] = {}

    def work() -> None:
        classifier.fit(x, y)
        began = time.process_time()
        classifier.predict_proba(x[:PREDICTED])
        seconds["predicting"] = time.process_time() - began

    row = {
        "network": case["network"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "reading": case["reading"],
        "budget_mb": case["budget_mb"],
    }
    try:
        peak = above_now(work)
    except UserError as error:
        return {**row, "refused": str(error)}
    return {
        **row,
        "training_ms_per_image": 1e3 * classifier.history_.cpu_seconds / (case["steps"] * classifier.batch_size),
        "statistics_ms_per_image": 1e3 * classifier.statistics_seconds_ / len(x),
        "predicting_ms_per_image": 1e3 * seconds["predicting"] / PREDICTED,
        "peak_mb": peak,
        "own_weights": sum(p.numel() for p in classifier.head_.parameters()),
    }


def in_a_process(case: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, "--case", json.dumps(case)], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


# --- cost against parameters, and a stated budget ----------------------------------------------------------------


def cases(networks: list[str], budget: str, megabytes: int) -> list[dict[str, Any]]:
    made = []
    for name in networks:
        layers = with_factors(network(name))
        readings = dict(OPTIONS)
        if name in SUBSETS:
            readings["some layers"] = {"layers": SUBSETS[name]}
        for reading, options in readings.items():
            chosen = {"layers": layers, **options}
            made.append(
                {"network": name, "reading": reading, "options": chosen, "memory": budget}
                | {"budget_mb": megabytes, "steps": STEPS}
            )
    return made


def print_costs(rows: list[dict[str, Any]]) -> None:
    print("| network | parameters | reading | training, ms/image | predicting, ms/image | peak, MB | budget, MB |")
    print("|---|---:|---|---:|---:|---:|---:|")
    for row in rows:
        start = f"| {row['network']} | {row['parameters']:,} | {row['reading']} |"
        if "refused" in row:
            needs = re.search(r"need ([\d.]+ .B)|take ([\d.]+ GiB)", row["refused"])
            print(f"{start} refused: {needs[0] if needs else row['refused']} | | | {row['budget_mb']:,} |")
        else:
            figures = (row["training_ms_per_image"], row["predicting_ms_per_image"])
            shown = " | ".join(f"{figure:.2f}" for figure in figures)
            print(f"{start} {shown} | {row['peak_mb']:.0f} | {row['budget_mb']:,} |")


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    import matplotlib

    matplotlib.use("svg" if file.suffix == ".svg" else "agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for reading in OPTIONS:
        own = sorted(
            (r["parameters"], r["predicting_ms_per_image"], r["peak_mb"])
            for r in rows
            if r["reading"] == reading and "refused" not in r
        )
        for axis, column in zip(axes, (1, 2), strict=True):
            axis.plot([row[0] for row in own], [row[column] for row in own], marker="o", label=reading)
    for axis, title in zip(axes, ("predicting, ms for an image (all labels)", "peak memory, MB"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="parameters of the base", title=title)
        axis.legend()
    figure.savefig(file)


# --- accuracy ----------------------------------------------------------------------------------------------------

READINGS: dict[str, dict[str, Any]] = {
    "dense": {},
    "rank 1": {"rank": 1},
    "rank 2": {"rank": 2},
    "rank 4": {"rank": 4},
    "project 1024": {"project": 1024},
    "project 4096": {"project": 4096},
    "project 4096, nothing selected, std": {"project": 4096, "select": None, "normalise": "std"},
    "coordinates 5000": {"coordinates": 5_000},
    "coordinates 20000": {"coordinates": 20_000},
    "coordinates 20000, nothing selected, std": {"coordinates": 20_000, "select": None, "normalise": "std"},
    "last layer": {"layers": ["l1"]},
}
RATES = {"sgd": (0.01, 0.1), "adam": (1e-2, 1e-3, 1e-4)}


def accuracy(data: str, limit: int | None, epochs: float, base_steps: int) -> list[dict[str, Any]]:
    """Accuracy, time and weights of each reading after the same base, each with the optimizer that validation picks."""
    dataset = load_dataset(data, limit=limit)
    assert dataset.train is not None
    assert dataset.test is not None
    train, test = dataset.train, dataset.test
    half = len(train) // 2
    model = create_model("seed-cnn", num_classes=10, in_channels=dataset.shape[0], image_size=dataset.shape[-1])
    base = early_stopped(model, train.images[:half], train.labels[:half], base_steps)
    validation, rest = stratified_split(train.labels[half:], 0.1)
    x, y = train.images[half:], train.labels[half:]
    with torch.no_grad():
        right = base(base.preprocess(test.images)).argmax(1) == test.labels
    rows = [{"reading": "base alone", "accuracy": float(right.double().mean())}]
    print_accuracy(rows)
    for reading, options in READINGS.items():
        tried = []
        for optimizer, rates in RATES.items():
            for lr in rates:
                fitted = GradNet(base, epochs=epochs, optimizer=optimizer, lr=lr, **options).fit(x[rest], y[rest])
                tried.append((fitted.score(x[validation], y[validation]), optimizer, lr, fitted))
        best, optimizer, lr, fitted = max(tried, key=lambda each: each[0])
        rows.append(
            {
                "reading": reading,
                "optimizer": optimizer,
                "lr": lr,
                "validation_accuracy": best,
                "accuracy": fitted.score(test.images, test.labels),
                "fit_cpu_seconds": fitted.fit_cpu_seconds_,
                "own_weights": sum(p.numel() for p in fitted.head_.parameters()),
            }
        )
        print_accuracy(rows[-1:])
    return rows


def early_stopped(model: Any, images: Tensor, labels: Tensor, steps: int) -> Any:
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.randint(len(images), (64,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(model.preprocess(images[chosen])), labels[chosen]).backward()
        optimizer.step()
    return model.eval()


def print_accuracy(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        rest = (
            f"{row['optimizer']} {row['lr']:g} | {row['validation_accuracy']:.4f} | {row['fit_cpu_seconds']:.1f} | "
            f"{row['own_weights']:,}"
            if "lr" in row
            else " | | | "
        )
        print(f"| {row['reading']} | {row['accuracy']:.4f} | {rest} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--plot", type=Path, help="draw cost against parameters there (.svg or .png)")
    parser.add_argument("--accuracy", action="store_true", help="accuracy of each reading, in place of cost")
    parser.add_argument("--data", default="digits", help="data set of --accuracy")
    parser.add_argument("--limit", type=int, help="at most so many images of it")
    parser.add_argument("--epochs", type=float, default=5, help="passes of each fit of --accuracy")
    parser.add_argument("--base-steps", type=int, default=30, help="steps of the base of --accuracy")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if options.case is not None:
        print(json.dumps(measure(options.case)))
        return
    machine = f"torch {torch.__version__}, {os.environ['OMP_NUM_THREADS']} thread"
    if options.accuracy:
        print(f"{machine}, {options.data}\n\n| reading | test | optimizer | validation | fit, CPU s | weights |")
        print("|---|---:|---|---:|---:|---:|")
        result = {"machine": machine, "rows": accuracy(options.data, options.limit, options.epochs, options.base_steps)}
    else:
        growth = [in_a_process(case) for case in cases([f"seed-cnn ×{w}" for w in WIDTHS], "4GB", 4000)]
        large = [in_a_process(case) for case in cases(["resnet18", "vit"], "1GB", 1000)]
        print(machine + "\n")
        print_costs(growth + large)
        result = {"machine": machine, "rows": growth + large}
        if options.plot is not None:
            plot(result["rows"], options.plot)
    if options.json is not None:
        write_atomic(options.json, json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
