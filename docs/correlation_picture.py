"""Draws how alike two images become with depth, under batch normalisation, MimicNorm and neither: a page's picture.

python docs/correlation_picture.py --data-dir DIR
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import matplotlib
import torch
from torch import nn

from postgrad import apply_mimicnorm, apply_norm, create_model
from postgrad.data.datasets import load_dataset
from postgrad.files import atomic_path
from postgrad.methods.activation_correlation import activation_correlation

matplotlib.use("Agg")

from matplotlib import pyplot as plt

PICTURE = Path(__file__).parent / "images" / "activation-correlation.png"
NETWORKS = {"resnet20": "resnet20", "VGG16": "torchvision:vgg16_bn"}
SEEDS = 3
WAYS: dict[str, Callable[[nn.Module], object]] = {
    "batch normalisation": lambda model: None,
    "MimicNorm": apply_mimicnorm,
    "neither": lambda model: apply_norm(model, kind="none"),
}


def curve(network: str, change: Callable[[nn.Module], object], images: torch.Tensor) -> list[float]:
    """The correlation at the input of each layer at the start of a training, mean over seeds."""
    curves = []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        model = create_model(network, num_classes=10)
        change(model)
        curves.append([value for _, value in activation_correlation(model.train(), images)])
    return [statistics.fmean(values) for values in zip(*curves, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="where CIFAR-10 lies")
    data = load_dataset("cifar10", data_dir=parser.parse_args().data_dir, limit=64)
    assert data.train is not None
    images = data.preprocess(data.train.images)
    figure, axes = plt.subplots(1, len(NETWORKS), figsize=(9, 3.4), sharey=True, layout="constrained")
    for axis, (title, network) in zip(axes, NETWORKS.items(), strict=True):
        for way, change in WAYS.items():
            axis.plot(range(1, len(values := curve(network, change, images)) + 1), values, label=way)
            print(f"{title}, {way}: {values[0]:.2f} at the first layer, {values[-1]:.2f} at the last")
        axis.set(title=title, xlabel="layer", ylim=(-0.1, 1.02))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("correlation of two images")
    axes[0].legend(frameon=False)
    with atomic_path(PICTURE) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


if __name__ == "__main__":
    main()
