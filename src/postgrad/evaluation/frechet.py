"""How far two sets of images are apart: the Fréchet distance between Gaussians fitted to their features."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from postgrad.errors import UserError


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
    """The squared Fréchet distance between two sets of features (N, d) and (M, d), each seen as a Gaussian.

    >>> frechet_distance(features_of_samples, features_of_test_images)
    41.7…

    |μ_a − μ_b|² + tr(A + B − 2 (A^½ B A^½)^½), with the means and covariances of the two, in float64. It is 0 for
    equal ones. Few images make it larger, so compare sets of one size. With the features of Inception it is the FID;
    with those of another network its figures are that network's own, and compare with nothing else. Raises `UserError`
    for fewer than two rows, different d, and features that are not finite.

    Source: D. Dowson, B. Landau, 1982; as a score of drawn images M. Heusel et al., arXiv 1706.08500, equation 6.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1] or min(len(first), len(second)) < 2:
        raise UserError(
            "Fréchet distance: expected features (N, d) and (M, d) with N and M at least 2, got shapes "
            f"{first.shape} and {second.shape}"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise UserError("Fréchet distance: some features are not finite; look at the images that they come from")
    covariance_a, covariance_b = _covariance(first), _covariance(second)
    root = _root(covariance_a)
    cross = np.sqrt(np.linalg.eigvalsh(root @ covariance_b @ root).clip(min=0)).sum()
    apart = np.square(first.mean(axis=0) - second.mean(axis=0)).sum()
    return float(max(apart + covariance_a.trace() + covariance_b.trace() - 2 * cross, 0.0))


def _covariance(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.cov(rows, rowvar=False).reshape(rows.shape[1], rows.shape[1])


def _root(matrix: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The symmetric square root of a covariance; what rounding made negative counts as 0."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.sqrt(values.clip(min=0))) @ vectors.T)
