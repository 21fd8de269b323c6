"""A network as a classifier: probabilities, batches, modes, and images that do not fit."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from postgrad import create_model, load
from postgrad.data.preprocessing import Preprocessing
from postgrad.errors import UserError
from postgrad.models.network import NetworkClassifier, evaluating

UNIT = Preprocessing()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (7, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def classifier() -> NetworkClassifier:
    torch.manual_seed(0)
    network = create_model("seed-cnn", num_classes=4)
    return NetworkClassifier(network, preprocess=network.preprocess, device="cpu", batch_size=3)


def test_its_answers_agree_with_one_another(classifier: NetworkClassifier, images: torch.Tensor) -> None:
    logits = classifier.logits(images)
    probabilities = classifier.predict_proba(images.numpy())
    with torch.no_grad():
        one_by_one = torch.cat([classifier.model(classifier.preprocess(image[None])) for image in images])
    torch.testing.assert_close(logits, one_by_one)
    assert (logits.dtype, probabilities.dtype, probabilities.shape) == (torch.float32, np.float32, (7, 4))
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)
    np.testing.assert_array_equal(classifier.predict(images), probabilities.argmax(1))
    labels = classifier.predict(images)
    labels[0] = (labels[0] + 1) % 4
    assert classifier.score(images, labels) == pytest.approx(6 / 7)
    assert (classifier.inference_passes, classifier.num_parameters) == (
        1,
        sum(p.numel() for p in classifier.model.parameters()),
    )
    np.testing.assert_array_equal(classifier.classes_, range(4))
    assert classifier.class_names == ("0", "1", "2", "3")


def test_floats_between_0_and_1_are_the_same_images(classifier: NetworkClassifier, images: torch.Tensor) -> None:
    torch.testing.assert_close(classifier.logits(images.float() / 255), classifier.logits(images))


def test_it_evaluates_and_leaves_every_module_in_its_mode(images: torch.Tensor) -> None:
    network = create_model("resnet20", num_classes=4).train()
    network.bn1.eval()
    modes = [module.training for module in network.modules()]
    before = network.bn1.running_mean.clone()
    classifier = NetworkClassifier(network, preprocess=UNIT, device="cpu")
    first = classifier.logits(images)
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(network.bn1.running_mean, before)
    assert not torch.allclose(network(UNIT(images)), first)  # in train mode the batch is normalised by itself


def test_modes_come_back_after_an_error() -> None:
    network = nn.Sequential(nn.Dropout())
    modes = []
    with contextlib.suppress(KeyError), evaluating(network):
        modes.append(network[0].training)
        raise KeyError
    assert modes == [False]
    assert network.training
    assert network[0].training


def test_saved_and_loaded(classifier: NetworkClassifier, images: torch.Tensor, tmp_path: Path) -> None:
    classifier.save(tmp_path)
    network = load(tmp_path)
    again = NetworkClassifier(network, preprocess=network.preprocess, device="cpu", batch_size=3)
    assert torch.equal(again.logits(images), classifier.logits(images))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 1, 32, 32), "it takes 3×24×24; got 1×32×32 .* 1×24×24 after preprocessing"),
        ((2, 3, 20, 20), "images of 20×20 pixels cannot be cropped to 24×24"),
        ((3, 32, 32), r"expected four axes \(N, C, H, W\), got shape \(3, 32, 32\)"),
        ((0, 3, 32, 32), "images: got none"),
    ],
)
def test_images_that_do_not_fit(classifier: NetworkClassifier, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        classifier.predict(torch.zeros(shape, dtype=torch.uint8))


def test_a_network_that_only_torch_knows_to_misfit(images: torch.Tensor) -> None:
    classifier = NetworkClassifier(nn.Conv2d(1, 4, 3), preprocess=UNIT, class_names="abcd", device="cpu")
    with pytest.raises(UserError, match=r"expected input.* to have 1 channels, but got 3 channels.*got 3×32×32"):
        classifier.predict(images)


def test_images_of_the_wrong_kind(classifier: NetworkClassifier) -> None:
    with pytest.raises(UserError, match=r"expected uint8 or floating point pixels, got torch\.int64"):
        classifier.predict(torch.zeros(1, 3, 32, 32, dtype=torch.int64))
    with pytest.raises(UserError, match="image 1 holds NaN"):
        classifier.predict(torch.tensor([0.0, float("nan")]).view(2, 1, 1, 1).expand(2, 3, 32, 32))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Conv2d(3, 4, 3), r"must return logits of shape \(7, 4\), it returned shape \(7, 4, 30, 30\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 5)), r"it returned shape \(7, 5\)"),
    ],
)
def test_outputs_that_are_no_logits(network: nn.Module, message: str, images: torch.Tensor) -> None:
    with pytest.raises(UserError, match=message):
        NetworkClassifier(network, preprocess=UNIT, class_names="abcd", device="cpu").logits(images)


def test_logits_that_are_not_numbers(images: torch.Tensor) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3072, 4))
    network[1].weight.data.fill_(3e38)
    with pytest.raises(UserError, match="returned NaN or infinite logits"):
        NetworkClassifier(network, preprocess=UNIT, class_names="abcd", device="cpu").logits(images)


def test_weights_that_are_not_numbers_are_named() -> None:
    network = create_model("mlp", num_classes=4)
    network.l2.weight.data[1, 1] = float("nan")
    with pytest.raises(UserError, match=r"NaN or infinity: l2\.weight"):
        NetworkClassifier(network, preprocess=UNIT)


def test_the_number_of_classes_must_be_known() -> None:
    with pytest.raises(UserError, match="give class_names="):
        NetworkClassifier(nn.Flatten(), preprocess=UNIT)


@pytest.mark.parametrize("labels", [[0] * 6, [0] * 6 + [4], [0.5] * 7])
def test_labels_that_do_not_fit(classifier: NetworkClassifier, images: torch.Tensor, labels: list[object]) -> None:
    with pytest.raises(UserError, match="labels: "):
        classifier.score(images, labels)
