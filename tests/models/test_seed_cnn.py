"""The seed's network, against its published geometry and a forward pass written with scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d

from postgrad.data.preprocessing import Augmentation, Preprocessing
from postgrad.errors import UserError
from postgrad.models.seed_cnn import SeedCNN


def test_cifar_has_the_published_number_of_weights() -> None:
    network = SeedCNN(in_channels=3, num_classes=10, image_size=32)
    weights = {name: p.numel() for name, p in network.named_parameters() if name.endswith("weight")}
    assert weights == {"c0.weight": 4_800, "c1.weight": 102_400, "l1.weight": 23_040}


def test_mnist_has_the_published_number_of_weights() -> None:
    network = SeedCNN(in_channels=1, num_classes=10, image_size=28)
    assert network.c0.weight.numel() == 1_600
    assert network.c1.weight.numel() == 102_400


@pytest.mark.parametrize(("channels", "side"), [(3, 24), (1, 8), (2, 9), (1, 3)])
def test_forward_equals_scipy(channels: int, side: int) -> None:
    network = SeedCNN(channels, 4, side).double()
    x = torch.randn(2, channels, side, side, dtype=torch.float64)
    expected = np.stack([_by_hand(network, image.numpy()) for image in x])
    np.testing.assert_allclose(network(x).detach().numpy(), expected, atol=1e-10)


def test_another_padding_would_be_noticed() -> None:
    network = SeedCNN(1, 4, 9).double()
    x = torch.randn(1, 1, 9, 9, dtype=torch.float64)
    assert not np.allclose(network(x).detach().numpy()[0], _by_hand(network, x[0].numpy(), paddings=(0, 2)))


@pytest.mark.parametrize(("size", "crop"), [(32, 24), (24, 24), (23, None), ((40, 23), None), ((40, 30), 24)])
def test_crops_images_of_24_pixels_or_more(size: int | tuple[int, int], crop: int | None) -> None:
    assert SeedCNN(3, 10, size).preprocess == Preprocessing(crop=crop, per_image_standardise=True)


def test_flips_and_contrast_are_for_colour_images_only() -> None:
    assert SeedCNN(3, 10, 32).augmentation == Augmentation(crop=True, flip=True, contrast=(0.2, 1.8))
    assert SeedCNN(1, 10, 28).augmentation == Augmentation(crop=True)
    assert SeedCNN(1, 10, 8).augmentation == Augmentation()


def test_weights_are_lecun_normal_and_biases_zero() -> None:
    torch.manual_seed(0)
    network = SeedCNN(3, 10, 32)
    for layer, fan_in in ((network.c0, 75), (network.c1, 1600), (network.l1, 2304)):
        weights = layer.weight.detach()
        assert float(weights.std()) == pytest.approx(1 / math.sqrt(fan_in), rel=4 / math.sqrt(weights.numel()))
        assert not layer.bias.any()


def test_images_too_small_for_the_convolution_are_refused() -> None:
    with pytest.raises(UserError, match="3 pixels or more on each side, got 2×8"):
        SeedCNN(1, 10, (2, 8))


def _by_hand(network: SeedCNN, image: np.ndarray, paddings: tuple[int, int] = (1, 2)) -> np.ndarray:
    """The forward pass of one image."""
    for layer, padding in zip((network.c0, network.c1), paddings, strict=True):
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
        maps = [sum(correlate2d(p, w, "valid") for p, w in zip(padded, filter_, strict=True)) for filter_ in weight]
        image = np.maximum(np.stack(maps) + bias[:, None, None], 0)
        height, width = image.shape[1:]
        image = np.pad(image, ((0, 0), (0, height % 2), (0, width % 2)), constant_values=-np.inf)
        image = image.reshape(64, (height + 1) // 2, 2, (width + 1) // 2, 2).max((2, 4))
    return network.l1.weight.detach().numpy() @ image.ravel() + network.l1.bias.detach().numpy()
