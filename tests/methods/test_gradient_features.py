"""GradientFeatures against one autograd pass for each image and label."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import SGDClassifier
from sklearn.pipeline import make_pipeline
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad import GradientFeatures
from postgrad.data.preprocessing import Preprocessing
from postgrad.errors import UserError

IMAGES = torch.randint(0, 256, (9, 1, 6, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
CLASSES = 3
WEIGHTS = 4 * 9 + 64 * CLASSES


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, CLASSES)).double().eval()


def gradient(network: nn.Module, image: Tensor, label: int) -> list[np.ndarray]:
    """The gradients of the two weights for one image and one label, by autograd."""
    network.zero_grad()
    F.cross_entropy(network((image.double() / 255)[None].float().double()), torch.tensor([label])).backward()
    gradients = [weight.grad for name, weight in network.named_parameters() if name.endswith("weight")]
    return [g.flatten().numpy().copy() for g in gradients if g is not None]


def kept(block: np.ndarray, share: float) -> np.ndarray:
    return np.where(np.abs(block) > np.percentile(np.abs(block), 100 * (1 - share)), block, 0.0)


def predicted(network: nn.Module, image: Tensor) -> int:
    with torch.no_grad():
        return int(network((image[None].float() / 255).double()).argmax())


def test_rows_are_the_selected_gradients_under_the_predicted_label(network: nn.Module) -> None:
    features = GradientFeatures(network, normalise="none", select=0.15).fit_transform(IMAGES)
    assert isinstance(features, sparse.csr_matrix)
    assert features.shape == (9, WEIGHTS)
    for row, image in zip(features.toarray(), IMAGES, strict=True):
        blocks = gradient(network, image, predicted(network, image))
        np.testing.assert_allclose(row, np.concatenate([kept(block, 0.15) for block in blocks]), atol=1e-9)
    assert features.nnz <= 0.16 * features.shape[0] * features.shape[1]


def test_another_label_would_give_another_row(network: nn.Module) -> None:
    """Negative control of the test above."""
    row = GradientFeatures(network, normalise="none", select=None).fit(IMAGES).transform(IMAGES[:1]).toarray()[0]
    label = predicted(network, IMAGES[0])
    np.testing.assert_allclose(row, np.concatenate(gradient(network, IMAGES[0], label)), atol=1e-9)
    assert not np.allclose(row, np.concatenate(gradient(network, IMAGES[0], (label + 1) % CLASSES)), atol=1e-4)


def test_all_labels_stand_side_by_side(network: nn.Module) -> None:
    fitted = GradientFeatures(network, labels="all", normalise="power", exponent=0.5, select=0.3).fit(IMAGES)
    features = fitted.transform(IMAGES).toarray()
    assert features.shape == (9, CLASSES * WEIGHTS) == (9, fitted.n_features_out_)
    for row, image in zip(features, IMAGES, strict=True):
        expected = []
        for label in range(CLASSES):
            for block in gradient(network, image, label):
                chosen = kept(block, 0.3)
                expected.append(np.sign(chosen) * np.sqrt(np.abs(chosen)))
        np.testing.assert_allclose(row, np.concatenate(expected), atol=1e-7)


def test_scaling_uses_the_extremes_over_the_images_of_fit(network: nn.Module) -> None:
    fitted = GradientFeatures(network, normalise="scale", select=0.4, random_state=3).fit(IMAGES)
    drawn = torch.randint(CLASSES, (9,), generator=torch.Generator().manual_seed(3))
    selected = np.stack(
        [
            np.concatenate([kept(block, 0.4) for block in gradient(network, image, int(label))])
            for image, label in zip(IMAGES, drawn, strict=True)
        ]
    )
    low, width = selected.min(axis=0), np.ptp(selected, axis=0)
    width[width == 0] = 1
    image = IMAGES[4]
    raw = np.concatenate([kept(block, 0.4) for block in gradient(network, image, predicted(network, image))])
    expected = np.where(raw != 0, (raw - low) / width, 0)
    np.testing.assert_allclose(fitted.transform(IMAGES[4:5]).toarray()[0], expected, rtol=1e-7, atol=1e-9)


def test_layers_and_preprocessing_are_those_asked_for(network: nn.Module) -> None:
    plain = GradientFeatures(network, normalise="none", layers=["3"]).fit(IMAGES)
    assert plain.n_features_out_ == 64 * CLASSES
    darker = GradientFeatures(
        network, normalise="none", layers=["3"], preprocess=Preprocessing(mean=(0.5,), std=(1.0,))
    ).fit(IMAGES)
    assert not np.allclose(plain.transform(IMAGES).toarray(), darker.transform(IMAGES).toarray())


def test_many_chunks_give_what_one_gives(network: nn.Module) -> None:
    one = GradientFeatures(network).fit(IMAGES)
    many = GradientFeatures(network).fit(IMAGES)
    many.space_.images_per_chunk = lambda labels: 2
    np.testing.assert_allclose(many.transform(IMAGES).toarray(), one.transform(IMAGES).toarray(), atol=1e-7)


def test_network_is_left_alone(network: nn.Module) -> None:
    network.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    GradientFeatures(network).fit(IMAGES).transform(IMAGES)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(p.requires_grad for p in network.parameters())


def test_feeds_any_classifier_of_scikit_learn() -> None:
    """Images whose class is their bright half are told apart by their gradients under the network's own prediction."""
    torch.manual_seed(0)
    labels = torch.arange(60) % 2
    images = torch.randint(0, 60, (60, 1, 6, 6))
    images[labels == 1, :, :3] += 120
    images[labels == 0, :, 3:] += 120
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 2))
    pipeline = make_pipeline(GradientFeatures(network), SGDClassifier(random_state=0))
    pipeline.fit(images[:40].to(torch.uint8), labels[:40].numpy())
    assert pipeline.score(images[40:].to(torch.uint8), labels[40:].numpy()) == 1.0
    unlearnable = clone(pipeline).fit(images[:40].to(torch.uint8), np.random.default_rng(0).integers(0, 2, 40))
    assert unlearnable.score(images[40:].to(torch.uint8), labels[40:].numpy()) < 0.9


