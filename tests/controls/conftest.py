"""A small half of the digits, a base network on it, and step counts so small that a control takes no time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from postgrad.controls import Setting
from postgrad.data.datasets import Dataset, load_dataset
from postgrad.data.splits import halves
from postgrad.models.registry import create_model

MakeSetting = Callable[..., Setting]


class FewSteps(dict[str, int]):
    """Step counts as `Setting.steps` takes them: the same for whatever training asks."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: str) -> int:
        return self.count

    def get(self, key: str, default: Any = None) -> int:
        return self[key]


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_dataset("digits", limit=120)


def _network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create_model("mlp", num_classes=10, in_channels=1, image_size=8, hidden=(20, 12)).eval()


@pytest.fixture(scope="session")
def make_network() -> Callable[..., nn.Module]:
    """Makes an untrained mlp for digits, the same one for a seed."""
    return _network


@pytest.fixture
def make_setting(digits: Dataset, tmp_path: Path) -> MakeSetting:
    def make(count: int = 2, **changes: Any) -> Setting:
        parts: dict[str, Any] = {
            "dataset": digits,
            "halves": halves(digits),
            "base": _network(),
            "preprocess": digits.preprocess,
            "augmentation": digits.augmentation,
            "seed": 0,
            "directory": tmp_path / "control",
            "steps": FewSteps(count),
            "method_seconds": 1.0,
            "method_parameters": 3000,
            "passes": 10,
        }
        return Setting(**parts | changes)

    return make


@pytest.fixture(scope="session")
def same_bits() -> Callable[[nn.Module, nn.Module], bool]:
    def same(ours: nn.Module, theirs: nn.Module) -> bool:
        a, b = ours.state_dict(), theirs.state_dict()
        return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)

    return same
