"""GradNet against a slow reference in numpy and float64, as a scikit-learn estimator, and on real digits."""

from __future__ import annotations

import os
import pickle
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch import nn
from torch.nn import functional as F

from postgrad.data.datasets import load_dataset
from postgrad.data.preprocessing import Augmentation, Preprocessing
from postgrad.errors import UserError
from postgrad.methods._gradnet_head import GradNetHead, auto_hidden, hidden_groups
from postgrad.methods.gradnet import GradNet
from postgrad.models.registry import create_model


def small_net(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(3)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 5)]
    return nn.Sequential(*layers).to(dtype).eval()


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(24, 1, 8, 8, generator=generator)
    return images, torch.randint(5, (24,), generator=generator)


def reference_gradients(net: nn.Module, image: torch.Tensor, label: int, weight_decay: float = 0.0) -> list[np.ndarray]:
    """One image at a time by autograd, selected layer by layer with numpy's percentile."""
    weights = [p for p in net.parameters() if p.dim() >= 2]
    found = torch.autograd.grad(F.cross_entropy(net(image[None]), torch.tensor([label])), weights)
    blocks = []
    for gradient, weight in zip(found, weights, strict=True):
        flat = (gradient + weight_decay * weight.detach()).flatten().numpy()
        blocks.append(np.where(np.abs(flat) > np.percentile(np.abs(flat), 85), flat, 0.0))
    return blocks


def reference_logits(clf: GradNet, net: nn.Module, image: torch.Tensor, weight_decay: float = 0.0) -> np.ndarray:
    """GradNet's mean logits by the published formulas, from its own weights and statistics."""
    statistics = {key: value.double().numpy() for key, value in clf.space_.statistics().items()}
    head = clf.head_
    total = np.zeros(5)
    for label in range(5):
        activations = []
        for block, group, size in zip(
            reference_gradients(net, image, label, weight_decay), head.hidden.children(), head.sizes, strict=True
        ):
            name = clf.space_.blocks[len(activations)].name
            scaled = (block - statistics[f"{name}.offset"]) / statistics[f"{name}.width"]
            scaled = np.where(block != 0, scaled, 0.0)
            features = np.sign(scaled) * np.sqrt(np.abs(scaled))
            layer = next(group.children())
            hidden = layer.weight.detach().numpy() @ features + layer.bias.detach().numpy()
            assert hidden.shape == (size,)
            activations.append(np.maximum(hidden, 0))
        output = head.output
        total += output.weight.detach().numpy() @ np.concatenate(activations) + output.bias.detach().numpy()
    return total / 5


def test_predictions_follow_the_published_formulas(batch):
    images, labels = batch
    net = small_net(torch.float64)
    clf = GradNet(net, hidden=(6, 7), epochs=2, batch_size=5).fit(images.double(), labels)
    expected = np.stack([reference_logits(clf, net, image) for image in images.double()])
    np.testing.assert_allclose(
        clf.decision_function(images.double()), expected, rtol=1e-7, atol=1e-9
    )  # √ makes 1e-8 of 1e-16


def test_weight_decay_is_added_to_every_gradient(batch):
    images, labels = batch
    net = small_net(torch.float64)
    clf = GradNet(net, hidden=(6, 7), epochs=1, weight_decay=0.05).fit(images.double(), labels)
    got = clf.decision_function(images[:3].double())
    with_decay = np.stack([reference_logits(clf, net, image, 0.05) for image in images[:3].double()])
    without = np.stack([reference_logits(clf, net, image) for image in images[:3].double()])
    np.testing.assert_allclose(got, with_decay, rtol=1e-7, atol=1e-9)
    assert not np.allclose(got, without, rtol=1e-4)


def test_statistics_are_the_extremes_over_the_selected_gradients_of_the_half(batch):
    images, labels = batch
    net = small_net(torch.float64)
    clf = GradNet(net, epochs=1, random_state=5).fit(images.double(), labels)
    drawn = torch.randint(5, (24,), generator=torch.Generator().manual_seed(5))
    rows = [reference_gradients(net, image, int(label)) for image, label in zip(images.double(), drawn, strict=True)]
    for position, block in enumerate(clf.space_.blocks):
        values = np.stack([row[position] for row in rows])
        width = values.max(0) - values.min(0)
        statistics = clf.space_.statistics()
        np.testing.assert_allclose(statistics[f"{block.name}.offset"].numpy(), values.min(0), atol=1e-12)
        np.testing.assert_allclose(
            statistics[f"{block.name}.width"].numpy(), np.where(width > 0, width, 1.0), atol=1e-12
        )


