"""Scikit-learn estimators as classifiers of images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from postgrad.errors import UserError
from postgrad.evaluation.estimators import EstimatorClassifier, takes_rows

IMAGES = torch.randint(0, 256, (60, 3, 2, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = np.arange(60) % 3
ROWS = IMAGES.numpy().reshape(60, 24) / 255


def test_images_become_rows_of_pixels_from_0_to_1() -> None:
    estimator = make_pipeline(StandardScaler(), LogisticRegression()).fit(ROWS, LABELS)
    classifier = EstimatorClassifier(estimator, class_names="abc")
    assert classifier.class_names == ("a", "b", "c")
    expected = estimator.predict_proba(ROWS)
    np.testing.assert_allclose(classifier.predict_proba(IMAGES), expected, atol=1e-5)
    np.testing.assert_allclose(classifier.predict_proba(IMAGES.float() / 255), expected, atol=1e-5)
    assert takes_rows(estimator)
    assert not takes_rows(classifier)


def test_bad_input_is_named() -> None:
    fitted = LogisticRegression().fit(ROWS, LABELS)
    with pytest.raises(UserError, match="takes 24 numbers an image, these images have 12"):
        EstimatorClassifier(fitted).predict_proba(IMAGES[:, :, :1])
    with pytest.raises(UserError, match="no predict_proba"):
        EstimatorClassifier(RidgeClassifier().fit(ROWS, LABELS))
    with pytest.raises(UserError, match="0 … C−1"):
        EstimatorClassifier(LogisticRegression().fit(ROWS, LABELS + 1))
