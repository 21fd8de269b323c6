from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import default_rng
from sklearn.linear_model import LogisticRegression

from postgrad.errors import UserError
from postgrad.evaluation.attack import measure_attack
from postgrad.methods.mapper import MapperClassifier
from postgrad.methods.mapper_surrogate import SoftMapper, soft_mapper

QUICK: Any = {"n_components": 2, "n_intervals": 4, "n_neighbors": 5, "hidden": (8,), "epochs": 10, "batch_size": 10}


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.from_numpy(default_rng(0).random((60, 1, 3, 3)).astype(np.float32))


@pytest.fixture(scope="module")
def mapper(images: torch.Tensor) -> MapperClassifier:
    return MapperClassifier(**QUICK).fit(images, (images.flatten(1)[:, 0] > 0.5).long())


def _new(n: int) -> torch.Tensor:
    return torch.from_numpy(default_rng(1).random((n, 1, 3, 3)).astype(np.float32))


def test_with_the_classifiers_weights_it_is_the_classifier(mapper: MapperClassifier) -> None:
    found = soft_mapper(mapper).predict_proba(_new(20))
    np.testing.assert_allclose(found, mapper.predict_proba(_new(20)), atol=1e-5)
    softer = soft_mapper(mapper, neighbours=30, temperature=0.3).predict_proba(_new(20))
    assert np.abs(softer - found).max() > 1e-4


def test_new_images_where_an_interval_is_empty() -> None:
    values = torch.tensor([0.0, 0.1, 0.2, 0.9]).view(4, 1, 1, 1)
    mapper = MapperClassifier(**{**QUICK, "n_components": 1}).fit(values, [0, 0, 1, 1])
    new = torch.tensor([0.5, 0.6]).view(2, 1, 1, 1)
    np.testing.assert_allclose(soft_mapper(mapper).predict_proba(new), mapper.predict_proba(new), atol=1e-5)


def test_its_gradient_is_that_of_finite_differences(mapper: MapperClassifier) -> None:
    network = SoftMapper(mapper).double()
    x = _new(3).double().requires_grad_()
    (slope,) = torch.autograd.grad(network(x)[:, 0].sum(), x)
    assert slope.abs().max() > 1e-3
    moved = torch.zeros_like(x)
    moved[:, 0, 1, 1] = 1e-6
    with torch.no_grad():
        step = (network(x + moved) - network(x - moved))[:, 0] / 2e-6
    torch.testing.assert_close(slope[:, 0, 1, 1], step, rtol=1e-3, atol=1e-5)


def test_what_it_cannot_stand_in_for(mapper: MapperClassifier, images: torch.Tensor) -> None:
    rows, labels = images.flatten(1).numpy(), mapper.targets_
    on_rows, hard = MapperClassifier(**QUICK).fit(rows, labels), MapperClassifier(**QUICK, rows="hard")
    for other in (on_rows, hard.fit(images, labels)):
        with pytest.raises(UserError, match="soft_mapper takes"):
            soft_mapper(other)
    with pytest.raises(UserError, match="head='mlp'"):
        soft_mapper(MapperClassifier(n_components=2, head=LogisticRegression()).fit(images, labels))


class _Threshold:
    """Calls an image 1 where its mean is above a threshold."""

    classes_ = np.arange(2)

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def predict_proba(self, images: Any) -> Any:
        above = torch.sigmoid(50 * (torch.as_tensor(images).float().flatten(1).mean(dim=1) - self.threshold)).numpy()
        return np.stack([1 - above, above], axis=1)


def test_an_attack_on_another_classifier_is_tried_on_this_one() -> None:
    pytest.importorskip("art")
    images = torch.full((6, 1, 4, 4), 140, dtype=torch.uint8)
    labels = torch.ones(6, dtype=torch.int64)
    common: Any = {"attack": "square", "epsilon": 0.2, "n": 6}
    target = _Threshold(0.5)
    own = measure_attack(target, images, labels, **common)["metrics"]["robust_accuracy"]["mean"]
    alike = measure_attack(target, images, labels, **common, source=_Threshold(0.5))
    unmoved = measure_attack(target, images, labels, **common, source=_Threshold(0.0))
    assert own == alike["metrics"]["robust_accuracy"]["mean"] == 0
    assert unmoved["metrics"]["robust_accuracy"]["mean"] == 1
