"""control-features: where the last layer is, what goes into it, and an MLP on that of the method's size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import postgrad
from postgrad.controls import FeaturesMLP, control_features
from postgrad.controls.features import hidden_size, last_layer, make_mlp, penultimate
from postgrad.data.datasets import Dataset
from postgrad.errors import UserError
from postgrad.models.registry import create_model


class Crossed(nn.Module):
    """The layer that makes the logits is defined first, and one that does nothing for them last."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Linear(6, 4)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.Tanh())
        self.unused = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.body(x))


class Layerless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(48, 4))
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x.flatten(1) @ self.weight)


IMAGES = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def test_last_layer_is_the_last_one_that_is_run() -> None:
    assert last_layer(Crossed(), IMAGES) == "logits"


@pytest.mark.parametrize(("spec", "name"), [("mlp", "l2"), ("seed-cnn", "l1"), ("resnet20", "fc")])
def test_last_layer_of_the_built_in_networks(spec: str, name: str) -> None:
    network = create_model(spec, num_classes=4, in_channels=3, image_size=4).eval()
    assert last_layer(network, IMAGES) == name


def test_last_layer_may_carry_a_parametrization() -> None:
    assert last_layer(nn.Sequential(nn.Flatten(), nn.Linear(48, 6), weight_norm(nn.Linear(6, 4))), IMAGES) == "2"


def test_network_without_layers_is_refused() -> None:
    with pytest.raises(UserError, match="no layers"):
        last_layer(Layerless(), IMAGES)


def test_penultimate_is_what_the_last_layer_turns_into_logits() -> None:
    torch.manual_seed(0)
    network = Crossed()
    features = penultimate(network, "logits", IMAGES)
    assert features.shape == (5, 6)
    expected = torch.tanh(IMAGES.flatten(1) @ network.body[1].weight.T + network.body[1].bias)
    torch.testing.assert_close(features, expected)
    torch.testing.assert_close(features @ network.logits.weight.T + network.logits.bias, network(IMAGES))
    assert not torch.allclose(features, IMAGES.flatten(1)[:, :6])
    assert not network.logits._forward_pre_hooks


@given(
    features=st.integers(1, 600),
    classes=st.integers(2, 50),
    parameters=st.integers(1, 100_000),
)
def test_hidden_size_comes_within_half_a_unit_of_the_parameters(features: int, classes: int, parameters: int) -> None:
    hidden = hidden_size(parameters, features, classes)
    counted = sum(p.numel() for p in make_mlp(features, hidden, classes).parameters())
    unit = features + 1 + classes
    assert hidden >= 1
    assert abs(counted - parameters) <= unit / 2 or (hidden == 1 and parameters < counted)


@pytest.fixture(scope="module")
def classifier(digits: Dataset) -> FeaturesMLP:
    torch.manual_seed(0)
    base = create_model("mlp", num_classes=10, in_channels=1, image_size=8)
    return FeaturesMLP(
        base, make_mlp(128, 7, 10), layer="l2", preprocess=digits.preprocess, class_names=digits.class_names
    )


def test_prediction_is_an_mlp_over_the_features(classifier: FeaturesMLP, digits: Dataset) -> None:
    assert digits.train is not None
    images = digits.train.images
    pixels = digits.preprocess(images).flatten(1).numpy().astype(np.float64)

    def affine(x: np.ndarray, layer: nn.Module) -> np.ndarray:
        weight, bias = (p.detach().numpy().astype(np.float64) for p in layer.parameters())
        return x @ weight.T + bias

    features = pixels
    for name in ("l0", "l1"):
        features = np.maximum(affine(features, classifier.base.get_submodule(name)), 0)
    logits = affine(np.maximum(affine(features, classifier.mlp[0]), 0), classifier.mlp[2])  # type: ignore[index]
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(classifier.predict_proba(images), expected, atol=1e-6)
    np.testing.assert_array_equal(classifier.predict(images), expected.argmax(axis=1))
    assert classifier.predict_proba(images[:0]).shape == (0, 10)


def test_many_images_are_predicted_as_few(classifier: FeaturesMLP, digits: Dataset) -> None:
    assert digits.train is not None
    many = digits.train.images.repeat(3, 1, 1, 1)[:260]
    np.testing.assert_allclose(
        classifier.predict_proba(many)[250:], classifier.predict_proba(many[250:]), rtol=1e-5, atol=1e-7
    )


def test_saved_classifier_gives_the_same_bits(
    classifier: FeaturesMLP, digits: Dataset, tmp_path: Path, same_bits
) -> None:
    assert digits.test is not None
    classifier.save(tmp_path / "saved")
    loaded = postgrad.load(tmp_path / "saved")
    assert isinstance(loaded, FeaturesMLP)
    expected = classifier.predict_proba(digits.test.images)
    np.testing.assert_array_equal(loaded.predict_proba(digits.test.images), expected)
    assert loaded.class_names == digits.class_names
    assert loaded.num_parameters == classifier.num_parameters
    assert {file.suffix for file in (tmp_path / "saved").rglob("*.*")} == {".json", ".safetensors"}


def test_a_weight_that_is_changed_on_disk_would_be_seen(
    classifier: FeaturesMLP, digits: Dataset, tmp_path: Path
) -> None:
    """Negative control of the test above."""
    assert digits.test is not None
    expected = classifier.predict_proba(digits.test.images)
    classifier.save(tmp_path / "saved")
    loaded = FeaturesMLP.load(tmp_path / "saved")
    with torch.no_grad():
        loaded.mlp[2].bias[3] += 1e-3  # type: ignore[index]
    assert not np.array_equal(loaded.predict_proba(digits.test.images), expected)


def test_control_has_the_methods_size_and_leaves_the_base_alone(make_setting, same_bits) -> None:
    setting = make_setting(3)
    before = {key: value.clone() for key, value in setting.base.state_dict().items()}
    fitted = control_features(setting)
    own = sum(p.numel() for p in fitted.model.mlp.parameters())
    assert abs(own - setting.method_parameters) <= 12 + 1 + 10
    assert all(torch.equal(value, before[key]) for key, value in setting.base.state_dict().items())
    assert same_bits(fitted.model.base, setting.base)
    assert len(fitted.trials) == 3
