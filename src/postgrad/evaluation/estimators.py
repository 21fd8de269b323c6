"""A scikit-learn estimator as a classifier of images: each image becomes a row of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from postgrad.data.inputs import image_tensor
from postgrad.data.pixels import to_unit
from postgrad.errors import UserError


class EstimatorClassifier:
    """A fitted scikit-learn estimator, or a pipeline, over images (N, C, H, W).

    >>> rows = (images.flatten(1) / 255).numpy()
    >>> classifier = EstimatorClassifier(LogisticRegression().fit(rows, labels))
    >>> classifier.predict_proba(images).shape
    (N, 10)

    The estimator gets rows (N, C·H·W) of float32 pixels in [0, 1], channel by channel, so fit it on such rows. Its
    classes must be the numbers 0 … C−1; `class_names` names them.
    """

    inference_passes = 1

    def __init__(self, estimator: Any, *, class_names: Sequence[str] | None = None) -> None:
        if not hasattr(estimator, "predict_proba"):
            raise UserError(f"{type(estimator).__name__} has no predict_proba; CalibratedClassifierCV adds one")
        self.estimator = estimator
        self.classes_ = np.arange(len(estimator.classes_))
        if not np.array_equal(estimator.classes_, self.classes_):
            raise UserError(f"the estimator must have the classes 0 … C−1, it has {list(estimator.classes_)[:5]} …")
        self.class_names = tuple(class_names) if class_names else tuple(map(str, self.classes_))

    @property
    def num_parameters(self) -> int | None:
        """How many numbers an estimator holds is not known in general."""
        return None

    def predict_proba(self, images: Any) -> np.ndarray:
        """Probabilities (N, C) of images (N, C, H, W)."""
        rows = to_unit(image_tensor(images)).flatten(1).numpy()
        wanted = self.estimator.n_features_in_
        if rows.shape[1] != wanted:
            raise UserError(f"the estimator takes {wanted} numbers an image, these images have {rows.shape[1]}")
        return np.asarray(self.estimator.predict_proba(rows))


def takes_rows(classifier: Any) -> bool:
    """Whether this was fitted on rows of numbers, as scikit-learn notes it, and not on images."""
    return hasattr(classifier, "n_features_in_") and not hasattr(classifier, "num_parameters")