def test_head_starts_as_published_and_reads_neighbouring_layers():
    torch.manual_seed(0)
    head = GradNetHead((400, 300, 200), (30, 40), 10, neighbours=True)
    assert hidden_groups(3, neighbours=True) == ((0, 1), (1, 2))
    weights = torch.cat([p.flatten() for name, p in head.named_parameters() if name.endswith("weight")])
    assert float(weights.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert all(float(p.detach().abs().max()) == 0 for name, p in head.named_parameters() if name.endswith("bias"))
    blocks = [torch.randn(2, size) for size in (400, 300, 200)]
    joined = []
    for pair, layers in zip(((0, 1), (1, 2)), head.hidden, strict=True):
        weight = torch.cat([layer.weight for layer in layers], dim=1)
        joined.append(F.relu(torch.cat([blocks[i] for i in pair], dim=1) @ weight.T + layers[0].bias))
    torch.testing.assert_close(head(blocks), head.output(torch.cat(joined, dim=1)))


def test_hidden_sizes_follow_the_published_ones():
    assert auto_hidden(3) == (5, 100, 25)
    assert auto_hidden(1) == (25,)
    assert len(auto_hidden(20)) == 20
    assert sum(auto_hidden(20)[1:-1]) <= 100


def test_it_is_a_scikit_learn_estimator(batch):
    images, labels = batch
    clf = GradNet(small_net(), hidden=(4, 6), epochs=1)
    with pytest.raises(NotFittedError):
        clf.predict(images)
    copy = clone(clf).set_params(lr=0.02)
    assert copy.get_params()["hidden"] == (4, 6)
    assert copy.lr == 0.02
    assert clf.lr == 0.01
    copy.fit(images.numpy(), labels.numpy())
    assert copy.classes_.tolist() == [0, 1, 2, 3, 4]
    probabilities = copy.predict_proba(images.numpy())
    assert probabilities.shape == (24, 5)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert (copy.predict(images) == probabilities.argmax(axis=1)).all()
    assert 0 <= copy.score(images, labels) <= 1
    again = pickle.loads(pickle.dumps(copy))
    assert (again.predict_proba(images) == probabilities).all()


def test_the_given_network_is_left_as_it_is(batch):
    images, labels = batch
    net = small_net().train()
    net[0].weight.requires_grad_(False)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    GradNet(net, epochs=1).fit(images, labels).predict(images)
    assert net.training
    assert not net[0].weight.requires_grad
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_one_image_none_and_any_memory_layout_predict_alike(batch):
    images, labels = batch
    clf = GradNet(small_net(), epochs=1).fit(images, labels)
    together = clf.decision_function(images)
    alone = np.concatenate([clf.decision_function(images[i : i + 1]) for i in range(4)])
    np.testing.assert_allclose(alone, together[:4], rtol=1e-4, atol=1e-5)
    assert clf.predict_proba(images[:0]).shape == (0, 5)
    strided = torch.empty(24, 1, 8, 16)[..., ::2].copy_(images)
    np.testing.assert_allclose(clf.decision_function(strided), together, rtol=1e-3, atol=1e-5)
    channels_last = images.to(memory_format=torch.channels_last)
    np.testing.assert_allclose(clf.decision_function(channels_last), together, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("labels", ["random", "all"])
@pytest.mark.parametrize(
    "options",
    [
        {"normalise": "none", "select": None},
        {"normalise": "std+l2"},
        {"normalise": "mask"},
        {"normalise": "power", "exponent": 0.125},
        {"scope": "global"},
        {"neighbours": True, "hidden": (7,)},
        {"optimizer": "adam", "lr": 1e-3, "dropout": 0.5, "optimizer_options": {"weight_decay": 1e-4}},
        {"layers": ["4"], "hidden": (9,)},
    ],
)
def test_options_run_and_repeat_bit_for_bit(batch, options, labels):
    images, targets = batch
    first, second = (GradNet(small_net(), epochs=2, labels=labels, **options).fit(images, targets) for _ in range(2))
    assert np.isfinite(first.decision_function(images)).all()
    np.testing.assert_array_equal(first.decision_function(images), second.decision_function(images))


def test_saved_and_loaded_it_predicts_the_same_bits(batch, tmp_path):
    images, labels = batch
    net = create_model("seed-cnn", num_classes=5, in_channels=1, image_size=8)
    clf = GradNet(net, epochs=1, augment=Augmentation(pad=1, crop=True), class_names=tuple("abcde"))
    pixels = (images * 255).to(torch.uint8)
    clf.fit(pixels, labels).save(tmp_path / "clf")
    again = GradNet.load(tmp_path / "clf")
    np.testing.assert_array_equal(again.predict_proba(pixels), clf.predict_proba(pixels))
    assert again.class_names_ == tuple("abcde")
    assert again.augment == clf.augment
    assert {path.suffix for path in (tmp_path / "clf").rglob("*") if path.is_file()} == {".json", ".safetensors"}


def test_an_interrupted_fit_goes_on_to_the_same_bits(batch, tmp_path, monkeypatch):
    images, labels = batch
    settings = {"hidden": (4, 6), "epochs": 4, "batch_size": 5, "dropout": 0.3, "optimizer_options": {"momentum": 0.9}}
    undisturbed = GradNet(small_net(), **settings).fit(images, labels)
    interrupted = GradNet(small_net(), directory=tmp_path / "fit", **settings)
    calls = 0
    true_batch = GradNet._training_batch

    def stopping(self, *arguments):
        nonlocal calls
        calls += 1
        if calls == 13:
            os.kill(os.getpid(), signal.SIGINT)
        return true_batch(self, *arguments)

    monkeypatch.setattr(GradNet, "_training_batch", stopping)
    with pytest.raises(KeyboardInterrupt):
        interrupted.fit(images, labels)
    assert (tmp_path / "fit" / "checkpoint.pt").exists()
    resumed = GradNet(small_net(), directory=tmp_path / "fit", **settings).fit(images, labels)
    assert calls == 20, "the resumed fit repeated steps that were done"
    np.testing.assert_array_equal(resumed.decision_function(images), undisturbed.decision_function(images))


def test_a_checkpoint_of_another_fit_is_refused(batch, tmp_path):
    images, labels = batch
    GradNet(small_net(), epochs=1, directory=tmp_path).fit(images, labels)
    with pytest.raises(UserError, match="other settings, data or model"):
        GradNet(small_net(), epochs=1, directory=tmp_path).fit(images.flip(0), labels)
    with pytest.raises(UserError, match="other settings, data or model"):
        GradNet(small_net(), epochs=1, lr=0.5, directory=tmp_path).fit(images, labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": (1, 2, 3)}, "3 sizes given, but this network has 2 hidden blocks"),
        ({"normalise": "scael"}, "did you mean 'scale'"),
        ({"select": 1.5}, "expected a share above 0"),
        ({"layers": ["conv9"]}, "unknown layer 'conv9'"),
        ({"optimizer": "sdg"}, "did you mean"),
        ({"memory": "10kB"}, "memory"),
        ({"labels": "true"}, "labels"),
        ({"scope": "globl"}, "did you mean 'global'"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_in_one_line(batch, change, message):
    images, labels = batch
    with pytest.raises(UserError, match=message) as raised:
        GradNet(small_net(), **change).fit(images, labels)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.rand(4, 8, 8), torch.zeros(4), "four axes"),
        (torch.rand(4, 1, 8, 8), torch.zeros(3), "expected 4 class indices"),
        (torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 5]), "out of range"),
        (torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, -1]), "negative"),
        (torch.full((4, 1, 8, 8), float("nan")), torch.zeros(4), "NaN"),
        (torch.rand(0, 1, 8, 8), torch.zeros(0), "got none"),
        (torch.rand(4, 1, 8, 8), torch.tensor([0.0, 0.5, 1.0, 2.0]), "whole numbers"),
    ],
)
def test_data_that_cannot_be_used_is_refused_in_one_line(x, y, message):
    with pytest.raises(UserError, match=message) as raised:
        GradNet(small_net(), epochs=1).fit(x, y)
    assert "\n" not in str(raised.value)


