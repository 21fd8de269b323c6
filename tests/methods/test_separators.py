"""Separators: their form, what only a quadratic one can learn, the projection, and scikit-learn's own beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import Tensor, nn

from postgrad import GradientFeatures
from postgrad.errors import UserError
from postgrad.methods.separators import (
    SEPARATORS,
    GradientProjection,
    Separator,
    SeparatorHead,
    mean_scores,
    score_separator,
)

CLASSES = 3
IMAGES = torch.randint(0, 256, (40, 1, 6, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def vectors(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def ball(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points in 8 dimensions, of class 1 where they lie far out along two hidden directions: no line divides them."""
    z = vectors(count, 8, seed=seed)
    return z, (np.square(z @ vectors(8, 2, seed=99)).sum(1) > 8).astype(int)


@pytest.fixture
def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, CLASSES)).eval()


@given(
    inputs=st.integers(1, 6),
    classes=st.integers(2, 4),
    rank=st.integers(0, 3),
    count=st.integers(0, 5),
    seed=st.integers(0, 9),
)
def test_head_is_its_explicit_form(inputs: int, classes: int, rank: int, count: int, seed: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = SeparatorHead(inputs, classes, rank).double()
        for parameter in head.parameters():
            nn.init.normal_(parameter)
    z = torch.from_numpy(vectors(count, inputs, seed=seed)).double()
    Q, w, b = head.quadratic_form()
    expected = torch.einsum("nd,cde,ne->nc", z, Q, z) + z @ w.T + b
    assert torch.allclose(head(z), expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(Q, torch.zeros_like(Q)) == (rank == 0)
    assert all(int(torch.linalg.matrix_rank(q)) <= rank for q in Q)


def test_gradients_of_the_head() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = SeparatorHead(4, CLASSES, 2).double()
    names = list(dict(head.named_parameters()))

    def logits(z: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(head, dict(zip(names, parameters, strict=True)), (z,))

    inputs = torch.from_numpy(vectors(3, 4)).double().requires_grad_()
    assert torch.autograd.gradcheck(logits, (inputs, *head.parameters()))


def test_recovers_a_planted_quadratic_boundary_where_a_linear_one_cannot() -> None:
    z, y = ball(3000)
    new, truth = ball(2000, seed=1)
    quadratic = Separator("quadratic", rank=3, epochs=15, lr=0.03).fit(z, y)
    linear = Separator("linear", epochs=15, lr=0.03).fit(z, y)
    majority = max(truth.mean(), 1 - truth.mean())
    assert quadratic.score(new, truth) > 0.96
    assert linear.score(new, truth) < majority + 0.03
    Q = quadratic.head_.quadratic_form()[0].detach().numpy()
    values, directions = np.linalg.eigh(Q[1] - Q[0])
    planted = np.linalg.qr(vectors(8, 2, seed=99))[0]
    found = directions[:, np.argsort(-np.abs(values))[:2]]
    assert np.linalg.svd(planted.T @ found)[1].min() > 0.98


def test_linear_form_finds_the_linear_discriminant() -> None:
    y = np.arange(1500) % CLASSES
    z = vectors(1500, 5) + 1.5 * vectors(CLASSES, 5, seed=3)[y]
    ours = Separator("linear", epochs=20, lr=0.02).fit(z, y)
    oracle = LinearDiscriminantAnalysis().fit(z, y)
    assert (ours.predict(z) == oracle.predict(z)).mean() > 0.98


def test_several_vectors_of_a_sample_are_averaged_as_logits() -> None:
    y = np.arange(60) % CLASSES
    z = vectors(60, 4, 5) + vectors(CLASSES, 1, 5, seed=3)[y]
    separator = Separator(rank=2, epochs=3).fit(z, y)
    alone = np.stack([separator.logits(z[:, [label]]) for label in range(4)])
    np.testing.assert_allclose(separator.logits(z), alone.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(separator.predict(z), alone.mean(0).argmax(1))
    np.testing.assert_allclose(separator.predict_proba(z).sum(1), 1)
    assert not np.allclose(separator.logits(z), alone[0], atol=1e-3)


def test_every_assumed_label_is_trained_on() -> None:
    """Only one of four vectors, another one for each sample, knows the class; who read the first alone would guess."""
    generator = np.random.default_rng(0)
    y = generator.integers(2, size=800)
    z = 0.1 * vectors(800, 4, 3)
    z[np.arange(800), generator.integers(4, size=800), 0] += 4.0 * (2 * y - 1)
    assert Separator("linear", epochs=10, lr=0.02).fit(z, y).score(z, y) > 0.95
    assert Separator("linear", epochs=10, lr=0.02).fit(z[:, 0], y).score(z[:, 0], y) < 0.8


def test_a_seed_gives_the_same_separator_again() -> None:
    z, y = ball(200)
    one, two = (Separator(epochs=2, random_state=3).fit(z, y).logits(z) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, Separator(epochs=2, random_state=4).fit(z, y).logits(z))


@parametrize_with_checks([Separator("quadratic", rank=2, epochs=20, batch_size=10, lr=0.05)])
def test_is_an_estimator_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


def test_projected_gradients_are_products_with_one_matrix(network: nn.Module) -> None:
    features = GradientFeatures(network, labels="all", select=0.3)
    projection = GradientProjection(features, size=20, random_state=5).fit(IMAGES)
    whole = features.fit(IMAGES).transform(IMAGES[:7]).toarray().reshape(7, CLASSES, -1)
    matrix = projection.projection_.components_.toarray()
    assert matrix.shape == (20, 4 * 9 + 64 * CLASSES)
    np.testing.assert_allclose(projection.transform(IMAGES[:7]), whole @ matrix.T, rtol=1e-4, atol=1e-5)
    assert projection.transform(IMAGES[:0]).shape == (0, CLASSES, 20)


def test_projection_keeps_angles_and_lengths(network: nn.Module) -> None:
    """Inner products are right on average over projections, and nearer to it where more numbers are kept."""
    features = GradientFeatures(network, labels="all").fit(IMAGES)
    whole = features.transform(IMAGES[:4]).toarray().reshape(4 * CLASSES, -1)
    exact = whole @ whole.T
    errors = []
    for size in (20, 2000):
        projection = GradientProjection(features, size=size).fit(IMAGES)
        z = projection.transform(IMAGES[:4]).reshape(4 * CLASSES, -1)
        errors.append(np.abs(z @ z.T - exact).mean() / np.abs(exact).mean())
    assert errors[1] < 0.1 < 3 * errors[1] < errors[0]


def test_one_gradient_under_the_predicted_label(network: nn.Module) -> None:
    projection = clone(GradientProjection(GradientFeatures(network), size=10)).fit(IMAGES)
    assert projection.transform(IMAGES).shape == (40, 1, 10)


def test_every_separator_learns_what_gradients_know(network: nn.Module) -> None:
    """Two classes by their bright half: an untrained network's gradients tell them apart; labels by chance do not."""
    labels = np.arange(90) % 2
    images = torch.randint(0, 60, (90, 1, 6, 6), generator=torch.Generator().manual_seed(1))
    images[labels == 1, :, :3] += 120
    images[labels == 0, :, 3:] += 120
    projection = GradientProjection(GradientFeatures(network, labels="all"), size=30).fit(images.to(torch.uint8))
    z = projection.transform(images.to(torch.uint8))
    chance = np.random.default_rng(0).integers(2, size=90)
    for name in SEPARATORS:
        good = score_separator(name, z[:60], labels[:60], {"test": (z[60:], labels[60:])})
        assert set(good["accuracy"]) == {"train", "test"}
        assert good["accuracy"]["test"] > 0.95, name
        assert good["cpu_seconds"] > 0
        assert score_separator(name, z[:60], chance[:60], {"test": (z[60:], chance[60:])})["accuracy"]["test"] < 0.8


def test_scores_of_others_are_averaged_over_labels() -> None:
    y = np.arange(60) % CLASSES
    z = vectors(60, 4, 5) + vectors(CLASSES, 1, 5, seed=3)[y]
    classifier = LinearDiscriminantAnalysis().fit(z.reshape(-1, 5), np.repeat(y, 4))
    by_hand = np.stack([classifier.decision_function(z[:, label]) for label in range(4)]).mean(0)
    np.testing.assert_allclose(mean_scores(classifier, z), by_hand, rtol=1e-5)
    two = LinearDiscriminantAnalysis().fit(z.reshape(-1, 5), np.repeat(y > 0, 4))
    assert (mean_scores(two, z).argmax(1) == (two.decision_function(z.reshape(-1, 5)).reshape(60, 4).mean(1) > 0)).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Separator("cubic").fit(*ball(20)), "unknown form 'cubic'"),
        (lambda: Separator(rank=0).fit(*ball(20)), "rank: expected 1 or more, got 0"),
        (lambda: Separator(lr=-1).fit(*ball(20)), "lr"),
        (lambda: Separator().fit(vectors(4, 3), np.zeros(4)), "one class only"),
        (lambda: Separator().fit(vectors(4, 3, 2, 2), np.arange(4)), r"expected vectors \(N, D\) or \(N, L, D\)"),
        (
            lambda: Separator(epochs=1).fit(vectors(4, 3, 2), np.arange(4)).predict(vectors(4, 3, 5)),
            "expected 2 numbers",
        ),
        (lambda: GradientProjection(GradientFeatures(nn.Identity()), size=0).fit(IMAGES), "size: expected 1 or more"),
        (lambda: score_separator("forest", vectors(4, 1, 2), np.arange(4), {}), "unknown separator 'forest'"),
    ],
)
def test_settings_that_cannot_be_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_an_unfitted_one_says_so(network: nn.Module) -> None:
    with pytest.raises(NotFittedError):
        Separator().predict(vectors(2, 3))
    with pytest.raises(NotFittedError):
        GradientProjection(GradientFeatures(network)).transform(IMAGES)
