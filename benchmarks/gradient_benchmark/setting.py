"""What is worked on: images, a briefly trained seed-cnn, and a GradNet fitted on its gradients."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from postgrad.artifacts import read_tensors, save_tensors
from postgrad.data.datasets import load_dataset
from postgrad.methods.gradnet import GradNet
from postgrad.models.registry import create_model
from postgrad.training import Recipe, train

HIDDEN = (5, 100, 25)
SELECT = 0.15
LEARNING_RATE = 0.01
CLASSES = 10
IMAGES = 250
BASE_IMAGES = 4000


@dataclass(frozen=True)
class Batch:
    """Images as stored (N, 3, 32, 32) and as the network sees them (N, 3, 24, 24), random labels, and the true ones."""

    images: Tensor
    inputs: Tensor
    labels: Tensor
    truth: Tensor


@dataclass(frozen=True)
class Setting:
    """A fitted GradNet, images for it with random and true labels, and where they are from."""

    gradnet: GradNet
    images: Tensor
    labels: Tensor
    truth: Tensor
    origin: str

    @property
    def model(self) -> nn.Module:
        """The base network, in evaluation mode."""
        return self.gradnet.model_

    @property
    def device(self) -> torch.device:
        return self.gradnet.device_

    def batch(self, size: int) -> Batch:
        """The first `size` images, on the device."""
        images = self.images[:size]
        inputs = self.gradnet.preprocess_(images.to(self.device))
        return Batch(images, inputs, self.labels[:size].to(self.device), self.truth[:size].to(self.device))

    def save(self, folder: Path) -> None:
        """Write what `load` reads, for a process that starts fresh."""
        self.gradnet.save(folder / "gradnet")
        save_tensors({"images": self.images, "labels": self.labels, "truth": self.truth}, folder / "images.safetensors")

    @classmethod
    def load(cls, folder: Path, device: str) -> Setting:
        tensors = read_tensors(folder / "images.safetensors")
        gradnet = GradNet.load(folder / "gradnet", device=device)
        return cls(gradnet, tensors["images"], tensors["labels"], tensors["truth"], "")


def make_setting(*, device: str, steps: int, images: int = IMAGES) -> Setting:
    """Train a seed-cnn for some steps (zeros in what flows back depend on it), and fit a GradNet for one step.

    The images that are timed are not those that the base network was trained on.
    """
    pixels, classes, origin = read_images(BASE_IMAGES + images)
    model = train_base(pixels[:BASE_IMAGES], classes[:BASE_IMAGES], steps, device)
    pixels, classes = pixels[BASE_IMAGES:], classes[BASE_IMAGES:]
    gradnet = GradNet(model, hidden=HIDDEN, select=SELECT, lr=LEARNING_RATE, steps=1, device=device)
    gradnet.fit(pixels, classes)
    labels = torch.randint(CLASSES, (images,), generator=torch.Generator().manual_seed(1))
    return Setting(gradnet, pixels, labels, classes, origin)


def train_base(images: Tensor, classes: Tensor, steps: int, device: str) -> nn.Module:
    """A seed-cnn after some steps of plain SGD on centre crops, seeded."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = create_model("seed-cnn", num_classes=CLASSES).to(device)

    def make_batch(indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return model.preprocess(images[indices].to(device)), classes[indices].to(device)

    train(
        model,
        n=len(images),
        make_batch=make_batch,
        loss=lambda network, batch: F.cross_entropy(network(batch[0]), batch[1]),
        recipe=Recipe(steps=steps, batch_size=64, lr=0.05),
        seed=0,
        label="base network",
    )
    return model


def read_images(count: int) -> tuple[Tensor, Tensor, str]:
    """CIFAR-10 training images where they are found (uint8, (N, 3, 32, 32)), else generated ones; which is said."""
    folder = _cifar10_folder()
    if folder is None:
        return *generated_images(count), "generated images in CIFAR-10's shape, since CIFAR-10 was not found"
    part = load_dataset("cifar10", data_dir=folder, limit=count).train
    assert part is not None
    return part.images, part.labels, "CIFAR-10"


def generated_images(count: int) -> tuple[Tensor, Tensor]:
    """A coarse pattern for each class under coarse noise, so that there is something to learn."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(CLASSES, (count,), generator=generator)
    patterns = torch.randn(CLASSES, 3, 8, 8, generator=generator)
    coarse = patterns[classes] + torch.randn(count, 3, 8, 8, generator=generator)
    pixels = F.interpolate(coarse, size=(32, 32), mode="bilinear", align_corners=False)
    return (128 + 48 * pixels).clamp(0, 255).to(torch.uint8), classes


def _cifar10_folder() -> Path | None:
    """$POSTGRAD_DATA, or `shared/data` beside the repository; only what is on the disk, nothing is fetched."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    for folder in (os.environ.get("POSTGRAD_DATA"), beside):
        if folder and (Path(folder).expanduser() / "cifar-10-batches-py").is_dir():
            return Path(folder).expanduser()
    return None