def test_other_images_than_in_fit_are_refused(batch):
    images, labels = batch
    clf = GradNet(small_net(), epochs=1).fit(images, labels)
    with pytest.raises(UserError, match="as in fit"):
        clf.predict(torch.rand(2, 3, 8, 8))


def test_blocks_that_do_not_fit_are_refused_with_the_estimate_and_the_options(batch):
    images, labels = batch
    with pytest.raises(UserError, match=r"need [\d.]+ .B.*raise memory.*layers="):
        GradNet(small_net(), hidden=(5000, 5000), memory="10MB").fit(images, labels)


Digits = tuple[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def early_stopped(net: nn.Module, steps: int, lr: float) -> Digits:
    """A base network stopped early on the first half of the digits, the other half, and the test images."""
    data = load_dataset("digits")
    half = len(data.train) // 2
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    inputs, labels = net.preprocess(data.train.images[:half]), data.train.labels[:half]
    for step in range(steps):
        chosen = torch.randperm(half, generator=torch.Generator().manual_seed(step))[:64]
        optimizer.zero_grad()
        F.cross_entropy(net(inputs[chosen]), labels[chosen]).backward()
        optimizer.step()
    rest = data.train.images[half:], data.train.labels[half:]
    return net.eval(), *rest, data.test.images, data.test.labels


def accuracy(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    with torch.no_grad():
        return float((net(net.preprocess(x)).argmax(1) == y).double().mean())


@pytest.fixture(scope="module")
def digits() -> Digits:
    """With a network of a hundredth of the published one's weights."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 10)]
    net = nn.Sequential(*layers)
    net.preprocess = Preprocessing()
    return early_stopped(net, steps=60, lr=0.5)


def test_it_beats_an_early_stopped_base_on_real_digits_and_learns_nothing_from_shuffled_labels(digits):
    net, x, y, x_test, y_test = digits
    settings = {"lr": 0.1, "batch_size": 10}
    assert GradNet(net, epochs=3, **settings).fit(x, y).score(x_test, y_test) > accuracy(net, x_test, y_test) + 0.02
    shuffled = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(1))]
    assert GradNet(net, epochs=3, **settings).fit(x, shuffled).score(x_test, y_test) < 0.3


@pytest.mark.slow
def test_the_published_settings_beat_the_published_network():
    torch.manual_seed(0)
    net = create_model("seed-cnn", num_classes=10, in_channels=1, image_size=8)
    net, x, y, x_test, y_test = early_stopped(net, steps=30, lr=0.05)
    assert GradNet(net, epochs=20).fit(x, y).score(x_test, y_test) > accuracy(net, x_test, y_test) + 0.02


def test_the_learning_curve_uses_the_validation_images(digits):
    net, x, y, *_ = digits
    clf = GradNet(net, epochs=2).fit(x[:200], y[:200], validation=(x[200:260], y[200:260]))
    points = [row["accuracy"] for row in clf.history_.rows if row.get("accuracy") is not None]
    assert points[-1] == pytest.approx(clf.score(x[200:260], y[200:260]))


def test_no_file_is_written_without_a_directory(batch, tmp_path, monkeypatch):
    images, labels = batch
    monkeypatch.chdir(tmp_path)
    GradNet(small_net(), epochs=1).fit(images, labels)
    assert list(Path(tmp_path).iterdir()) == []


READINGS = [{"rank": 1}, {"rank": 2, "neighbours": True, "dropout": 0.2}, {"project": 20}, {"coordinates": 60}]


@pytest.mark.parametrize("labels", ["random", "all"])
@pytest.mark.parametrize("options", READINGS)
def test_other_readings_of_the_gradients_run_repeat_save_and_load(batch, options, labels, tmp_path):
    images, targets = batch
    net = create_model("seed-cnn", num_classes=5, in_channels=1, image_size=8)
    settings = {"epochs": 2, "labels": labels, "optimizer": "adam", "lr": 1e-2, **options}
    first, second = (clone(GradNet(net, **settings)).fit(images, targets) for _ in range(2))
    assert first.get_params()[next(iter(options))] == next(iter(options.values()))
    np.testing.assert_array_equal(first.decision_function(images), second.decision_function(images))
    first.save(tmp_path / "clf")
    again = GradNet.load(tmp_path / "clf")
    np.testing.assert_array_equal(again.predict_proba(images), first.predict_proba(images))
    assert {key: again.get_params()[key] for key in options} == options
    other = GradNet(net, **settings, random_state=1).fit(images, targets)
    assert not np.allclose(other.decision_function(images), first.decision_function(images))


def test_low_rank_predictions_follow_the_formula(batch):
    """Σ_r aᵀ G b of whole gradients from one autograd pass for each image and label."""
    images, labels = batch
    net = small_net(torch.float64)
    clf = GradNet(net, hidden=(6, 7), rank=2, epochs=1).fit(images.double(), labels)
    head, weights = clf.head_, [p for p in net.parameters() if p.dim() >= 2]
    for image, logits in zip(images[:4].double(), clf.decision_function(images[:4].double()), strict=True):
        total = torch.zeros(5, dtype=torch.float64)
        for label in range(5):
            found = torch.autograd.grad(F.cross_entropy(net(image[None]), torch.tensor([label])), weights)
            hidden = [
                torch.einsum("ok,hro,hrk->h", gradient.flatten(1), a, b) / scale + bias
                for gradient, a, b, scale, bias in zip(found, head.a, head.b, head.scales, head.bias, strict=True)
            ]
            total += head.output(torch.cat(hidden).relu()).detach()
        np.testing.assert_allclose(logits, (total / 5).numpy(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("options", [{"rank": 2, "lr": 0.01}, {"project": 1024, "lr": 1e-3}])
def test_other_readings_learn_on_real_digits(digits, options):
    net, x, y, x_test, y_test = digits
    clf = GradNet(net, epochs=4, optimizer="adam", **options).fit(x, y)
    assert clf.score(x_test, y_test) > accuracy(net, x_test, y_test) + 0.02


def test_rank_needs_no_entries_and_says_so(batch):
    images, labels = batch
    for change in ({"select": 0.3}, {"normalise": "std"}, {"scope": "global"}, {"weight_decay": 1e-4}, {"project": 9}):
        with pytest.raises(UserError, match="needs the entries of gradients"):
            GradNet(small_net(), rank=2, **change).fit(images, labels)
    GradNet(small_net(), rank=2, select=None, normalise="none", epochs=1).fit(images, labels)
    with pytest.raises(UserError, match="either project or coordinates"):
        GradNet(small_net(), project=5, coordinates=5).fit(images, labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"select": "a"}, "select: should be .* number.* or None, got 'a'"),
        ({"hidden": "big"}, "hidden: should be a list or 'auto', got 'big'"),
        ({"hidden": (2.5, 3)}, "hidden: should be"),
        ({"batch_size": 0}, "batch_size: should be greater than 0"),
        ({"batch_size": "25"}, "batch_size: should be a valid integer, got '25'"),
        ({"epochs": -1}, "epochs: should be greater than 0"),
        ({"lr": None}, "lr: should be a valid number"),
        ({"optimizer": 3}, "optimizer: should be a valid string"),
        ({"optimizer_options": {"momentun": 0.9}}, "did you mean 'momentum'"),
        ({"dropout": 1.0}, "dropout"),
        ({"layers": "0"}, "layers: should be a list or None"),
        ({"memory": 5}, "memory: should be a valid string"),
        ({"rank": 0}, "rank: expected 1 or more"),
        ({"project": -3}, "project: expected 1 or more"),
        ({"coordinates": 1.5}, "coordinates: should be a valid integer"),
    ],
)
def test_settings_of_the_wrong_kind_are_refused_in_one_line(batch, change, message):
    images, labels = batch
    with pytest.raises(UserError, match=message) as raised:
        GradNet(small_net(), **change).fit(images, labels)
    assert "\n" not in str(raised.value)


def test_numbers_of_numpy_are_numbers(batch):
    images, labels = batch
    GradNet(small_net(), hidden=np.array([3, 4]), lr=np.float64(0.01), batch_size=np.int64(8), epochs=1).fit(
        images, labels
    )
