"""What a user hands to the Mapper estimators, as rows of numbers and class indices."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_consistent_length, column_or_1d, validate_data
from torch import Tensor

from postgrad.data.inputs import image_tensor, label_tensor
from postgrad.data.pixels import to_unit
from postgrad.errors import UserError
from postgrad.methods._mapper_latent import Data


def read_points(estimator: Any, x: Any, *, fitting: bool) -> Data:
    """Rows (n, d), or images (n, C, H, W) as rows of pixels in [0, 1]; what does not fit is a `UserError`.

    In fitting the estimator is told of the shape, which later points must have.
    """
    if isinstance(x, np.ndarray | Tensor) and x.ndim > 2:
        images = image_tensor(x, allow_empty=not fitting).detach().cpu()
        shape = tuple(images.shape[1:])
        if fitting:
            estimator.image_shape_, estimator.n_features_in_ = shape, int(np.prod(shape))
        elif shape != estimator.image_shape_:
            raise UserError(f"images: expected {_expected(estimator)} as in fit, got {tuple(images.shape)}")
        return Data(to_unit(images).flatten(1).numpy(), images)
    if not fitting and estimator.image_shape_ is not None:
        raise UserError(f"images: expected {_expected(estimator)} as in fit, got rows of numbers")
    try:
        rows = validate_data(
            estimator, x.numpy() if isinstance(x, Tensor) else x, dtype=[np.float32, np.float64], reset=fitting
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    if fitting:
        estimator.image_shape_ = None
    return Data(np.ascontiguousarray(rows))


def read_labels(y: Any, count: int, classes: int | None) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The classes, and the place of each label among them; with `classes` given, labels are indices 0 … classes − 1."""
    if classes is not None:
        return np.arange(classes), label_tensor(y, count, classes).numpy()
    if y is None:
        raise UserError("MapperClassifier requires y to be passed, but the target y is None; give the classes")
    try:
        values = column_or_1d(y.numpy() if isinstance(y, Tensor) else y, warn=True)
        check_array(values, ensure_2d=False, dtype=None, ensure_min_samples=0, input_name="y")
        check_classification_targets(values)
        check_consistent_length(np.empty(count), values)
    except ValueError as error:
        raise UserError(f"labels: {error}") from error
    found, targets = np.unique(values, return_inverse=True)
    return found, targets.astype(np.int64)


def places_among(y: Any, classes: NDArray[Any]) -> NDArray[np.int64]:
    """The places of labels among known classes; one that is not known is a `UserError`."""
    values = np.asarray(y)
    places = np.minimum(np.searchsorted(classes, values), len(classes) - 1)
    if not np.array_equal(classes[places], values):
        raise UserError("labels: some are of classes that the training labels have not")
    return places.astype(np.int64)


def outputs_of(model: torch.nn.Module, preprocess: Any, images: Tensor | None) -> int:
    """How many classes a network has."""
    if images is None:
        raise UserError("model= needs images (N, C, H, W), got rows of numbers; leave the network out, or give images")
    parameter = next(model.parameters())
    with torch.no_grad():
        return int(model(preprocess(images[:1].to(parameter.device)).to(parameter.dtype)).shape[1])


def _expected(estimator: Any) -> str:
    if estimator.image_shape_ is None:
        return f"rows (N, {estimator.n_features_in_})"
    return f"(N, {', '.join(map(str, estimator.image_shape_))})"
