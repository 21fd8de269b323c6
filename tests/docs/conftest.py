"""What the tests of the documentation share: where its pages are, and a small network on digits."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from postgrad.data.datasets import load_dataset
from postgrad.models.registry import create_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the project."""
    return ROOT


@pytest.fixture(scope="session")
def script():
    """A Python file of docs/ as a module, by its name."""

    def load(name: str) -> ModuleType:
        found = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def prepared() -> dict[str, nn.Module | Tensor]:
    """What the snippets take as given: a network, images that it has not seen with their labels, and newer images."""
    digits = load_dataset("digits")
    assert digits.train is not None
    assert digits.test is not None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create_model("seed-cnn", num_classes=10, in_channels=1, image_size=8)
    images, labels = digits.train.images[:50], digits.train.labels[:50]
    return {"model": model, "x_half": images, "y_half": labels, "x_new": digits.test.images[:8]}
