"""Factories of the user's own: what they are given, and how their mistakes are told."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from postgrad import create_model
from postgrad.data.preprocessing import Preprocessing
from postgrad.errors import UserError
from postgrad.models.preprocessing import own_preprocessing

NET = """
import torch
from neighbour import WIDTH

class Net(torch.nn.Module):
    preprocess = {"size": 40, "crop": 32}
    def __init__(self, num_classes, in_channels=3):
        super().__init__()
        self.conv = torch.nn.Conv2d(in_channels, WIDTH, 3)
        self.head = torch.nn.Linear(WIDTH, num_classes)
    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))

def no_arguments():
    return Net(6)

def anything(**options):
    assert list(options) == ["num_classes"], options
    return Net(**options)

def not_a_network(num_classes):
    return num_classes

def raises():
    raise KeyError("depth")
"""


@pytest.fixture
def net(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("WIDTH = 4\n")
    (tmp_path / "net.py").write_text(NET)
    return tmp_path / "net.py"


@pytest.mark.parametrize(("name", "classes"), [("Net", 7), ("no_arguments", 6), ("anything", 7)])
def test_a_file_makes_a_network(net: Path, name: str, classes: int) -> None:
    network = create_model(f"{net}:{name}", num_classes=7)
    assert network(torch.zeros(2, 3, 8, 8)).shape == (2, classes)
    assert own_preprocessing(network) == Preprocessing(size=40, crop=32)
    assert network.preprocess_origin == f"the word of {net}:{name} itself"


def test_it_is_given_what_it_names(net: Path) -> None:
    assert create_model(f"{net}:Net", num_classes=7, in_channels=1).conv.in_channels == 1


def test_its_classes_can_be_pickled(net: Path) -> None:
    network = create_model(f"{net}:Net", num_classes=7)
    assert torch.equal(pickle.loads(pickle.dumps(network)).head.weight, network.head.weight)


def test_an_installed_module_makes_a_network() -> None:
    assert isinstance(create_model("torch.nn:Identity", num_classes=10), torch.nn.Identity)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("net", "unknown factory in .*net.py 'net': did you mean 'Net'"),
        ("not_a_network", "returned an object of type int; a factory must return a torch.nn.Module"),
        ("raises", r"failed: KeyError: 'depth' \(net.py line 25\)"),
        ("WIDTH", "is an object of type int, not a function or class"),
    ],
)
def test_mistakes_in_the_file_are_told_with_their_place(net: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_model(f"{net}:{name}", num_classes=7)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def build(:\n", r"failed: SyntaxError: .*\(broken.py line 1\)"),
        ("x = 1\nimport no_such_thing\n", r"failed: ModuleNotFoundError: .*\(broken.py line 2\)"),
        ("import sys\nsys.exit(3)\n", r"failed: SystemExit: 3 \(broken.py line 2\)"),
    ],
)
def test_a_file_that_does_not_run(tmp_path: Path, code: str, message: str) -> None:
    (tmp_path / "broken.py").write_text(code)
    with pytest.raises(UserError, match=message):
        create_model(f"{tmp_path / 'broken.py'}:build", num_classes=7)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[1, 2]", "must be a Preprocessing or a dictionary"),
        ("{'croop': 3}", "unknown setting 'croop': did you mean 'crop'"),
    ],
)
def test_a_preprocess_attribute_that_says_nothing_sensible(tmp_path: Path, value: str, message: str) -> None:
    file = tmp_path / "odd.py"
    file.write_text(f"import torch\nclass Net(torch.nn.Flatten):\n    preprocess = {value}\n")
    with pytest.raises(UserError, match=message):
        create_model(f"{file}:Net", num_classes=7)
