"""Arrays that users hand to estimators."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from postgrad.data.inputs import image_tensor, label_tensor
from postgrad.errors import UserError


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_images_keep_their_dtype_and_values(dtype: type) -> None:
    array = np.arange(2 * 1 * 3 * 4).reshape(2, 1, 3, 4).astype(dtype)
    for x in (array, torch.from_numpy(array), array[::-1][::-1], np.asfortranarray(array)):
        np.testing.assert_array_equal(image_tensor(x).numpy(), array)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((8, 8)), "four axes"),
        (np.zeros((2, 1, 8, 8), dtype=np.int64), "uint8 or floating point"),
        (np.full((2, 1, 8, 8), np.nan), "image 0 holds NaN"),
        (np.zeros((0, 1, 8, 8)), "got none"),
    ],
)
def test_other_images_are_refused(x: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        image_tensor(x)


def test_labels_become_int64() -> None:
    for y in ([0, 2, 1], np.array([0, 2, 1], np.uint8), torch.tensor([0, 2, 1]), np.array([0.0, 2.0, 1.0])):
        labels = label_tensor(y, 3)
        assert labels.dtype == torch.int64
        assert labels.tolist() == [0, 2, 1]


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([0, 1], "expected 3 class indices"),
        (np.eye(3), "got shape"),
        ([0, 1, -1], "negative"),
        ([0, 1, 3], "out of range; there are 3 classes"),
        ([0.5, 1, 2], "whole numbers"),
    ],
)
def test_other_labels_are_refused(y: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        label_tensor(y, 3, 3)
