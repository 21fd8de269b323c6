"""What holds for every method of the registry: its card, and for second-stage ones the surface of an estimator."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from registry import SECOND_STAGE
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from torch import nn

import postgrad
from postgrad.data.datasets import Dataset, load_dataset
from postgrad.errors import UserError
from postgrad.methods.registry import METHODS
from postgrad.models.registry import create_model

CARD = ("Cost", "When it fails", "Paper", "Licence")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits", limit=120)


@pytest.fixture(scope="module")
def network(digits: Dataset) -> nn.Module:
    torch.manual_seed(0)
    model: Any = create_model("mlp", num_classes=10, in_channels=1, image_size=8)
    model.preprocess = digits.preprocess
    return model.eval()


@pytest.mark.parametrize("name", METHODS)
def test_docstring_of_its_file_is_its_card(name: str) -> None:
    module = importlib.import_module(METHODS[name].target.partition(":")[0])
    card = inspect.getdoc(module) or ""
    assert [word for word in CARD if word not in card] == []
    assert METHODS[name].paper.rpartition(":")[2] in card


@pytest.fixture(scope="module", params=SECOND_STAGE)
def fitted(request: pytest.FixtureRequest, digits: Dataset, network: nn.Module) -> Any:
    assert digits.train is not None
    return SECOND_STAGE[request.param].make(network).fit(digits.train.images, digits.train.labels)


@pytest.fixture(scope="module")
def new_images(digits: Dataset) -> torch.Tensor:
    assert digits.test is not None
    return digits.test.images[:20]


def test_estimator_surface(fitted: Any, new_images: torch.Tensor) -> None:
    assert is_classifier(fitted)
    probabilities = fitted.predict_proba(new_images)
    assert probabilities.shape == (20, 10)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(fitted.predict(new_images), fitted.classes_[probabilities.argmax(axis=1)])
    assert fitted.inference_passes >= 1
    assert fitted.num_parameters > 0


def test_network_is_never_changed(network: nn.Module, digits: Dataset) -> None:
    assert digits.train is not None
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for case in SECOND_STAGE.values():
        case.make(network).fit(digits.train.images[:30], digits.train.labels[:30])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_clone_is_unfitted_and_fits_to_the_same_bits(fitted: Any, digits: Dataset, new_images: torch.Tensor) -> None:
    assert digits.train is not None
    copy = clone(fitted, safe=False).set_params(model=fitted.model)
    with pytest.raises(NotFittedError):
        copy.predict(new_images)
    copy.fit(digits.train.images, digits.train.labels)
    np.testing.assert_array_equal(copy.predict_proba(new_images), fitted.predict_proba(new_images))


def test_another_seed_gives_another_classifier(
    fitted: Any, digits: Dataset, new_images: torch.Tensor, request: pytest.FixtureRequest
) -> None:
    assert digits.train is not None
    if not SECOND_STAGE[request.node.callspec.params["fitted"]].drawn:
        pytest.skip("nothing in it is drawn at random")
    other = clone(fitted, safe=False).set_params(model=fitted.model, random_state=1)
    other.fit(digits.train.images, digits.train.labels)
    assert not np.array_equal(other.predict_proba(new_images), fitted.predict_proba(new_images))


def test_saved_classifier_answers_alike(fitted: Any, new_images: torch.Tensor, tmp_path: Path) -> None:
    fitted.save(tmp_path / "saved")
    assert not [file for file in (tmp_path / "saved").rglob("*") if file.suffix in (".pkl", ".pt", ".pth")]
    loaded = postgrad.load(tmp_path / "saved")
    np.testing.assert_array_equal(loaded.predict_proba(new_images), fitted.predict_proba(new_images))


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(4, 8, 8, dtype=torch.uint8),
        torch.zeros(4, 3, 8, 8, dtype=torch.uint8),
        torch.full((4, 1, 8, 8), np.nan),
    ],
    ids=["three axes", "three channels", "NaN"],
)
def test_images_that_do_not_fit_are_a_plain_mistake(fitted: Any, images: torch.Tensor) -> None:
    with pytest.raises(UserError):
        fitted.predict(images)


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 1, 2, 10], [-1, 0, 1, 2]], ids=["too few", "too large", "negative"])
@pytest.mark.parametrize("name", SECOND_STAGE)
def test_labels_that_do_not_fit_are_a_plain_mistake(name: str, labels: list[int], network: nn.Module) -> None:
    images = torch.randint(0, 256, (4, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    with pytest.raises(UserError):
        SECOND_STAGE[name].make(network).fit(images, labels)