def test_clone_has_the_settings_and_is_not_fitted(network: nn.Module) -> None:
    fitted = GradientFeatures(network, select=0.4, exponent=0.25, random_state=7).fit(IMAGES)
    copy = clone(fitted)
    ours, theirs = copy.get_params(), fitted.get_params()
    assert {**ours, "model": None} == {**theirs, "model": None}
    with pytest.raises(NotFittedError):
        copy.transform(IMAGES)
    copy.fit(IMAGES)
    np.testing.assert_array_equal(copy.transform(IMAGES).toarray(), fitted.transform(IMAGES).toarray())


def test_no_images_give_no_rows(network: nn.Module) -> None:
    assert GradientFeatures(network).fit(IMAGES).transform(IMAGES[:0]).shape == (0, WEIGHTS)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES[0], "four axes"),
        (torch.zeros(2, 1, 7, 7, dtype=torch.uint8), r"expected \(N, 1, 6, 6\) as in fit, got \(2, 1, 7, 7\)"),
        (torch.zeros(2, 3, 6, 6, dtype=torch.uint8), r"expected \(N, 1, 6, 6\)"),
        (torch.full((2, 1, 6, 6), torch.nan), "NaN"),
        (torch.zeros(2, 1, 6, 6, dtype=torch.int64), "int64"),
    ],
)
def test_images_that_do_not_fit_are_refused(network: nn.Module, images: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        GradientFeatures(network).fit(IMAGES).transform(images)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": "true"}, "Known: all, predicted"),
        ({"select": 1.5}, "select"),
        ({"normalise": "scales"}, "did you mean 'scale'"),
        ({"layers": ["4"]}, "unknown layer '4'"),
        ({"memory": "lots"}, "such as 8GB"),
        ({"device": "tpu"}, "unknown device"),
    ],
)
def test_settings_that_cannot_be_are_refused(network: nn.Module, settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GradientFeatures(network, **settings).fit(IMAGES)  # type: ignore[arg-type]
