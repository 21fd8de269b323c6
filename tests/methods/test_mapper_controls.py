from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.random import default_rng
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

from postgrad.methods.mapper_controls import CoordinatesMLP, NearestNeighbours


def _blobs(n: int = 90) -> tuple[Any, Any]:
    generator = default_rng(0)
    labels = generator.integers(0, 3, n)
    return generator.normal(size=(n, 4)) + 2 * np.eye(4)[labels], labels


def test_nearest_neighbours_are_scikit_learns() -> None:
    rows, labels = _blobs()
    theirs = KNeighborsClassifier(7, weights=lambda d: 1 / (d + 1e-5)).fit(rows[:60], labels[:60])
    ours = NearestNeighbours(n_neighbors=7).fit(rows[:60], labels[:60])
    np.testing.assert_allclose(ours.predict_proba(rows[60:]), theirs.predict_proba(rows[60:]), atol=1e-6)


def test_the_mlp_reads_standardised_coordinates() -> None:
    rows, labels = _blobs()
    mlp = CoordinatesMLP(n_components=2, hidden=(8,), epochs=40, batch_size=20).fit(rows, labels)
    coordinates = PCA(2).fit_transform(rows)
    wanted = np.abs(coordinates / coordinates.std(axis=0))
    np.testing.assert_allclose(np.abs(mlp._rows(mlp.latent_(_data(rows))).toarray()), wanted, atol=1e-5)
    assert mlp.score(rows, labels) > 0.8


def _data(rows: Any) -> Any:
    from postgrad.methods._mapper_latent import Data

    return Data(rows)


def test_classes_that_no_training_image_has() -> None:
    """A network says how many classes there are, even where few of them are seen."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 5))
    images = torch.from_numpy(default_rng(0).random((12, 1, 2, 2)).astype(np.float32))
    labels = torch.arange(12) % 2
    for estimator in (NearestNeighbours(network), CoordinatesMLP(network, n_components=2, hidden=(4,), epochs=1)):
        assert estimator.fit(images, labels).predict_proba(images).shape == (12, 5)
